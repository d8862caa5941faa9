"""Run every operation once on a GPU, on small ragged arrays, and compare with the CPU: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python -m devtools.every_op
    python -m devtools.every_op --emulated      the same without a GPU
    python -m devtools.every_op --only float32  one dtype

Each array is an allocation of its own (no pool), so that an access beyond its end is one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastgrad
from fastgrad import _gpu
from fastgrad.activations import KINDS

SHAPES = [(), (0, 3), (7,), (33, 65), (3, 1031)]


def emulated_module() -> Any:
    """Return the array module of the emulated device, which is taken for the GPU from now on."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    stand_in: Any = importlib.import_module("emulated")
    stand_in.register()
    status = _gpu.GPUStatus(stand_in.Module)
    _gpu.gpu_status = lambda: status  # type: ignore[assignment]
    return stand_in.Module


def array_module(emulated: bool) -> Any:
    if emulated:
        return emulated_module()
    cupy = _gpu.require_gpu("devtools.every_op")
    cupy.cuda.set_allocator(None)
    return cupy


def _arrays_in(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _arrays_in(part)
    elif hasattr(value, "get"):
        yield value.get()
    elif isinstance(value, np.ndarray | float):
        yield np.array(value)  # later calls may change it


def compare(found: list[list[np.ndarray]], expected: list[list[np.ndarray]], dtype: type) -> None:
    """Raise AssertionError where a result is off by more than rounding, as a share of its largest entry."""
    tolerance = 1e-4 if dtype is np.float32 else 1e-11
    assert len(found) == len(expected) > 0
    for k, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert len(mine) == len(other), f"call {k}: {len(mine)} results, the CPU has {len(other)}"
        for a, b in zip(mine, other, strict=True):
            assert a.shape == b.shape, f"call {k}: shape {a.shape}, on the CPU {b.shape}"
            assert np.array_equal(np.isnan(a), np.isnan(b)), f"call {k}: NaN at other places"
            a, b = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
            scale = np.max(np.abs(b), initial=0.0)
            worst = np.max(np.abs(a - b), initial=0.0)
            assert worst <= tolerance * scale, f"call {k}: off by {worst:g} of {scale:g}"


def every_op(xp: Any, dtype: type, fg: Any = fastgrad) -> list[list[np.ndarray]]:
    """Call each operation on arrays of a module, NumPy's or a device's; return the results of each call.

    fg : where the public functions are; untyped, as what is called with which arguments is the point here
    """
    rng = np.random.default_rng(0)
    calls: list[list[np.ndarray]] = []

    def normal(*shape: int) -> Any:
        return xp.asarray(rng.normal(size=shape).astype(dtype))

    def each(*results: object) -> None:
        calls.append(list(_arrays_in(results)))

    for kind in KINDS:
        for shape in SHAPES:
            x, dy = normal(*shape), normal(*shape)
            each(fg.activation(x, kind), fg.activation_backward(dy, x, kind))
            if shape:
                each(fg.activation_backward(dy, x, kind, bias_grad=xp.zeros(shape[-1:], dtype)))
    for shape in SHAPES[1:]:
        gate, up, dy = normal(*shape), normal(*shape), normal(*shape)
        each(fg.swiglu(gate, up), fg.swiglu_backward(dy, gate, up))
        each(fg.geglu(gate, up), fg.geglu_backward(dy, gate, up))
        each(fg.mse(gate, up), fg.binary_cross_entropy_with_logits(gate, up))
    x, dy = normal(5, 3, 7), normal(5, 3, 7)
    for weight in (normal(1), normal(3)):
        each(fg.prelu(x, weight), fg.prelu_backward(dy, x, weight))
    for shape in SHAPES:
        each(fg.dropout(normal(*shape), 0.3, 1, 2), fg.dropout_backward(normal(*shape), 0.3, 1, 2))
        x, dy = normal(*shape), normal(*shape)
        total = {"bias_grad": xp.zeros(shape[-1:], dtype)} if shape else {}
        each(fg.activation_dropout(x, "silu", 0.3, 1, 2), fg.activation_dropout_backward(dy, x, "silu", 0.3, 1, 2))
        each(fg.activation_dropout_backward(dy, x, "silu", 0.3, 1, 2, **total), *total.values())
    for rows, columns in ((1, 1), (9, 33), (70, 64), (2, 20000)):
        _, normalised = fg.layer_norm(normal(rows, columns), normal(columns), normal(columns))
        each(fg.layer_norm_backward(normal(rows, columns), normalised))
    for B, H, T, S, D in ((1, 1, 1, 1, 1), (2, 3, 33, 33, 8), (1, 2, 17, 70, 33), (1, 1, 5, 9, 130)):
        attended: list[dict[str, Any]] = [{}, {"causal": True}, {"lengths": [S // 2] * B}, {"dropout": 0.3, "seed": 1}]
        for options in attended:
            y, weighed = fg.attention(normal(B, H, T, D), normal(B, H, S, D), normal(B, H, S, D), **options)
            each(y, fg.attention_backward(normal(B, H, T, D), weighed))
    for shape in ((9, 33), (300, 64), (3, 5, 7), (2, 3, 8, 8)):
        for training in (True, False):
            channels = [normal(shape[1]) for _ in range(3)]
            _, normalised = fg.batch_norm(normal(*shape), *channels, normal(shape[1]) ** 2, training=training)
            each(fg.batch_norm_backward(normal(*shape), normalised))
    for rows, classes in ((1, 1), (9, 33), (5, 1031)):
        targets = xp.asarray(rng.integers(0, classes, rows))
        each(fg.softmax_cross_entropy(normal(rows, classes), targets))
        each(fg.softmax_cross_entropy(normal(rows, classes), targets, label_smoothing=0.1, ignore_index=0))

    shapes = [(3,), (0,), (17, 5), (1,), (40000,), (129,)]

    def tensors() -> list[Any]:
        return [normal(*shape) for shape in shapes]

    def zeros() -> list[Any]:
        return [xp.zeros(shape, dtype) for shape in shapes]

    for order in (1, 2, float("inf")):
        changed = tensors()
        each(fg.global_norm(changed, order), fg.clip_by_global_norm(changed, 0.5, ord=order), changed)
    changed = tensors()
    each(fg.clip_by_norm(changed, 0.5), fg.clip_by_value(changed, -0.5, 0.5), changed)
    changed = tensors()
    each(fg.clip_by_norm(changed, 0.5, axis=0), fg.adaptive_clip(changed, tensors()), changed)
    each(fg.health(tensors()).norm)
    variants: list[dict[str, Any]] = [{}, {"max_norm": 0.1}, {"weight_decay": 0.1, "decoupled": False}]
    for variant in [*variants, {"max_exp_avg_sq": zeros()}]:
        params, state = tensors(), [zeros(), zeros()]
        each(fg.adam_step(params, tensors(), *state, step=1, **variant), params, state)
    params, momentum = tensors(), zeros()
    each(fg.sgd_step(params, tensors(), momentum, lr=0.1, momentum=0.9, nesterov=True, max_norm=0.1), params)
    state = [zeros(), zeros(), zeros()]
    each(fg.rmsprop_step(params, tensors(), *state, momentum=0.9, centered=True), params, state)
    for optimizer in (fg.SGD, fg.RMSprop, fg.Adam, fg.AdamW):
        params = tensors()
        one = optimizer(params, lr=0.1, max_norm=1.0)
        each(float(one.step(tensors()).grad_norm), float(one.step(tensors()).grad_norm), params)

    for T, B, I, H in (  # noqa: E741 - the letters of the field
        (4, 3, 5, 7),
        (3, 1, 8, 16),
        (2, 5, 16, 32),
    ):
        for gates, forward, backward, states in (
            (4, fg.lstm, fg.lstm_backward, 2),
            (3, fg.gru, fg.gru_backward, 1),
        ):
            arrays = normal(gates * H, I), normal(gates * H, H), normal(gates * H), normal(gates * H)
            lengths = {"lengths": [min(k, T) for k in range(1, B + 1)]}
            noise = {"zoneout_h": 0.3, "input_dropout": 0.2, "recurrent_dropout": 0.4, "seed": 1}
            for options in ({}, {"reverse": True}, lengths, noise, {**noise, **lengths}):
                y, last, saved = forward(normal(T, B, I), *[None] * states, *arrays, **options)
                each(y, last, backward(normal(*y.shape), *[normal(B, H)] * states, saved))
                each(backward(normal(*y.shape), *[normal(B, H)] * states, saved, state_grad_clip=0.1))
        sizes = (4 * H,), (4 * H,), (H,)
        gains_and_biases = [normal(*size) for size in (*sizes, *sizes)]
        for options in ({}, {"reverse": True, "zoneout_c": 0.3, "recurrent_dropout": 0.4, "seed": 1}):
            y, last, saved = fg.layer_norm_lstm(
                normal(T, B, I), None, None, normal(4 * H, I), normal(4 * H, H), *gains_and_biases, **options
            )
            each(y, last, fg.layer_norm_lstm_backward(normal(*y.shape), normal(B, H), normal(B, H), saved))

    from fastgrad import layers

    if xp is not np:
        # What timing adds of its own.
        from fastgrad.kernels import cuda

        from fastgrad.profiling.device_clock import DeviceClock

        DeviceClock(cuda.device_of(xp.empty(1, dtype))).run_time(lambda: xp.zeros(1, dtype), cold=True)

    model = layers.Sequential(
        layers.Linear(6, 8, rng=0, dtype=dtype), layers.Activation("gelu"), layers.Linear(8, 5, rng=1, dtype=dtype)
    )
    table: Any = layers.Embedding(11, 6, rng=2, dtype=dtype)
    if xp is not np:
        model.to("gpu")
        table.to("gpu")
    each(model.forward(normal(4, 6)), model.backward(normal(4, 5)), [p.grad for p in model.parameters()])
    each(table.forward(xp.asarray(rng.integers(0, 11, (3, 4)))))
    table.backward(normal(3, 4, 6))
    each(table.weight.grad)
    block: Any = layers.TransformerBlock(12, 3, 20, "swiglu", causal=True, dropout=0.2, rng=3, dtype=dtype)
    if xp is not np:
        block.to("gpu")
    each(block.forward(normal(9, 2, 12)), block.backward(normal(9, 2, 12)), [p.grad for p in block.parameters()])
    return calls


def main() -> None:
    emulated = "--emulated" in sys.argv[1:]
    xp = array_module(emulated)
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    for dtype in (np.float32, np.float64):
        if only not in ("", np.dtype(dtype).name):
            continue
        found = every_op(xp, dtype)
        compare(found, every_op(np, dtype), dtype)
        print(f"{np.dtype(dtype).name}: {len(found)} calls agree with the CPU", flush=True)


if __name__ == "__main__":
    main()
