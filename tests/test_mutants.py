"""Faults planted in the CUDA sources: the checker must see each, or the results must differ from the CPU's.

A mutant replaces one piece of text of one file. One that survives is a hole in the case, or no fault at all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import backends
import numpy as np
import pytest
from fastgrad.kernels import cuda
from tolerances import assert_close

import fastgrad
from fastgrad.linear import embedding, embedding_backward, linear_backward

emulated = pytest.importorskip("emulated")

INF, NAN = float("inf"), float("nan")
F32, F64 = np.float32, np.float64


@pytest.fixture(autouse=True)
def _device():
    reason = backends.missing("emulated")
    if reason is not None or "emulated" not in backends.chosen():
        pytest.skip(reason or "FASTGRAD_TEST_BACKENDS leaves the emulated device out")


# --- arrays and comparison


def placed(values: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return a copy that begins `offset` elements past 64 bytes."""
    memory = np.empty(values.nbytes + 64 + offset * values.itemsize, np.uint8)
    first = -memory.ctypes.data % 64 + offset * values.itemsize
    result = memory[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    result[...] = values
    return result


def normal(shape: int | tuple[int, ...], seed: int = 0, dtype: type = F32, offset: int = 0) -> np.ndarray:
    return placed(np.random.default_rng(seed).normal(size=shape).astype(dtype), offset)


def again(value: object) -> object:
    """Return a copy of arrays, in lists too, that begins as far past 16 bytes."""
    if isinstance(value, np.ndarray):
        return placed(value, value.ctypes.data % 16 // value.itemsize)
    return [again(v) for v in value] if isinstance(value, list | tuple) else value


def arrays_in(value: object) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray | np.number):
        yield np.asarray(value)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from arrays_in(v)


def agree(operation: str, function: Callable, *arguments: object) -> None:
    """Compare what a function returns, and leaves in its arguments, on the CPU and on the device."""
    found = []
    for call in (function, backends.on_device("emulated", function)):
        own = [again(a) for a in arguments]
        found.append([*arrays_in(call(*own)), *arrays_in(own)])
    expected, actual = found
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if a.dtype.kind == "f":
            assert_close(a, e, operation, magnitude="largest", label=f"array {i}")
        else:
            np.testing.assert_array_equal(a, e)


# --- a small case of each operation, in which every part of its kernels runs


def activation(kind: str) -> Callable[[], None]:
    """Two blocks and a tail; every array once off 16 bytes. Bit for bit."""

    def case() -> None:
        x, dy = 3 * normal(2085), normal(2085, 1)
        x[[3, 9, 21, 22, 2084]] = NAN, INF, -INF, 0, NAN
        agree("exact", lambda x, out: fastgrad.activation(x, kind, out=out), x, np.zeros_like(x))
        for off in range(4):
            arrays = [placed(values, off == i) for i, values in enumerate((dy, x, np.zeros_like(x)))]
            agree("exact", lambda dy, x, out: fastgrad.activation_backward(dy, x, kind, out=out), *arrays)

    return case


def bias_grad() -> None:
    """Several blocks along either axis, none of them full; columns that make no vector."""
    for shape in ((1100, 8), (100, 132), (37, 5), (3, 70)):
        agree(
            "reduction",
            lambda dy, x, total: fastgrad.activation_backward(dy, x, "relu", bias_grad=total),
            normal(shape), normal(shape, 1), np.zeros(shape[-1:], F32),
        )  # fmt: skip


def dropouts() -> None:
    """Groups of 64 and a tail, arrays off 16 bytes; rows that are no vectors and rows that are. Bit for bit."""
    random = (0.3, (1 << 40) + 5, (1 << 35) + 3)
    for off in range(3):
        dy, x, out = (placed(v, off == i) for i, v in enumerate((normal(1095), normal(1095, 1), np.zeros(1095, F32))))
        agree("exact", lambda dy, out: fastgrad.dropout(dy, *random, out=out), dy, out)
        agree("exact", lambda x, out: fastgrad.activation_dropout(x, "silu", *random, out=out), x, out)
        agree("exact", lambda *a: fastgrad.activation_dropout_backward(*a[:2], "silu", *random, out=a[2]), dy, x, out)
    for shape in ((300, 8), (37, 5)):
        agree(
            "reduction",
            lambda dy, x, out, total: fastgrad.activation_dropout_backward(
                dy, x, "relu", *random, out=out, bias_grad=total
            ),
            normal(shape), normal(shape, 1), np.zeros(shape, F32), np.zeros(shape[-1:], F32),
        )  # fmt: skip


def batch_norm() -> None:
    """Channels along the last axis and not, more than a block of them; in training and in evaluation."""
    for shape in ((300, 70), (3, 5, 40)):
        x, dy, *channels = (1 + normal(s, k, F64) for k, s in enumerate((shape, shape, *[shape[1:2]] * 4)))

        def run(x, dy, weight, bias, mean, var, training):
            y, saved = fastgrad.batch_norm(x, weight, bias, mean, var, training=training)
            return y, *fastgrad.batch_norm_backward(dy, saved), mean, var

        for training in (True, False):
            agree("product", functools.partial(run, training=training), x, dy, *channels[:3], channels[3] ** 2)


def attention() -> None:
    """Several blocks and tiles along either axis, none full; a head wider than a slab of the smallest variant."""

    def both(options: dict) -> Callable:
        def call(dy, q, k, v):
            y, saved = fastgrad.attention(q, k, v, **options)
            return y, saved.largest, saved.total, *fastgrad.attention_backward(dy, saved)

        return call

    for options in ({"causal": True}, {"lengths": [35, 0]}, {"dropout": 0.4, "causal": True}):
        for T, S, D in ((40, 70, 5), (70, 40, 37)):
            shapes = ((2, 2, T, D), (2, 2, T, D), (2, 2, S, D), (2, 2, S, D))
            agree("product", both(options), *(normal(shape, seed) for seed, shape in enumerate(shapes)))
    # Rows of 5 whose strides are vectors, then rows of vectors that begin beside one.
    wide = [normal((2, 1, 20, 8), seed) for seed in range(4)]
    agree("product", lambda *arrays: both({})(*(a[..., :5] for a in arrays)), *wide)
    agree("product", lambda *arrays: both({})(*(a[..., 1:5] for a in arrays)), *wide)


def attention_with_nan() -> None:
    """What a row does not see is no number; what it sees is large, and of either sign."""
    dy, q, k, v = (normal((1, 1, 40, 5), seed) for seed in range(4))
    k *= 30
    for array in (k, v):
        array[0, 0, 33:] = NAN
    agree("product", lambda q, k, v: fastgrad.attention(q, k, v, causal=True)[0][:, :, :33], q, k, v)
    k[0, 0, :33] = -INF
    k[0, 0, 32], q[...] = 1, np.abs(q)
    agree("product", lambda q, k, v: fastgrad.attention(q, k, v, lengths=[33])[0], q, k, v)
    dy[0, 0, :20] = NAN
    k[...] = normal((1, 1, 40, 5), 5)
    v[...] = normal((1, 1, 40, 5), 6)

    def behind(dy, q, k, v):
        gradients = fastgrad.attention_backward(dy, fastgrad.attention(q, k, v, causal=True)[1])
        return [gradient[:, :, 20:] for gradient in gradients]

    agree("product", behind, dy, q, k, v)


def bias_of_linear() -> None:
    for rows, columns in ((100, 132), (37, 5)):
        agree("product", linear_backward, normal((rows, columns)), normal((rows, 3), 1), normal((columns, 3), 2))


def glu() -> None:
    dy, gate, up = (normal(1093, seed) for seed in range(3))
    agree("exact", lambda gate, up, y: fastgrad.swiglu(gate, up, out=y), gate, up, np.zeros_like(up))
    for off in range(6):
        values = (dy, gate, up, np.zeros_like(up), np.zeros_like(up))
        arrays = [placed(v, off == i) for i, v in enumerate(values)]
        agree("exact", lambda dy, g, u, dg, du: fastgrad.swiglu_backward(dy, g, u, out=(dg, du)), *arrays)


def prelu() -> None:
    for shape in ((40, 8), (37, 5), (2, 3, 70), (2, 3, 1024), (2, 2, 1100), (1, 1, 1037)):
        x = normal(shape)
        x.flat[5] = NAN
        weight = normal(shape[1], 1)
        agree("pointwise", fastgrad.prelu, x, weight)
        x.flat[6] = 0
        agree("reduction", fastgrad.prelu_backward, normal(shape, 2), x, weight)


def mse() -> None:
    for off in range(4):
        arrays = [placed(normal(2085, i), off == i) for i in range(3)]
        agree("reduction", lambda p, t, out: fastgrad.mse(p, t, out=out), *arrays)


def mse_of_many() -> None:
    """More blocks than the last stage has threads."""
    agree("reduction", fastgrad.mse, normal(80000), normal(80000, 1))


def cross_entropy() -> None:
    """Rows for a part of a warp, for a warp, for a block in shared memory, and for a block that reads twice."""
    for rows, classes in ((9, 33), (3, 1022), (3, 1031), (2, 7001)):
        logits = 4 * normal((rows, classes))
        logits[0, 1] = -INF
        targets = np.random.default_rng(1).integers(0, classes, rows)
        agree("reduction", fastgrad.softmax_cross_entropy, logits, targets)
        if classes < 5000:
            agree("reduction", fastgrad.softmax_cross_entropy, np.sort(logits) + 80, targets)


def table() -> None:
    """Rows used more often than are on the way at a time, others never, in two runs that are merged."""
    rng = np.random.default_rng(0)
    for n, rows, width in ((2200, 50, 4), (30, 11, 5)):
        indices = rng.integers(0, rows, n)
        indices[: n // 4] = 3
        agree("exact", embedding, normal((rows, width), 1), indices)
        agree(
            "exact", lambda dy, indices, rows=rows: embedding_backward(dy, indices, rows), normal((n, width)), indices
        )


def table_without_a_row() -> None:
    """Indices out of range, which the device does not look for: NaN, and no gradient."""
    weight, dy, indices = normal((11, 8)), normal((4, 8), 1), np.array([3, -1, 11, 1 << 40])
    y = backends.on_device("emulated", embedding)(weight, indices)
    np.testing.assert_array_equal(y, np.stack([weight[3], *[np.full(8, NAN, F32)] * 3]))
    dweight = backends.on_device("emulated", embedding_backward)(dy, indices, 11)
    np.testing.assert_array_equal(dweight, np.where(np.arange(11)[:, None] == 3, dy[0], F32(0)))


def lists(seed: int = 0, *, offset: int = 1) -> list[np.ndarray]:
    """Tensors smaller than a vector, of two chunks, empty, and one that begins `offset` elements past 16 bytes."""
    sizes = (3, 16384 + 301, 0, 130)
    return [normal(size, seed + i, F32, offset * (i == 3)) for i, size in enumerate(sizes)]


def norms() -> None:
    for order in (1, 2, INF):
        agree("norm", lambda grads, order=order: fastgrad.global_norm(grads, order), lists())
    for order in (2, INF):
        grads = lists()
        grads[1][77] = NAN
        agree("norm", lambda grads, order=order: fastgrad.global_norm(grads, order), grads)
    huge = [np.array([3e147, 1.9e146, 1.0]), np.array([1e-170, 3e-170])]
    agree("norm", fastgrad.global_norm, huge)
    agree("norm", fastgrad.global_norm, huge[1:])


def order_of_a_norm() -> None:
    """The same bits wherever a tensor begins."""
    on_device = backends.on_device("emulated", fastgrad.global_norm)
    for seed in range(5):
        straight, off = (float(on_device([normal(301, seed, F32, offset)])) for offset in (0, 1))
        assert straight == off


def clip() -> None:
    small = [0.001 * g for g in lists()]
    agree("pointwise", lambda grads: fastgrad.clip_by_global_norm(grads, 0.01), small)
    agree("pointwise", lambda grads: fastgrad.clip_by_norm(grads, 0.02), small)
    grads = lists()
    grads[0][1] = NAN
    agree("pointwise", lambda grads: fastgrad.clip_by_value(grads, -0.5, 0.5), grads)


def health() -> None:
    def entries(arrays: list) -> list:
        h = fastgrad.health(arrays)
        return [h.max_abs, h.nan, h.inf, h.zero, h.subnormal]

    bad = lists()
    bad[1][[5, 16390]] = NAN, 0
    bad[3][[0, 7, 9]] = INF, -INF, NAN
    small = lists()
    small[1][[5, 16390]] = 0, 1e-40
    small[0][...] = 3e-42, -7e-42, 0
    for arrays in (bad, small):
        agree("exact", entries, arrays)
        agree("norm", lambda arrays: fastgrad.health(arrays).norm, arrays)


def adam() -> None:
    for options in ({"weight_decay": 0.1}, {"grad_scale": 0.25, "max_norm": 0.5}):
        agree(
            "step",
            lambda p, g, m, v, options=options: fastgrad.adam_step(p, g, m, v, step=3, lr=0.1, **options),
            lists(), lists(10), lists(20), [np.abs(a) for a in lists(30)],
        )  # fmt: skip


def amsgrad() -> None:
    grads = lists(10)
    grads[0][1] = NAN
    agree(
        "step",
        lambda p, g, m, v, most: fastgrad.adam_step(p, g, m, v, step=3, max_exp_avg_sq=most),
        lists(), grads, lists(20), *([np.abs(a) for a in lists(seed)] for seed in (30, 40)),
    )  # fmt: skip


def sgd() -> None:
    def step(p: list, g: list, b: list) -> None:
        fastgrad.sgd_step(p, g, b, lr=0.1, momentum=0.9, dampening=0.3, nesterov=False, weight_decay=0.1)
        fastgrad.sgd_step(p, g, b, lr=0.1, momentum=0.9, nesterov=True)

    agree("step", step, lists(), lists(10, offset=0), lists(20, offset=0))


def rmsprop() -> None:
    def step(p: list, g: list, v: list, a: list) -> None:
        for _ in range(30):
            fastgrad.rmsprop_step(p, g, v, grad_avg=a, centered=True, alpha=0.5, eps=1e-3)

    agree("step", step, [np.zeros(37, F32)], [normal(37, 10)], [np.zeros(37, F32)], [np.zeros(37, F32)])
    agree("step", fastgrad.rmsprop_step, lists(), lists(10), [np.abs(a) for a in lists(20)], lists(30))


def optimizer(kind: str, **options: object) -> Callable[[], None]:
    """Steps whose numbers are made on the device, one of them without a finite gradient."""

    def steps(params: list, *grads: list) -> list:
        one = getattr(fastgrad, kind)(params, lr=0.1, **options)
        reports = [one.step(g) for g in grads]
        found = [[r.grad_norm, float(r.grad_norm)] for r in reports]
        # A norm may be NaN or Inf; what is measured of the others is not.
        found += [[r.health.norm, r.health.max_abs, r.health.zero * 1.0, r.health.update_ratio] for r in reports[::2]]
        return [*found, reports[1].health.update_ratio]

    def case() -> None:
        bad = lists(20)
        bad[1][9] = INF
        agree("step", steps, lists(), lists(10), bad, lists(30), lists(40))

    return case


def lstm(reverse: bool) -> Callable[[], None]:
    def run(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, dy, dh, dc):
        weights = weight_ih, weight_hh, bias_ih, bias_hh
        y, last, saved = fastgrad.lstm(x, h, c, *weights, lengths=[4, 2, 0, 3, 1], reverse=reverse)
        return [y, *last, *fastgrad.lstm_backward(dy, dh, dc, saved)]

    return recurrent(run, 4, 2)


def gru(reset_after: bool) -> Callable[[], None]:
    def run(x, h, weight_ih, weight_hh, bias_ih, bias_hh, dy, dh):
        weights = weight_ih, weight_hh, bias_ih, bias_hh
        y, last, saved = fastgrad.gru(x, h, *weights, lengths=[4, 2, 0, 3, 1], reset_after=reset_after)
        return [y, last, *fastgrad.gru_backward(dy, dh, saved)]

    return recurrent(run, 3, 1)


NOISE = {"zoneout_h": 0.4, "input_dropout": 0.3, "recurrent_dropout": 0.3, "seed": 5, "offset": 3 << 40}


def noisy_lstm(reverse: bool = False, **options: object) -> Callable[[], None]:
    def run(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, dy, dh, dc):
        weights = weight_ih, weight_hh, bias_ih, bias_hh
        given = {**NOISE, "zoneout_c": 0.6, **options}
        y, last, saved = fastgrad.lstm(x, h, c, *weights, lengths=[4, 2, 0, 3, 1], reverse=reverse, **given)
        return [y, *last, *fastgrad.lstm_backward(dy, dh, dc, saved, state_grad_clip=0.2)]

    return recurrent(run, 4, 2)


def noisy_gru(reset_after: bool) -> Callable[[], None]:
    def run(x, h, weight_ih, weight_hh, bias_ih, bias_hh, dy, dh):
        weights = weight_ih, weight_hh, bias_ih, bias_hh
        y, last, saved = fastgrad.gru(x, h, *weights, reset_after=reset_after, lengths=[4, 2, 0, 3, 1], **NOISE)
        return [y, last, *fastgrad.gru_backward(dy, dh, saved, state_grad_clip=0.2)]

    return recurrent(run, 3, 1)


def clamped_in_one_kernel() -> None:
    """float32 and few units: the persistent kernels; short sequences last, in both directions."""
    x, h, c, dy, dh, dc = (
        normal(shape, k) for k, shape in enumerate(((4, 5, 3), *[(5, 8)] * 2, (4, 5, 8), *[(5, 8)] * 2))
    )
    for gates, forward, backward, states, ends in (
        (4, fastgrad.lstm, fastgrad.lstm_backward, [h, c], [dh, dc]),
        (3, fastgrad.gru, fastgrad.gru_backward, [h], [dh]),
    ):  # fmt: skip
        weights = normal((gates * 8, 3), 10), normal((gates * 8, 8), 11)
        for reverse in (False, True):

            def run(x, weights, states, dy, ends, forward=forward, backward=backward, reverse=reverse):
                _, _, saved = forward(x, *states, *weights, lengths=[4, 2, 0, 3, 1], reverse=reverse)
                return list(backward(dy, *ends, saved, state_grad_clip=0.2)[:-2])

            agree("recurrent", run, x, list(weights), states, dy, ends)


def normalised_lstm(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, dy, dh, dc):
    H = h.shape[1]
    gains = bias_hh, bias_ih, bias_hh[:H].copy()
    weights = weight_ih, weight_hh, *gains, bias_ih, bias_hh, bias_ih[:H].copy()
    y, last, saved = fastgrad.layer_norm_lstm(x, h, c, *weights, lengths=[4, 2, 0, 3, 1])
    return [y, *last, *fastgrad.layer_norm_lstm_backward(dy, dh, dc, saved)]


def recurrent(run: Callable, gates: int, states: int) -> Callable[[], None]:
    """Ragged sequences, with NaN where they have ended. float64 goes step by step."""

    def case() -> None:
        T, B, I = 4, 5, 3  # noqa: E741 - the letters of the field
        for H in (6, 7):
            shapes = [(T, B, I), *[(B, H)] * states, (gates * H, I), (gates * H, H), (gates * H,), (gates * H,)]
            shapes += [(T, B, H), *[(B, H)] * states]
            arrays = [normal(shape, seed, F64) for seed, shape in enumerate(shapes)]
            padding = np.arange(T)[:, None] >= np.array([4, 2, 0, 3, 1])
            for padded in (arrays[0], arrays[-1 - states]):
                padded[padding] = NAN
            agree("recurrent", run, *arrays)

    return case


CASES: dict[str, Callable[[], None]] = {
    "relu": activation("relu"),
    "silu": activation("silu"),
    "tanh": activation("tanh"),
    "gelu": activation("gelu"),
    "bias_grad": bias_grad,
    "batch norm": batch_norm,
    "dropouts": dropouts,
    "linear": bias_of_linear,
    "glu": glu,
    "prelu": prelu,
    "mse": mse,
    "mse of many": mse_of_many,
    "cross-entropy": cross_entropy,
    "embedding": table,
    "embedding out of range": table_without_a_row,
    "norms": norms,
    "order of a norm": order_of_a_norm,
    "clip": clip,
    "health": health,
    "adam": adam,
    "amsgrad": amsgrad,
    "sgd": sgd,
    "rmsprop": rmsprop,
    "Adam": optimizer("Adam", max_norm=0.5),
    "AdamW": optimizer("AdamW"),
    "range": optimizer("AdamW", weight_range=(-0.5, 0.3), nonfinite="propagate"),
    "SGD": optimizer("SGD", momentum=0.9, dampening=0.5),
    "attention": attention,
    "attention with NaN": attention_with_nan,
    "LSTM": lstm(False),
    "LSTM reverse": lstm(True),
    "GRU": gru(True),
    "GRU reset before": gru(False),
    "LSTM noise": noisy_lstm(),
    "LSTM noise reverse": noisy_lstm(True),
    "LSTM in evaluation": noisy_lstm(training=False),
    "GRU noise": noisy_gru(True),
    "GRU noise reset before": noisy_gru(False),
    "clamp in one kernel": clamped_in_one_kernel,
    "LSTM layer norm": recurrent(normalised_lstm, 4, 2),
}


# --- the mutants


class Mutant(NamedTuple):
    file: str
    what: str
    case: str
    text: str
    other: str


MUTANTS = [
    Mutant(*fields)
    for fields in (
        ("common.cuh", "alignment of the first array only", "relu",
         "return aligned16(p) && aligned16(others...);", "return aligned16(p);"),
        ("common.cuh", "sums of warps read before they are there", "mse",
         "parts[warp] = value;\n    __syncthreads();", "parts[warp] = value;"),
        ("common.cuh", "sums of warps that do not exist", "mse", "lane < warps ? parts[lane] : T(0)", "parts[lane]"),
        ("common.cuh", "NaN lost in the maximum", "relu", "return a < b ? b : a;", "return a >= b ? a : b;"),
        ("columns.cuh", "sums of columns read before they are there", "bias_grad",
         "own[k];\n    __syncthreads();", "own[k];"),
        ("columns.cuh", "partial sums of the wrong row", "bias_grad", "sums[row * width", "sums[row * W"),
        ("columns.cuh", "columns past the end", "bias_grad",
         "threadIdx.y == 0 && column < columns", "threadIdx.y == 0"),
        ("column_sums.cu", "halves added before they are there", "bias_grad",
         "        __syncthreads();\n        if (int(threadIdx.y) < half)", "        if (int(threadIdx.y) < half)"),
        ("column_sums.cu", "rows past the end", "linear", "if (row < rows) value[u]", "value[u]"),
        ("vecmath.cuh", "exp - 1 without its lower end", "tanh",
         "reduce<0>(maximum(x, real_t(sizeof(real_t) == 4 ? -20 : -40)), 0, false)", "reduce<0>(x, 0, false)"),
        ("vecmath.cuh", "the low part of ln 2 left out", "silu", ": fma_(n, real_t(-LN2_LOW), r),", ": r,"),
        ("vecmath.cuh", "a wrong factor in tanh'", "tanh", "abs_(x) * real_t(-2), 4.0)", "abs_(x) * real_t(-2), 2.0)"),
        ("vecmath.cuh", "the rounding error of a square left out", "gelu",
         "decay(square, fma_(t, half, -square))", "decay(square)"),
        ("activations.cuh", "relu' hides NaN", "relu", "nan_or(x, x > 0 ? 1 : 0)", "x > 0 ? 1 : 0"),
        ("activations.cuh", "relu' of 0", "relu", "nan_or(x, x > 0 ? 1 : 0)", "nan_or(x, x >= 0 ? 1 : 0)"),
        ("activations.cuh", "a term of silu' left out", "silu", "fma_(x, q, q + real_t(1))", "fma_(x, q, real_t(1))"),
        ("activation.cu", "the last element left out", "relu",
         "i < end; i += blockDim.x) y[i]", "i < end - 1; i += blockDim.x) y[i]"),
        ("activation.cu", "a block that is not full taken as one", "relu",
         "first + span <= n && aligned16(x, y)", "first < n && aligned16(x, y)"),
        ("activation.cu", "alignment of dx forgotten", "relu", "aligned16(dy, x, dx)", "aligned16(dy, x)"),
        ("activation_rows.cuh", "rows not added up", "bias_grad", "own[k] += value;", "own[k] = value;"),
        ("batch_norm.cu", "the mean of the first number alone", "batch norm", "x[channel * inner])", "x[channel])"),
        ("batch_norm.cu", "a half of the partial sums left out", "batch norm",
         "sums[1][place] += sums[1][other];", ""),
        ("batch_norm.cu", "a biased running variance", "batch norm", "variance * (n / (n - 1))", "variance"),
        ("batch_norm.cu", "the way through the statistics in evaluation", "batch norm",
         "training ? storage_t(factor * sums.u * share - along * low) : storage_t(0)",
         "storage_t(factor * sums.u * share - along * low)"),
        ("philox.cuh", "a round left out", "dropouts", "round < 10", "round < 9"),
        ("philox.cuh", "the high half of the offset left out", "dropouts", "unsigned(offset >> 32)}", "0u}"),
        ("philox.cuh", "a group that is not full taken as one", "dropouts",
         "start + 3 * QUARTER + VECTOR <= n", "start + VECTOR <= n"),
        ("philox.cuh", "a word of another entry", "dropouts", "k, words[k].at[w]));", "k, words[k].at[3 - w]));"),
        ("activation_dropout.cu", "the mask left out of the gradient of rows", "dropouts",
         "drop(gradient, random.of_entry(entry)) * derivative", "gradient * drop.scale * derivative"),
        ("activation_dropout.cu", "the mask on the wrong side of f'", "dropouts",
         "drop(gradient, word) * derivative(input, p0, p1)", "gradient * drop(derivative(input, p0, p1), word)"),
        ("glu.cu", "alignment of dup forgotten", "glu",
         "aligned16(dy, gate, up, dgate, dup)", "aligned16(dy, gate, up, dgate)"),
        ("glu.cu", "f' in the place of f", "glu", "dy * f(gate)", "dy * derivative(gate)"),
        ("prelu.cu", "all threads take the rest of a row", "prelu",
         "first_thread ? end / W * W : end", "end / W * W"),
        ("prelu.cu", "pieces of a row in one place", "prelu", "pieces + piece.number)", "pieces)"),
        ("prelu.cu", "NaN gets a derivative", "prelu",
         "is_nan(x) ? x : x > 0 ? real_t(1) : w", "x > 0 ? real_t(1) : w"),
        ("mean_loss.cuh", "blocks in one place", "mse", "partial[blockIdx.x] = total", "partial[0] = total"),
        ("loss.cu", "every second term left out", "mse of many",
         "i += blockDim.x) total", "i += 2 * blockDim.x) total"),
        ("cross_entropy.cu", "pairs past the end of a row", "cross-entropy",
         "if (pairs && at + PAIR <= classes) {\n            values", "if (pairs) {\n            values"),
        ("cross_entropy.cu", "combined before all parts are there", "cross-entropy",
         "value;\n    __syncthreads();\n    value = lane", "value;\n    value = lane"),
        ("cross_entropy.cu", "the first element of a row left out", "cross-entropy",
         "int(threadIdx.x) >= skew)", "int(threadIdx.x) > skew)"),
        ("cross_entropy.cu", "a sum not scaled to a new maximum", "cross-entropy",
         "sum *= exp_negative(top - next);\n", "\n"),
        ("cross_entropy.cu", "no shift by the common maximum", "cross-entropy",
         "own.sum *= exp_negative(own.top - top);", ""),
        ("embedding.cu", "a missing barrier in the sort", "embedding",
         "            __syncthreads();\n            for (int pair", "            for (int pair"),
        ("embedding.cu", "merged with the wrong run", "embedding", "(own ^ 1) * run", "(own + 1) * run"),
        ("embedding.cu", "rows past the first few", "embedding", "more = mine[AHEAD - 1];", "more = false;"),
        ("embedding.cu", "a row for an index out of range", "embedding out of range",
         "if (valid && first + u * step < E) values", "if (first + u * step < E) values"),
        ("embedding.cu", "a gradient for indices out of range", "embedding out of range",
         "index == NOWHERE || (head", "(head"),
        ("attention.cu", "keys overwritten while they are read", "attention",
         "dots(queries + warp * ROWS * stride, tile, D, scores);\n        __syncthreads();",
         "dots(queries + warp * ROWS * stride, tile, D, scores);"),
        ("attention.cu", "weights read before they are there", "attention",
         "weights[r * WARP + lane] = slope;\n        }\n        __syncwarp();",
         "weights[r * WARP + lane] = slope;\n        }"),
        ("attention.cu", "sums not rescaled", "attention", "sums[r][c] *= rescale;", "sums[r][c] *= 1;"),
        ("attention.cu", "a total not rescaled", "attention", "sum[r] * rescale + warp_sum", "sum[r] + warp_sum"),
        ("attention.cu", "the last features of a head", "attention", "if (d + k < D) row[d + k]",
         "if (d + k < D - 1) row[d + k]"),
        ("attention.cu", "features of the next row", "attention", "k < here ? real_t(at[k])",
         "here > 0 ? real_t(at[k])"),
        ("attention.cu", "whole vectors past the end of a row", "attention", "wide && here >= VECTOR",
         "wide && here > 0"),
        ("attention.cu", "rows past the end of a copy", "attention", "first + row < end ? D - d : 0", "D - d"),
        ("attention.cu", "vectors that begin beside 16 bytes", "attention", "aligned16(from) && step % VECTOR == 0",
         "step % VECTOR == 0"),
        ("attention.cu", "rows that begin beside 16 bytes", "attention", "aligned16(from) && step % VECTOR == 0",
         "aligned16(from)"),
        ("attention.cu", "results stored past a row", "attention", "wide && d + NEXT <= D", "wide && d < D"),
        ("attention.cu", "results stored beside 16 bytes", "attention", "wide = aligned16(row)", "wide = true"),
        ("attention.cu", "the diagonal not seen", "attention",
         "causal ? near(row + 1 - first) : FAR, near(keys - first)};\n#pragma",
         "causal ? near(row - first) : FAR, near(keys - first)};\n#pragma"),
        ("attention.cu", "keys that see a query before", "attention", "causal ? near(key - first) : -FAR",
         "causal ? near(key - 1 - first) : -FAR"),
        ("attention.cu", "0 times NaN", "attention with NaN", "if (!all && !span.has(r, first + j)) continue;", ""),
        ("attention.cu", "-inf less -inf", "attention with NaN",
         "top[r] > -infinity() ? top[r] : real_t(0);", "top[r];"),
        ("attention.cu", "padding has a gradient", "attention", "const bool padding = key + r >= keys;",
         "const bool padding = false;"),
        ("attention.cu", "dropout forgotten backward", "attention", "weight *= kept;", ""),
        ("attention.cu", "numbers of another row", "attention", "(head * T + row) * groups, key + r",
         "(head * T + row + 1) * groups, key + r"),
        ("attention.cu", "the scale forgotten", "attention", "return sums[r][c] * scale;", "return sums[r][c];"),
        ("attention.cu", "along not taken off", "attention", "slopes[r] * kept - mean)", "slopes[r] * kept)"),
        ("philox.cuh", "words changed", "attention", "return {{c[0], c[1], c[2], c[3]}};",
         "return {{c[0], c[1], c[3], c[2]}};"),
        ("lists.cuh", "chunks counted from the first tensor", "clip", "(chunk - table.first_chunk(tensor))", "chunk"),
        ("lists.cuh", "alignment of the last stream only", "sgd",
         "aligned = aligned && aligned16", "aligned = aligned16"),
        ("lists.cuh", "the first element of a tail left out", "clip",
         "int i = whole * VECTOR + threadIdx.x;", "int i = whole * VECTOR + threadIdx.x + 1;"),
        ("lists.cuh", "parts overwritten while they are read", "health",
         "    __syncthreads();  // the parts of an earlier call have been read\n", ""),
        ("lists.cuh", "an order that depends on the alignment", "order of a norm",
         "(threadIdx.x + step - whole % step) % step", "threadIdx.x"),
        ("norms.cuh", "totals not released", "norms", "        __threadfence();\n        is_last", "        is_last"),
        ("norms.cuh", "totals not acquired", "norms", "return false;\n    __threadfence();", "return false;"),
        ("norms.cuh", "NaN lost in the largest", "norms",
         "return b > a || is_nan(b) ? b : a;", "return b > a ? b : a;"),
        ("norms.cuh", "the usual entries beside large ones", "norms",
         "sqrt(fma_(at[0] * LARGE_FACTOR, LARGE_FACTOR, at[1]))", "sqrt(at[1])"),
        ("norms.cuh", "the coefficient without its 1e-6", "clip", "= limit / (norm + 1e-6);", "= limit / norm;"),
        ("norms.cuh", "no limit taken for a limit", "AdamW", "limit < 0 || coefficient >= 1", "coefficient >= 1"),
        ("norms.cuh", "half of a vector not added up", "norms", "int apart = N / 2;", "int apart = N / 4;"),
        ("norm.cu", "scaled twice", "adam", "limit) * unscale;", "limit) * unscale * unscale;"),
        ("health.cu", "NaN left in the largest", "health", "        largest = 0;\n", ""),
        ("health.cuh", "a wrong unit of subnormal numbers", "health",
         "double(bits) * 0x1p-149", "double(bits) * 0x1p-148"),
        ("health.cuh", "the counts of one thread alone", "health",
         "sum(index_t a, index_t b) { return a + b; }", "sum(index_t a, index_t b) { return a; }"),
        ("step.cuh", "no norm among the findings", "Adam",
         "findings.found[blockIdx.x] = sums.norms[blockIdx.x];", "findings.found[blockIdx.x] = 0;"),
        ("step.cuh", "changes against the weights behind the step", "Adam", "start = from;", "start = to;"),
        ("step.cuh", "changes of a skipped step left open", "SGD",
         "    if (changes && threadIdx.x < 2) changes[index_t(blockIdx.x) * 2 + threadIdx.x] = 0;\n", ""),
        ("sgd.cu", "no change measured", "SGD", "if (changes) change.take(p, x[PARAM]);", ""),
        ("clip.cu", "the first tensor's coefficient for all", "clip", "coefficients[each ? chunk.tensor : 0]",
         "coefficients[0]"),
        ("clip.cu", "NaN clamped", "clip", "maximum(x[0], low)", "maximum(low, x[0])"),
        ("step.cuh", "a weight that is NaN brought into its range", "range", "maximum(weight, real_t(low))",
         "maximum(real_t(low), weight)"),
        ("step.cuh", "the range of the first group", "range", "own[NUMBERS + 1] = group[1];",
         "own[NUMBERS + 1] = group[0];"),
        ("adam.cu", "weights left outside of their range", "range", "n.within(p - rate", "(p - rate"),
        ("step.cuh", "the coefficient twice", "Adam",
         "control[0] * result.at[0]", "control[0] * (control[0] * result.at[0])"),
        ("step.cuh", "the decision read before it is made", "Adam",
         "    __syncthreads();\n    if (!goes_on) return;", "    if (!goes_on) return;"),
        ("step.cuh", "a skipped step counted", "Adam", "    if (!goes_on) return;\n", ""),
        ("adam.cu", "NaN lost in AMSGrad's maximum", "amsgrad", "used > x[MOST] || is_nan(used)", "used > x[MOST]"),
        ("sgd.cu", "dampening in the first step", "SGD", "step == 1 ? 1 : 1 - of[4]", "1 - of[4]"),
        ("rmsprop.cu", "a variance below 0", "rmsprop",
         "maximum(fma_(-mean, mean, variance), real_t(0))", "fma_(-mean, mean, variance)"),
        ("lstm_gates.cuh", "c's gradient past the forget gate", "LSTM", "dc = all * f;", "dc = all;"),
        ("lstm.cu", "gradients of padding not written", "LSTM",
         "for (int k = 0; k < 4; ++k) write<W>(dgates + at + k * hidden, Reals<W>{});", "for (;false;);"),
        ("lstm.cu", "the gradient of h added twice", "LSTM", "if (lengths) write<W>(dh + cell.at, Reals<W>{});", ""),
        ("recurrent.cuh", "the state before, in reverse", "LSTM reverse",
         "before = (t + (reverse ? 1 : 0))", "before = t"),
        ("recurrent.cuh", "a step too many", "GRU", "t < lengths[b]", "t <= lengths[b]"),
        ("recurrent.cuh", "a cell too many", "GRU", "any = index < batch * across", "any = index <= batch * across"),
        ("recurrent.cu", "a step of padding left", "LSTM",
         "t < lengths[row - t * batch]", "t <= lengths[row - t * batch]"),
        ("gru.cu", "the reset gate past its product", "GRU", "k < 2 ? values[k] : dinner", "values[k]"),
        ("gru_reset_before.cu", "the gradient of h not added to", "GRU reset before",
         "fma_(d.at[w], r.at[w], dh_now.at[w])", "d.at[w] * r.at[w]"),
        ("gru_reset_before.cu", "padding left in the product", "GRU reset before",
         "return write<W>(kept, Reals<W>{});", "return;"),
        ("philox.cuh", "one word for all of a group", "LSTM noise", "int(entry % 64 / 16)", "0"),
        ("between_steps.cu", "a mask of the first sequence for all", "LSTM noise", "mask[cell.at]", "mask[cell.unit]"),
        ("between_steps.cu", "a mask per step", "LSTM noise",
         "out[t * n + i] = storage_t(masked(a[t * n + i], factor))",
         "out[t * n + i] = storage_t(masked(a[t * n + i], t % 2 ? factor : real_t(1)))"),
        ("between_steps.cu", "zoneout the same at every step", "LSTM noise",
         "const index_t entry = cell.row * hidden + cell.unit;\n    const real_t value",
         "const index_t entry = cell.at;\n    const real_t value"),
        ("between_steps.cu", "the state before, in reverse", "LSTM noise reverse",
         "Cell<1> cell(t, batch, hidden, reverse, lengths)", "Cell<1> cell(t, batch, hidden, 0, lengths)"),
        ("between_steps.cu", "y not zoned out", "GRU noise", "    if (lengths) y[entry] = storage_t(value);\n", ""),
        ("between_steps.cu", "c zoned out as h", "LSTM noise",
         "if (c) mixed(c, cell, zone_of({seed, offset_c,", "if (c) mixed(c, cell, zone_of({seed, offset_h,"),
        ("between_steps.cu", "the other way round in evaluation", "LSTM in evaluation",
         "fma_(z, before, (real_t(1) - z) * now)", "fma_(z, now, (real_t(1) - z) * before)"),
        ("between_steps.cu", "dy lost with zoneout", "LSTM noise",
         "dy ? real_t(dy[entry]) : real_t(0)", "real_t(0)"),
        ("between_steps.cu", "the gradient past the step lost", "GRU noise",
         "if (kept_h) value +=", "if (false) value +="),
        ("between_steps.cu", "c's gradient past the step lost", "LSTM noise", "if (kept_c) other", "if (false) other"),
        ("between_steps.cu", "dh overwritten where it is to be kept", "GRU noise", "products && overwrite", "products"),
        ("between_steps.cu", "c's gradient not clamped", "LSTM noise",
         "dc[cell.at] = storage_t(clamped(other, bound));", "dc[cell.at] = storage_t(other);"),
        ("between_steps.cu", "padding clamped", "LSTM noise",
         "if (!cell.valid) return;\n    real_t value", "if (!cell.any) return;\n    real_t value"),
        ("lstm_persistent.cu", "padding clamped", "clamp in one kernel",
         "(reverse ? t - 1 : t + 1) < lengths[place.first + b]", "true"),
        ("lstm_persistent.cu", "c's gradient not clamped", "clamp in one kernel",
         "dc_own[i] = clamped(dc_own[i], bound);", ""),
        ("lstm_persistent.cu", "dh0 not clamped", "clamp in one kernel", "total = clamped(total, bound);", "continue;"),
        ("gru_persistent.cu", "padding clamped", "clamp in one kernel",
         "(reverse ? t - 1 : t + 1) < lengths[place.first + b]", "true"),
        ("rows.cuh", "sums of warps read before they are there", "LSTM layer norm",
         "    __syncthreads();\n    Two total", "    Two total"),
        ("layer_norm_lstm.cu", "statistics of padding not written", "LSTM layer norm",
         "if (threadIdx.x < 4) stats[threadIdx.x * kind + own.row] = 0;", ""),
        ("layer_norm_lstm.cu", "rstd of W_hh h in the place of c's", "LSTM layer norm",
         "Normalised xhat_c(stats[2 * kind + own.row], stats[3 * kind + own.row])",
         "Normalised xhat_c(stats[2 * kind + own.row], stats[kind + own.row])"),
        ("layer_norm_lstm.cu", "no gradient through the variance of c", "LSTM layer norm",
         "fma_(xhat_c.of(real_t(cell[k])), -along_c, d - mean_c)", "(d - mean_c)"),
        ("layer_norm_lstm.cu", "no gradient through the mean of W_hh h", "LSTM layer norm",
         "-along_h, gradient - mean_h)", "-along_h, gradient)"),
        ("layer_norm_lstm.cu", "the gradient of h added twice", "LSTM layer norm", "if (lengths) dh_own[k] = 0;", ""),
        ("layer_norm_lstm.cu", "the output gate left out of the sums", "LSTM layer norm",
         "for (int n = 0; n < 4; ++n) {\n            const index_t at = n * hidden + k;\n            if (n < 3)",
         "for (int n = 0; n < 3; ++n) {\n            const index_t at = n * hidden + k;\n            if (n < 3)"),
    )
]  # fmt: skip


@contextlib.contextmanager
def sources(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, str], str]) -> Iterator[None]:
    """Let kernels be made from changed sources, then again from those in the files."""
    read = cuda._file
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "_file", lambda name: change(name, read(name)))
        for kernel in cuda.declared:
            patch.setattr(kernel, "_functions", {})
        patch.setattr(emulated.DEVICE, "_modules", {})
        patch.setattr(emulated.DEVICE, "shared_memory", 16 << 10)  # so that rows of 7001 do not fit
        cuda.variant_text.cache_clear()
        try:
            yield
        finally:
            cuda.variant_text.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_the_case_passes(monkeypatch, case):
    with sources(monkeypatch, lambda name, text: text):
        CASES[case]()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.what}")
def test_a_mutant_is_caught(monkeypatch, mutant):
    from devtools.cuda_on_cpu import LaunchError

    assert cuda._file(mutant.file).count(mutant.text) == 1, "the text to be replaced must be there once"

    def change(name: str, text: str) -> str:
        return text.replace(mutant.text, mutant.other) if name == mutant.file else text

    with sources(monkeypatch, change), pytest.raises((LaunchError, AssertionError)):
        CASES[mutant.case]()
