"""Dropout of a matrix, alone and behind an activation; backward draws the numbers again.

Bytes an element: 8, and 12 for the backward pass of an activation. Everybody drops other entries, so nobody returns any
to be compared. torch keeps what its forward pass multiplied by, as its autograd does on the CPU, and goes over memory
once for the dropout and once for the activation.
"""

from __future__ import annotations

import naive
import numpy as np
import pytest
from inputs import MATRIX, QUICK, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

P = 0.1
KINDS = ("relu", "gelu")
SHAPE = (64, 256) if QUICK else (8192, 1024)


def forward() -> Work:
    """y = x / (1 - p) where it is kept, else 0."""
    x, own, rng = normal(0, *MATRIX), np.empty(MATRIX, np.float32), np.random.default_rng(1)
    by_torch = None
    if torch:
        x_t, y_t = tensors([x, own.copy()])
        mask = torch.empty(MATRIX, dtype=torch.bool)

        @torch.no_grad()
        def by_torch() -> object:
            torch.ops.aten.native_dropout.out(x_t, P, True, out0=y_t, out1=mask)
            return []

    def by_numpy() -> object:
        naive.dropout(x, P, rng)
        return []

    def by_fastgrad() -> object:
        fastgrad.dropout(x, P, 1, out=own)
        return []

    return Work(
        "dropout", name_of([MATRIX]), *costs.dropout(x.size), contestants(by_numpy, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
    )  # fmt: skip


def with_activation(kind: str) -> Work:
    """y = f(x) / (1 - p) where it is kept, else 0."""
    x, own, rng = normal(0, *SHAPE), np.empty(SHAPE, np.float32), np.random.default_rng(1)
    by_torch = None
    if torch:
        x_t, y_t, noise = tensors([x, own.copy(), own.copy()])
        function = getattr(torch.ops.aten, kind)

        @torch.no_grad()
        def by_torch() -> object:
            function.out(x_t, out=y_t)
            y_t.mul_(noise.bernoulli_(1 - P).div_(1 - P))
            return []

    def by_numpy() -> object:
        naive.dropout(naive.FORWARD[kind](x), P, rng)
        return []

    def by_fastgrad() -> object:
        fastgrad.activation_dropout(x, kind, P, 1, out=own)
        return []

    return Work(
        f"activation_dropout {kind}", name_of([SHAPE]), 8 * x.size, 0, contestants(by_numpy, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
    )  # fmt: skip


def backward(kind: str) -> Work:
    """dx = f'(x) dy / (1 - p) where it was kept, else 0."""
    x, dy, own = normal(0, *SHAPE), normal(1, *SHAPE), np.empty(SHAPE, np.float32)
    seen = naive.FORWARD[kind](x) if kind in naive.FROM_OUTPUT else x
    noise = naive.dropout(np.ones(SHAPE, np.float32), P, np.random.default_rng(1))
    by_torch = None
    if torch:
        x_t, dy_t, noise_t, g, dx = tensors([x, dy, noise, own.copy(), own.copy()])

        @torch.no_grad()
        def by_torch() -> object:
            torch.mul(dy_t, noise_t, out=g)
            if kind == "gelu":
                torch.ops.aten.gelu_backward.grad_input(g, x_t, grad_input=dx)
            else:
                torch.ops.aten.threshold_backward.grad_input(g, x_t, 0, grad_input=dx)
            return []

    def by_numpy() -> object:
        naive.BACKWARD[kind](dy * noise, seen)
        return []

    def by_fastgrad() -> object:
        fastgrad.activation_dropout_backward(dy, x, kind, P, 1, out=own)
        return []

    return Work(
        f"activation_dropout_backward {kind}", name_of([SHAPE]), 12 * x.size, 0,
        contestants(by_numpy, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(x.size, 2, 1)),
    )  # fmt: skip


def bench_dropout(race):
    race(forward)


@pytest.mark.parametrize("kind", KINDS)
def bench_activation_dropout(race, kind):
    race(with_activation, kind)


@pytest.mark.parametrize("kind", KINDS)
def bench_activation_dropout_backward(race, kind):
    race(backward, kind)
