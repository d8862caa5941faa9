"""Elementwise operations: activations, gated units, dropout, bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad
from fastgrad import pruning
from fastgrad.profiling import costs
from fastgrad.profiling.cases import Array, Case, Run, like, moving, named, numbers, rows_of

_TORCH_KINDS = {"gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}}


def activation(kind: str, n: int) -> Case:
    def bind(x: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.activation(x, kind, out=y)

    def torchs(torch: Any, x: Any) -> Run:
        function = getattr(torch.ops.aten, "gelu" if kind == "gelu_tanh" else kind).out
        y = torch.empty_like(x)
        return lambda: function(x, **_TORCH_KINDS.get(kind, {}), out=y)

    known = kind in ("relu", "silu", "sigmoid", "tanh", "mish", *_TORCH_KINDS)
    return Case(
        named(n), costs.activation(n), (numbers(0, n, scale=2.0),), bind, moving(n, 1, 1), torchs if known else None
    )


def activation_backward(kind: str, n: int) -> Case:
    def bind(dy: Array, x: Array) -> Run:
        dx = like(x)
        return lambda: fastgrad.activation_backward(dy, x, kind, out=dx)

    def torchs(torch: Any, dy: Any, x: Any) -> Run:
        aten, dx = torch.ops.aten, torch.empty_like(x)
        calls: dict[str, Run] = {
            "relu": lambda: aten.threshold_backward.grad_input(dy, x, 0, grad_input=dx),
            "silu": lambda: aten.silu_backward.grad_input(dy, x, grad_input=dx),
            "sigmoid": lambda: aten.sigmoid_backward.grad_input(dy, x, grad_input=dx),
            "tanh": lambda: aten.tanh_backward.grad_input(dy, x, grad_input=dx),
            "gelu": lambda: aten.gelu_backward.grad_input(dy, x, approximate="none", grad_input=dx),
            "gelu_tanh": lambda: aten.gelu_backward.grad_input(dy, x, approximate="tanh", grad_input=dx),
            "mish": lambda: aten.mish_backward(dy, x),
        }
        return calls[kind]

    known = kind in ("relu", "silu", "sigmoid", "tanh", "mish", *_TORCH_KINDS)
    inputs = numbers(1, n), numbers(0, n, scale=2.0)
    return Case(
        named(n), costs.activation_backward(n), inputs, bind, moving(n, 2, 1), torchs if known else None
    )  # fmt: skip


def glu(unit: str, n: int) -> Case:
    def bind(gate: Array, up: Array) -> Run:
        y = like(gate)
        return lambda: getattr(fastgrad, unit)(gate, up, out=y)

    return Case(named(n), costs.glu(n), (numbers(0, n), numbers(1, n)), bind, moving(n, 2, 1))


def glu_backward(unit: str, n: int) -> Case:
    def bind(dy: Array, gate: Array, up: Array) -> Run:
        out = like(gate), like(up)
        return lambda: getattr(fastgrad, f"{unit}_backward")(dy, gate, up, out=out)

    return Case(named(n), costs.glu_backward(n), tuple(numbers(k, n) for k in range(3)), bind, moving(n, 3, 2))


def prelu(n: int) -> Case:
    shape = rows_of(n)

    def bind(x: Array, weight: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.prelu(x, weight, out=y)

    inputs = numbers(0, *shape), numbers(1, shape[1])
    return Case(named(*shape), costs.activation(inputs[0].size), inputs, bind, moving(inputs[0].size, 1, 1))


def prelu_backward(n: int) -> Case:
    shape = rows_of(n)

    def bind(dy: Array, x: Array, weight: Array) -> Run:
        return lambda: fastgrad.prelu_backward(dy, x, weight)

    inputs = numbers(2, *shape), numbers(0, *shape), numbers(1, shape[1])
    return Case(named(*shape), costs.prelu_backward(inputs[0].size), inputs, bind, moving(inputs[0].size, 2, 1))


def dropout(n: int) -> Case:
    def bind(x: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.dropout(x, 0.1, 1, 2, out=y)

    def torchs(torch: Any, x: Any) -> Run:
        return lambda: torch.native_dropout(x, 0.1, True)

    return Case(named(n), costs.dropout(n), (numbers(0, n),), bind, moving(n, 1, 1), torchs)


def activation_dropout(n: int) -> Case:
    def bind(x: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.activation_dropout(x, "gelu", 0.1, 1, 2, out=y)

    return Case(named(n), costs.activation(n), (numbers(0, n),), bind, moving(n, 1, 1))


def activation_dropout_backward(n: int) -> Case:
    def bind(dy: Array, x: Array) -> Run:
        dx = like(x)
        return lambda: fastgrad.activation_dropout_backward(dy, x, "gelu", 0.1, 1, 2, out=dx)

    return Case(named(n), costs.activation_backward(n), (numbers(1, n), numbers(0, n)), bind, moving(n, 2, 1))


def clip_by_value(n: int) -> Case:
    def bind(x: Array) -> Run:
        return lambda: fastgrad.clip_by_value([x], -1.0, 1.0)

    def torchs(torch: Any, x: Any) -> Run:
        return lambda: x.clamp_(-1.0, 1.0)

    return Case(named(n), costs.activation(n), (numbers(0, n),), bind, moving(n, 1, 1, True), torchs, (0,))


def apply_masks(n: int) -> Case:
    def bind(x: Array, mask: Array) -> Run:
        return lambda: pruning.apply_masks([x], [mask])

    def torchs(torch: Any, x: Any, mask: Any) -> Run:
        return lambda: x.mul_(mask)

    inputs = numbers(0, n), (numbers(1, n) > 0).astype(np.float32)
    return Case(named(n), costs.elementwise(n, 3), inputs, bind, moving(n, 2, 1, True), torchs, (0,))
