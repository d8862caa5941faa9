"""lstm, lstm_cell, reorder_gates, with their gradients."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import lstm_ref, recurrent_cpu
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import lstm, lstm_backward, lstm_cell, lstm_cell_backward, reorder_gates
from fastgrad.testing import gradcheck

# (T, B, I, H)
SIZES = [
    (0, 2, 3, 4),
    (4, 0, 3, 5),
    (3, 2, 0, 4),
    (1, 1, 1, 1),
    (5, 3, 4, 7),
    (7, 1, 3, 13),
    (2, 17, 5, 1),
    (3, 5, 33, 65),
    (2, 70, 3, 129),
    (1, 16, 0, 31),
    (1, 20, 33, 64),
    (1, 70, 400, 65),
]
NAMES = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
GRADIENTS = ("dx", "dh0", "dc0", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")


def draw(sizes, dtype=np.float64, seed=0):
    """Return the arguments of lstm and gradients (dy, dhn, dcn), all of them random."""
    T, B, I, H = sizes  # noqa: E741
    shapes = [(T, B, I), (B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,)]
    scales = [1, 1, 1, 1 / max(I, 1) ** 0.5, 1 / max(H, 1) ** 0.5, 0.5, 0.5]
    arguments = [random(seed + k, s, dtype, scale=c) for k, (s, c) in enumerate(zip(shapes, scales, strict=True))]
    return arguments, [random(seed + 50 + k, s, dtype) for k, s in enumerate([(T, B, H), (B, H), (B, H)])]


def some_lengths(T, B):
    return np.random.default_rng(T + 10 * B).integers(0, T + 1, B)


def run(arguments, gradients, **options):
    """Return all results of forward and backward by name."""
    y, (hn, cn), saved = lstm(*arguments, **options)
    results = lstm_backward(*gradients, saved)
    return {"y": y, "hn": hn, "cn": cn, **results._asdict()}


def assert_results(actual, expected, operation="recurrent"):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted is None:
            assert actual[name] is None, name
        else:
            assert_close(actual[name], wanted, operation, magnitude="largest", label=name)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64(backend, dtype, sizes, ragged, reverse):
    arguments, gradients = draw(sizes, dtype)
    options = {"reverse": reverse, "lengths": some_lengths(*sizes[:2]) if ragged else None}
    actual = run(arguments, gradients, **options)
    assert all(a.dtype == dtype for a in actual.values())
    wide = [a.astype(np.float64) for a in arguments], [g.astype(np.float64) for g in gradients]
    assert_results(actual, oracle(run, *wide, **options))


def torch_layer(torch, arguments, reverse=False):
    weight_ih, weight_hh = arguments[3:5]
    layer = torch.nn.LSTM(weight_ih.shape[1], weight_hh.shape[1], dtype=torch.float64, bidirectional=reverse)
    suffix = "_l0_reverse" if reverse else "_l0"
    with torch.no_grad():
        for name, value in zip(NAMES[3:], arguments[3:], strict=True):
            getattr(layer, name + suffix).copy_(torch.tensor(value))
    return layer, [getattr(layer, name + suffix) for name in NAMES[3:]]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("sizes", [s for s in SIZES if all(s)], ids=str)
def test_against_torch(backend, sizes, ragged, reverse):
    torch = pytest.importorskip("torch")
    T, B, _, H = sizes
    arguments, gradients = draw(sizes)
    lengths = np.maximum(some_lengths(T, B), 1) if ragged else None
    layer, parameters = torch_layer(torch, arguments, reverse)
    x, h0, c0 = (torch.tensor(a, requires_grad=True) for a in arguments[:3])
    # torch runs reverse only beside forward; the forward half gets zero gradients.
    state = [torch.stack([torch.zeros_like(s), s]) if reverse else s[None] for s in (h0, c0)]
    sequence = x
    if ragged:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, (hn, cn) = layer(sequence, tuple(state))
    if ragged:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    y, hn, cn = y[..., -H:], hn[-1], cn[-1]
    sum((o * torch.tensor(g)).sum() for o, g in zip((y, hn, cn), gradients, strict=True)).backward()
    expected = dict(zip(("y", "hn", "cn"), (y, hn, cn), strict=True))
    expected |= dict(zip(GRADIENTS, (v.grad for v in (x, h0, c0, *parameters)), strict=True))
    expected = {name: value.detach().numpy() for name, value in expected.items()}
    assert_results(run(arguments, gradients, lengths=lengths, reverse=reverse), expected, "torch")


@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"lengths": [3, 0, 1]}, {"lengths": [2, 3, 0], "reverse": True}]
)
def test_central_differences(backend, options):
    arguments, _ = draw((3, 3, 2, 3))
    gradcheck(
        lambda *inputs: lstm(*inputs, **options)[:2], arguments,
        lambda dy, *inputs: lstm_backward(dy[0], *dy[1], lstm(*inputs, **options)[2]),
    )  # fmt: skip


def test_optional_arguments(backend, dtype):
    (x, _, _, weight_ih, weight_hh, bias_ih, bias_hh), (dy, dhn, dcn) = draw((5, 3, 4, 7), dtype)
    zeros, no_bias = np.zeros((3, 7), dtype), np.zeros(28, dtype)
    full = run([x, zeros, zeros, weight_ih, weight_hh, no_bias, bias_hh], [dy, dhn, dcn])
    left_out = run([x, None, None, weight_ih, weight_hh, None, bias_hh], [dy, dhn, dcn])
    assert left_out.pop("dbias_ih") is None
    full.pop("dbias_ih")
    assert_results(left_out, full)
    swapped = run([x, None, None, weight_ih, weight_hh, bias_hh], [dy, dhn, dcn])
    assert swapped["dbias_hh"] is None
    assert_close(swapped["dbias_ih"], full["dbias_hh"], "recurrent", magnitude="largest")
    neither = run([x, None, None, weight_ih, weight_hh], [dy, dhn, dcn])
    assert neither["dbias_ih"] is None and neither["dbias_hh"] is None
    both = run([x, None, None, weight_ih, weight_hh, bias_ih, bias_hh], [dy, dhn, dcn])
    assert_close(both["dbias_ih"], both["dbias_hh"], "exact")
    assert not np.shares_memory(both["dbias_ih"], both["dbias_hh"])
    # A gradient that is None stands for zeros.
    arguments = [x, None, None, weight_ih, weight_hh, bias_ih, bias_hh]
    for given in ([dy, None, None], [None, dhn, None], [None, None, dcn]):
        filled = [np.zeros_like(z) if g is None else g for g, z in zip(given, (dy, dhn, dcn), strict=True)]
        assert_results(run(arguments, given), run(arguments, filled))


def test_padding(backend, dtype):
    T, B = 6, 4
    arguments, gradients = draw((T, B, 3, 5), dtype)
    lengths = np.array([6, 0, 2, 5])
    padding = np.arange(T)[:, None] >= lengths
    for reverse in (False, True):
        clean = run(arguments, gradients, lengths=lengths, reverse=reverse)
        assert not clean["y"][padding].any() and not clean["dx"][padding].any()
        np.testing.assert_array_equal(clean["hn"][1], arguments[1][1])
        np.testing.assert_array_equal(clean["cn"][1], arguments[2][1])
        np.testing.assert_array_equal(clean["dh0"][1], gradients[1][1])
        # What the padding of x and of dy holds must not matter.
        for bad in (np.nan, np.inf, 1e30):
            x, dy = arguments[0].copy(), gradients[0].copy()
            x[padding] = dy[padding] = bad
            dirty = run([x, *arguments[1:]], [dy, *gradients[1:]], lengths=lengths, reverse=reverse)
            for name, value in clean.items():
                np.testing.assert_array_equal(dirty[name], value, err_msg=name)
    full = run(arguments, gradients)
    assert_results(run(arguments, gradients, lengths=np.full(B, T, np.int32)), full)
    assert_results(run(arguments, gradients, lengths=[T] * B), full)


def test_cell_is_a_sequence_of_one_step(backend, dtype):
    arguments, (_, dh, dc) = draw((1, 5, 4, 7), dtype)
    _, (hn, cn), saved = lstm(*arguments)
    expected = lstm_backward(None, dh, dc, saved)
    h_next, c_next, saved = lstm_cell(arguments[0][0], *arguments[1:])
    np.testing.assert_array_equal(h_next, hn)
    np.testing.assert_array_equal(c_next, cn)
    actual = lstm_cell_backward(dh, dc, saved)
    assert actual._fields == ("dx", "dh", "dc", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")
    np.testing.assert_array_equal(actual.dx, expected.dx[0])
    for a, e in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(a, e)
    _, _, saved = lstm_cell(arguments[0][0], *arguments[1:])
    without = lstm_cell_backward(dh, None, saved)
    _, _, saved = lstm_cell(arguments[0][0], *arguments[1:])
    zero = lstm_cell_backward(dh, np.zeros_like(dc), saved)
    assert_close(without.dc, zero.dc, "recurrent", magnitude="largest")


def test_cells_in_a_loop_are_the_sequence(backend, dtype):
    (x, h, c, *weights), _ = draw((6, 3, 4, 7), dtype)
    y, (_, cn), _ = lstm(x, h, c, *weights)
    for t in range(6):
        h, c, _ = lstm_cell(x[t], h, c, *weights)
        assert_close(h, y[t], "recurrent", magnitude="largest")
    assert_close(c, cn, "recurrent", magnitude="largest")


def test_states_may_be_used_again_before_backward(backend, dtype):
    (x, h, c, *weights), (_, dh, dc) = draw((1, 5, 4, 7), dtype)
    expected = lstm_cell_backward(dh, dc, lstm_cell(x[0], h.copy(), c.copy(), *weights)[2])
    _, c_next, saved = lstm_cell(x[0], h, c, *weights)
    for array in (h, c, c_next):
        array[...] = np.nan
    for actual, wanted in zip(lstm_cell_backward(dh, dc, saved), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    y, (hn, _), _ = lstm(x, None, None, *weights)
    assert not np.shares_memory(y, hn)


def test_nothing_that_was_passed_is_changed(backend, dtype):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    frozen = [read_only(a) for a in arguments], [read_only(g) for g in gradients]
    assert_results(run(*frozen), run(arguments, gradients))


def test_layouts(backend, dtype):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    expected = run(arguments, gradients)
    for layout in ("fortran", "offset", "strided", "reversed", "misaligned"):
        views = [layouts(a)[layout] for a in arguments], [layouts(g)[layout] for g in gradients]
        assert_results(run(*views), expected)
    batch_first = np.ascontiguousarray(arguments[0].swapaxes(0, 1)).swapaxes(0, 1)
    assert_results(run([batch_first, *arguments[1:]], gradients), expected)


def test_nan_stays_in_its_sequence(backend, dtype):
    arguments, _ = draw((4, 3, 2, 5), dtype)
    clean, _, _ = lstm(*arguments)
    arguments[0][1, 2, 0] = np.nan
    y, (hn, cn), saved = lstm(*arguments)
    assert np.isnan(y[1:, 2]).all() and np.isnan(hn[2]).all() and np.isnan(cn[2]).all()
    np.testing.assert_array_equal(y[0], clean[0])
    np.testing.assert_array_equal(y[:, :2], clean[:, :2])
    gradients = lstm_backward(np.ones_like(y), None, None, saved)
    assert np.isnan(gradients.dweight_ih).any() and np.isnan(gradients.dx[:, 2]).any()
    assert np.isfinite(gradients.dx[:, :2]).all()


def test_saturated_gates(backend, dtype):
    arguments, gradients = draw((3, 2, 4, 5), dtype)
    arguments[0] *= dtype(1e4)
    results = run(arguments, gradients)
    assert all(np.isfinite(value).all() for value in results.values())
    wide = [a.astype(np.float64) for a in arguments], [g.astype(np.float64) for g in gradients]
    expected = oracle(run, *wide)
    for name in ("y", "hn", "cn"):
        assert_close(results[name], expected[name], "recurrent", magnitude="largest", label=name)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, steps):
    arguments, gradients = draw((steps, 33, 17, 65), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(b"".join(a.tobytes() for a in run(arguments, gradients).values()))
    assert len(seen) == 1


def test_the_same_bits_in_every_run(backend, dtype):
    arguments, gradients = draw((4, 33, 17, 65), dtype)
    assert len({b"".join(a.tobytes() for a in run(arguments, gradients).values()) for _ in range(3)}) == 1


def test_errors():
    arguments, (dy, dhn, dcn) = draw((4, 3, 2, 5), np.float32)
    x, h0, c0, weight_ih, weight_hh, _, bias_hh = arguments

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    def changed(**changes):
        return [changes.get(name, value) for name, value in zip(NAMES, arguments, strict=True)]

    error(ValueError, r"x: expected shape \(T, B, I\), got \(3, 2\)", lstm, *changed(x=x[0]))
    error(ValueError, r"h0: expected shape \(B, H\) with B = 3, H = 5, got \(1, 3, 5\)", lstm, *changed(h0=h0[None]))
    error(ValueError, r"c0: expected shape \(B, H\) with B = 3, H = 5, got \(3, 4\)", lstm, *changed(c0=c0[:, 1:]))
    error(ValueError, r"weight_ih: expected shape \(4H, I\) with H = 5, I = 2, got \(2, 20\)", lstm,
          *changed(weight_ih=weight_ih.T))  # fmt: skip
    error(ValueError, r"weight_hh: expected shape \(4H, H\), got \(15, 5\)", lstm, *changed(weight_hh=weight_hh[:15]))
    error(ValueError, r"bias_hh: expected shape \(4H,\) with H = 5, got \(5,\)", lstm, *changed(bias_hh=bias_hh[:5]))
    error(TypeError, "c0 is float64 but x is float32", lstm, *changed(c0=c0.astype(np.float64)))
    error(TypeError, "weight_ih: expected a numpy.ndarray or cupy.ndarray, got None", lstm, *changed(weight_ih=None))
    error(TypeError, "x: expected float32 or float64, got float16", lstm, *changed(x=x.astype(np.float16)))
    error(ValueError, r"lengths: expected shape \(3,\), got \(2,\)", lstm, *arguments, lengths=[1, 2])
    error(ValueError, r"lengths: expected entries from 0 to 4 \(the number of steps T\), got 5", lstm, *arguments,
          lengths=np.array([1, 5, 2]))  # fmt: skip
    error(ValueError, "lengths: .* got -1", lstm, *arguments, lengths=[1, -1, 2])
    error(TypeError, "lengths: expected integers, got float64", lstm, *arguments, lengths=[1.0, 2.0, 3.0])
    with fastgrad.backend("reference"):
        saved = lstm(*arguments)[2]
        cell = lstm_cell(x[0], h0, c0, *arguments[3:])[2]
    error(ValueError, r"dy: expected shape \(4, 3, 5\), got \(3, 5\)", lstm_backward, dy[0], None, None, saved)
    error(ValueError, r"dcn: expected shape \(3, 5\), got \(4, 3, 5\)", lstm_backward, None, None, dy, saved)
    error(
        TypeError, "dhn is float64 but the forward pass is float32", lstm_backward, None, dhn.astype(float), None, saved
    )
    error(TypeError, "saved: expected what fastgrad.lstm returned last, got tuple", lstm_backward, dy, dhn, dcn, ())
    error(
        TypeError,
        "saved: it came from fastgrad.lstm_cell, so call lstm_cell_backward",
        lstm_backward,
        None,
        dhn,
        dcn,
        cell,
    )
    error(ValueError, r"dh_next: expected shape \(3, 5\)", lstm_cell_backward, dy, None, cell)
    error(ValueError, r"x: expected shape \(B, I\), got \(4, 3, 2\)", lstm_cell, *arguments)


@pytest.mark.parametrize("fault", ["gate order", "forget", "dc0", "late bias"])
def test_planted_faults_are_caught(monkeypatch, fault):
    arguments, gradients = draw((3, 2, 4, 5))
    expected = oracle(run, arguments, gradients)
    forward, backward = lstm_ref.forward, lstm_ref.backward

    def wrong_forward(x, h0, c0, weight_ih, weight_hh, *rest):
        if fault == "gate order":
            weight_ih = reorder_gates(weight_ih, "lstm", source="onnx")
        if fault == "late bias":
            rest = (None, *rest[1:])
        return forward(x, h0, c0, weight_ih, weight_hh, *rest)

    def wrong_backward(dy, dhn, dcn, saved, *more):
        dx, dh0, dc0, *rest = backward(dy, dhn, None if fault == "forget" else dcn, saved, *more)
        return (dx, dh0, dc0 * (1 + 1e-9) if fault == "dc0" else dc0, *rest)

    monkeypatch.setattr(lstm_ref, "forward", wrong_forward)
    monkeypatch.setattr(lstm_ref, "backward", wrong_backward)
    with pytest.raises(AssertionError):
        assert_results(oracle(run, arguments, gradients), expected)


ORDERS = {
    "lstm": {"torch": "ifgo", "keras": "ifgo", "onnx": "iofg", "cudnn": "ifgo"},
    "gru": {"torch": "rzn", "keras": "zrn", "onnx": "zrn", "cudnn": "rzn"},
}


class TestReorderGates:
    @pytest.mark.parametrize("cell", ORDERS)
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_each_gate_goes_to_its_place(self, cell, axis):
        orders, H = ORDERS[cell], 3
        for source in orders:
            for target in orders:
                values = [np.full((H, 2) if axis == 0 else (2, H), ord(gate)) for gate in orders[source]]
                array = np.concatenate(values, axis=axis)
                moved = reorder_gates(array, cell, source=source, target=target, axis=axis)
                assert moved.dtype == array.dtype and not np.shares_memory(moved, array)
                firsts = np.moveaxis(moved, axis, 0)[::H, 0]
                assert "".join(map(chr, firsts)) == orders[target]
                back = reorder_gates(moved, cell, source=target, target=source, axis=axis)
                np.testing.assert_array_equal(back, array)

    def test_out(self):
        array, out = random(1, (12, 3)), np.zeros((12, 3))
        assert reorder_gates(array, "lstm", source="onnx", out=out) is out
        np.testing.assert_array_equal(out, reorder_gates(array, "lstm", source="onnx"))

    def test_errors(self):
        array = random(1, (12, 4))

        def error(exception, match, *args, **kwargs):
            with pytest.raises(exception, match=match):
                reorder_gates(*args, **kwargs)

        error(ValueError, "cell: expected one of lstm, gru, got 'rnn'", array, "rnn", source="onnx")
        error(
            ValueError, "source: expected one of torch, keras, onnx, cudnn, got 'mxnet'", array, "gru", source="mxnet"
        )
        error(ValueError, "target: expected one of", array, "gru", source="onnx", target="jax")
        with pytest.raises(
            ValueError, match=r"array: expected a multiple of 3 \(the gates of a gru\) along axis 1, got shape"
        ):
            reorder_gates(array, "gru", source="onnx", axis=1)
        error(ValueError, "axis: expected one of the 2 axes of array, got 2", array, "gru", source="onnx", axis=2)
        error(TypeError, "array: expected a numpy.ndarray or cupy.ndarray, got list", [1, 2, 3], "gru", source="onnx")
        error(ValueError, "out and array overlap", array, "lstm", source="onnx", out=array)
        error(TypeError, "out is float32 but array is float64", array, "lstm", source="onnx",
              out=array.astype(np.float32))  # fmt: skip
        error(
            ValueError,
            r"out: expected shape \(12, 4\), got \(12, 2\)",
            array,
            "lstm",
            source="onnx",
            out=np.zeros((12, 2)),
        )
        error(ValueError, "out: the array is read-only", array, "lstm", source="onnx", out=read_only(array))


@pytest.mark.parametrize("reverse", [False, True])
def test_small_products_have_the_bits_of_large_ones(monkeypatch, dtype, reverse):
    arguments, gradients = draw((3, 2, 4, 5), dtype)
    with fastgrad.backend("cpu"):
        small = run(arguments, gradients, reverse=reverse)
        monkeypatch.setattr(recurrent_cpu, "are_small", lambda *sizes: False)
        large = run(arguments, gradients, reverse=reverse)
    for name, value in small.items():
        np.testing.assert_array_equal(value, large[name], err_msg=name)
