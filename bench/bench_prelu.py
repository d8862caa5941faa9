"""PReLU forward and backward on images, with one weight or one per channel.

Bytes an element: forward 8, backward 12. Flops: backward 2 an element, for the weight's gradient.
"""

from __future__ import annotations

import naive
import numpy as np
import pytest
from inputs import QUICK, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

IMAGES = (2, 8, 14, 14) if QUICK else (32, 64, 56, 56)
WEIGHTS = [1, IMAGES[1]]


def forward(weights: int) -> Work:
    """y = x where x > 0, else weight x."""
    x, weight, own = normal(0, *IMAGES), normal(1, weights, scale=0.25), np.empty(IMAGES, np.float32)
    by_torch = None
    if torch:
        x_t, w_t = tensors([x, weight])
        by_torch = torch.no_grad()(lambda: torch.nn.functional.prelu(x_t, w_t))
    return Work(
        f"prelu, weight ({weights},)",
        name_of([IMAGES]),
        *costs.activation(x.size),
        contestants(lambda: naive.prelu(x, weight), lambda: fastgrad.prelu(x, weight, out=own), by_torch),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
    )


def backward(weights: int) -> Work:
    """dx and dweight."""
    x, dy, weight = normal(0, *IMAGES), normal(2, *IMAGES), normal(1, weights, scale=0.25)
    own = np.empty_like(x)
    by_torch = None
    if torch:
        x_t, dy_t, w_t = tensors([x, dy, weight])
        shaped = w_t.reshape(1, -1, 1, 1)
        summed = (0, 2, 3) if weights > 1 else (0, 1, 2, 3)

        @torch.no_grad()
        def by_torch() -> object:
            # What autograd does for prelu: a weight's gradient for every entry, then its sum.
            dx, dweight = torch.ops.aten._prelu_kernel_backward(dy_t, x_t, shaped)
            return [dx, dweight.sum(summed).reshape(weights)]

    return Work(
        f"prelu_backward, weight ({weights},)",
        name_of([IMAGES]),
        *costs.prelu_backward(x.size),
        contestants(
            lambda: naive.prelu_backward(dy, x, weight),
            lambda: fastgrad.prelu_backward(dy, x, weight, out=own),
            by_torch,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 2, 1)),
        rtol=1e-3,  # float32 sums of millions of numbers, in three orders
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def bench_prelu(race, weights):
    race(forward, weights)


@pytest.mark.parametrize("weights", WEIGHTS)
def bench_prelu_backward(race, weights):
    race(backward, weights)
