"""Run every operation once on a GPU, on small ragged arrays: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python -m devtools.every_op
    python -m devtools.every_op --emulated      the same on the CPU

Each array is an allocation of its own (no pool), so that an access beyond its end is one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastgrad
from fastgrad.activations import KINDS

SHAPES = [(), (0, 3), (1,), (7,), (13, 17), (33, 65), (3, 1031)]


def array_module(emulated: bool) -> Any:
    if emulated:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
        stand_in: Any = importlib.import_module("emulated")
        stand_in.register()
        return stand_in.Module
    from fastgrad._gpu import require_gpu

    cupy = require_gpu("devtools.every_op")
    cupy.cuda.set_allocator(None)
    return cupy


def every_op(xp: Any, dtype: type) -> int:
    """Call each operation on device arrays; return how many calls were made."""
    rng = np.random.default_rng(0)
    calls = 0
    fg: Any = fastgrad  # untyped: what is called with which arguments is the point here

    def normal(*shape: int) -> Any:
        return xp.asarray(rng.normal(size=shape).astype(dtype))

    def each(*results: object) -> None:
        nonlocal calls
        calls += 1
        del results

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
        each(fg.mse(gate, up))
    x, dy = normal(5, 3, 7), normal(5, 3, 7)
    for weight in (normal(1), normal(3)):
        each(fg.prelu(x, weight), fg.prelu_backward(dy, x, weight))
    for shape in SHAPES:
        each(fg.dropout(normal(*shape), 0.3, 1, 2), fg.dropout_backward(normal(*shape), 0.3, 1, 2))
    for rows, columns in ((1, 1), (9, 33), (70, 64), (2, 20000)):
        _, normalised = fg.layer_norm(normal(rows, columns), normal(columns), normal(columns))
        each(fg.layer_norm_backward(normal(rows, columns), normalised))
    for shape in ((9, 33), (300, 64), (3, 5, 7), (2, 3, 8, 8)):
        for training in (True, False):
            channels = [normal(shape[1]) for _ in range(3)]
            _, normalised = fg.batch_norm(normal(*shape), *channels, normal(shape[1]) ** 2, training=training)
            each(fg.batch_norm_backward(normal(*shape), normalised))
    for rows, classes in ((1, 1), (9, 33), (5, 1031)):
        targets = xp.asarray(rng.integers(0, classes, rows))
        each(fg.softmax_cross_entropy(normal(rows, classes), targets))

    shapes = [(3,), (0,), (17, 5), (1,), (40000,), (129,)]

    def tensors() -> list[Any]:
        return [normal(*shape) for shape in shapes]

    def zeros() -> list[Any]:
        return [xp.zeros(shape, dtype) for shape in shapes]

    for order in (1, 2, float("inf")):
        each(fg.global_norm(tensors(), order), fg.clip_by_global_norm(tensors(), 0.5, ord=order))
    each(fg.clip_by_norm(tensors(), 0.5), fg.clip_by_value(tensors(), -0.5, 0.5))
    each(fg.health(tensors()).norm)
    variants: list[dict[str, Any]] = [{}, {"max_norm": 0.1}, {"weight_decay": 0.1, "decoupled": False}]
    for variant in [*variants, {"max_exp_avg_sq": zeros()}]:
        each(fg.adam_step(tensors(), tensors(), zeros(), zeros(), step=1, **variant))
    each(fg.sgd_step(tensors(), tensors(), zeros(), lr=0.1, momentum=0.9, nesterov=True, max_norm=0.1))
    each(fg.rmsprop_step(tensors(), tensors(), zeros(), zeros(), zeros(), momentum=0.9, centered=True))
    for optimizer in (fg.SGD, fg.RMSprop, fg.Adam, fg.AdamW):
        one = optimizer(tensors(), lr=0.1, max_norm=1.0)
        each(one.step(tensors()), float(one.step(tensors()).grad_norm))

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
            for options in ({}, {"reverse": True}, {"lengths": [min(k, T) for k in range(1, B + 1)]}):
                y, _, saved = forward(normal(T, B, I), *[None] * states, *arrays, **options)
                each(backward(normal(*y.shape), *[normal(B, H)] * states, saved))

    from fastgrad import layers

    model = layers.Sequential(layers.Linear(6, 8), layers.Activation("gelu"), layers.Linear(8, 5))
    if getattr(xp, "__name__", "") == "cupy":
        model.to("gpu")
        model.forward(normal(4, 6))
        each(model.backward(normal(4, 5)))
        table: Any = layers.Embedding(11, 6).to("gpu")
        each(table.forward(xp.asarray(rng.integers(0, 11, (3, 4)))), table.backward(normal(3, 4, 6)))
    return calls


def main() -> None:
    emulated = "--emulated" in sys.argv[1:]
    xp = array_module(emulated)
    for dtype in (np.float32, np.float64):
        print(f"{np.dtype(dtype).name}: {every_op(xp, dtype)} calls", flush=True)
    if not emulated:
        xp.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
