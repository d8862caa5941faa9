"""Gated linear units, swiglu and geglu, forward and backward.

Bytes an element: forward 12 (gate, up read, y written), backward 20 (dy, gate, up read, dgate, dup written). Flops:
forward 1, backward 3 for the products, see README.md.
"""

from __future__ import annotations

import functools

import naive
import numpy as np
import pytest
from inputs import MATRIX, Array, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

# unit -> the activation of its gate
KINDS = {"swiglu": "silu", "geglu": "gelu"}


@functools.cache
def _inputs() -> list[Array]:
    return [normal(0, *MATRIX), normal(1, *MATRIX, scale=2.0), normal(2, *MATRIX)]


def forward(unit: str) -> Work:
    """y = f(gate) up, out given."""
    _, gate, up = _inputs()
    kind, function, own = KINDS[unit], getattr(fastgrad, unit), np.empty_like(gate)
    by_torch = None
    if torch:
        g, u, y = tensors([gate, up, np.empty_like(gate)])
        activation = getattr(torch.ops.aten, kind).out

        @torch.no_grad()
        def by_torch() -> object:
            activation(g, out=y)
            return y.mul_(u)

    return Work(
        unit,
        name_of([MATRIX]),
        *costs.glu(gate.size),
        contestants(lambda: naive.FORWARD[kind](gate) * up, lambda: function(gate, up, out=own), by_torch),
        limit=lambda: limits.of_memory(limits.moving(gate.size, 2, 1)),
    )


def backward(unit: str) -> Work:
    """dgate and dup, out given."""
    dy, gate, up = _inputs()
    kind, function = KINDS[unit], getattr(fastgrad, f"{unit}_backward")
    own = np.empty_like(gate), np.empty_like(gate)

    def by_hand() -> object:
        return [naive.BACKWARD[kind](dy * up, gate), dy * naive.FORWARD[kind](gate)]

    by_torch = None
    if torch:
        d, g, u, dgate, dup = tensors([dy, gate, up, np.empty_like(gate), np.empty_like(gate)])
        activation = getattr(torch.ops.aten, kind).out
        derivative = getattr(torch.ops.aten, f"{kind}_backward").grad_input

        @torch.no_grad()
        def by_torch() -> object:
            torch.mul(d, u, out=dup)
            derivative(dup, g, grad_input=dgate)
            activation(g, out=dup)
            return [dgate, dup.mul_(d)]

    return Work(
        f"{unit}_backward",
        name_of([MATRIX]),
        *costs.glu_backward(gate.size),
        contestants(by_hand, lambda: function(dy, gate, up, out=own), by_torch),
        limit=lambda: limits.of_memory(limits.moving(gate.size, 3, 2)),
    )


@pytest.mark.parametrize("unit", KINDS)
def bench_glu(race, unit):
    race(forward, unit)


@pytest.mark.parametrize("unit", KINDS)
def bench_glu_backward(race, unit):
    race(backward, unit)
