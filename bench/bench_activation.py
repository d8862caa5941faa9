"""Activations forward and backward, the latter also with the bias gradient of the layer in front.

Bytes an element: forward 8 (x read, y written), backward 12 (dy, x read, dx written). Flops: 0, see README.md.
torch and naive NumPy take the derivative of sigmoid and tanh from the output y, which saves them the exponential.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import naive
import numpy as np
import pytest
from inputs import MATRIX, Array, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

KINDS = ["relu", "silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "mish"]


@functools.cache
def _inputs() -> tuple[Array, Array]:
    return normal(0, *MATRIX, scale=2.0), normal(1, *MATRIX)


def _torch_forward(kind: str, x: Array, out: Array) -> Callable[[], object]:
    x_t, out_t = tensors([x, out])
    options = {"gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}}.get(kind, {})
    function = getattr(torch.ops.aten, "gelu" if kind == "gelu_tanh" else kind).out
    return torch.no_grad()(lambda: function(x_t, **options, out=out_t))


def _torch_backward(kind: str, dy: Array, x_or_y: Array, out: Array) -> Callable[[], object]:
    aten = torch.ops.aten
    dy_t, x_t, out_t = tensors([dy, x_or_y, out])
    calls: dict[str, Callable[[], object]] = {
        "relu": lambda: aten.threshold_backward.grad_input(dy_t, x_t, 0, grad_input=out_t),
        "silu": lambda: aten.silu_backward.grad_input(dy_t, x_t, grad_input=out_t),
        "sigmoid": lambda: aten.sigmoid_backward.grad_input(dy_t, x_t, grad_input=out_t),
        "tanh": lambda: aten.tanh_backward.grad_input(dy_t, x_t, grad_input=out_t),
        "gelu": lambda: aten.gelu_backward.grad_input(dy_t, x_t, approximate="none", grad_input=out_t),
        "gelu_tanh": lambda: aten.gelu_backward.grad_input(dy_t, x_t, approximate="tanh", grad_input=out_t),
        # The one kind without a form that writes into an array given.
        "mish": lambda: aten.mish_backward(dy_t, x_t),
    }
    return torch.no_grad()(calls[kind])


def forward(kind: str) -> Work:
    """y = f(x), out given."""
    x, _ = _inputs()
    own, torchs = np.empty_like(x), np.empty_like(x)
    return Work(
        f"activation {kind}",
        name_of([MATRIX]),
        *costs.activation(x.size),
        contestants(
            lambda: naive.FORWARD[kind](x),
            lambda: fastgrad.activation(x, kind, out=own),
            _torch_forward(kind, x, torchs) if torch else None,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
    )


def backward(kind: str, with_bias: bool = False) -> Work:
    """dx = dy f'(x), out given; with_bias: and its sum over the rows."""
    x, dy = _inputs()
    seen = naive.FORWARD[kind](x) if kind in naive.FROM_OUTPUT else x
    own, own_bias = np.empty_like(x), np.empty(x.shape[1], x.dtype) if with_bias else None
    torchs, torchs_bias = np.empty_like(x), np.empty(x.shape[1], x.dtype)

    def by_hand() -> object:
        dx = naive.BACKWARD[kind](dy, seen)
        return [dx, np.sum(dx, axis=0)] if with_bias else [dx]

    def by_fastgrad() -> object:
        return [fastgrad.activation_backward(dy, x, kind, out=own, bias_grad=own_bias), own_bias]

    by_torch = None
    if torch:
        step, bias_t = _torch_backward(kind, dy, seen, torchs), torch.from_numpy(torchs_bias)

        def by_torch() -> object:
            dx = step()
            return [dx, torch.sum(dx, 0, out=bias_t)] if with_bias else [dx]

    return Work(
        f"activation_backward {kind}{' with bias_grad' if with_bias else ''}",
        name_of([MATRIX]),
        *costs.activation_backward(x.size, with_bias),
        contestants(by_hand, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(x.size, 2, 1)),
        # A sum of 8192 numbers of both signs, in another order.
        rtol=1e-4 if with_bias else 1e-5,
    )


@pytest.mark.parametrize("kind", KINDS)
def bench_activation(race, kind):
    race(forward, kind)


@pytest.mark.parametrize("kind", KINDS)
def bench_activation_backward(race, kind):
    race(backward, kind)


@pytest.mark.parametrize("kind", KINDS)
def bench_activation_backward_with_bias_grad(race, kind):
    race(backward, kind, True)
