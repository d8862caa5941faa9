"""The affine map of a layer and its gradients.

Flops: 2 M N K forward, 4 M N K backward. Bytes: every argument and result once.
"""

from __future__ import annotations

import numpy as np
import pytest
from inputs import QUICK, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

from fastgrad.linear import linear, linear_backward
from fastgrad.profiling import costs

# (M, K, N): rows, in, out. The head of the character model at its default size, and a square one.
SIZES = [(20, 16, 9)] if QUICK else [(2048, 256, 96), (1024, 1024, 1024)]


def forward(M: int, K: int, N: int) -> Work:
    """y = x W^T + b."""
    x, weight, bias = normal(0, M, K), normal(1, N, K), normal(2, N)
    by_torch = None
    if torch:
        x_t, w_t, b_t, y_t = tensors([x, weight, bias, np.empty((M, N), np.float32)])
        by_torch = torch.no_grad()(lambda: torch.addmm(b_t, x_t, w_t.T, out=y_t))
    return Work(
        f"linear {(M, K, N)}",
        f"(M, K, N) = {(M, K, N)}",
        *costs.linear(M, K, N),
        contestants(on_reference(lambda: linear(x, weight, bias)), lambda: linear(x, weight, bias), by_torch),
        rtol=1e-4,
    )


def backward(M: int, K: int, N: int) -> Work:
    """dx = dy W, dweight = dy^T x, dbias = sum of dy."""
    dy, x, weight = normal(3, M, N), normal(0, M, K), normal(1, N, K)
    by_torch = None
    if torch:
        dy_t, x_t, w_t = tensors([dy, x, weight])
        dx_t, dw_t, db_t = tensors([np.empty(shape, np.float32) for shape in [(M, K), (N, K), (N,)]])

        @torch.no_grad()
        def by_torch() -> object:
            return [
                torch.mm(dy_t, w_t, out=dx_t),
                torch.mm(dy_t.T, x_t, out=dw_t),
                torch.sum(dy_t, 0, out=db_t),
            ]

    return Work(
        f"linear_backward {(M, K, N)}",
        f"(M, K, N) = {(M, K, N)}",
        *costs.linear_backward(M, K, N),
        contestants(
            on_reference(lambda: linear_backward(dy, x, weight)), lambda: linear_backward(dy, x, weight), by_torch
        ),
        rtol=1e-4,
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def bench_linear(race, sizes):
    race(forward, *sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def bench_linear_backward(race, sizes):
    race(backward, *sizes)
