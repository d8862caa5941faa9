"""Layer normalisation forward and backward of the rows of a matrix.

Bytes an element: forward 8, backward 12; what belongs to a column or a row is less than a hundredth of that.
"""

from __future__ import annotations

import naive
import numpy as np
from inputs import QUICK, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

SHAPE = (64, 256) if QUICK else (8192, 1024)
EPS = 1e-5


def forward() -> Work:
    """y = weight xhat + bias."""
    x, weight, bias, own = normal(0, *SHAPE), normal(1, SHAPE[1]), normal(2, SHAPE[1]), np.empty(SHAPE, np.float32)
    by_torch = None
    if torch:
        x_t, w_t, b_t = tensors([x, weight, bias])
        results = tensors([own.copy(), np.empty(SHAPE[0], np.float32), np.empty(SHAPE[0], np.float32)])
        results[1:] = [r.reshape(-1, 1) for r in results[1:]]

        @torch.no_grad()
        def by_torch() -> object:
            out = dict(zip(("out0", "out1", "out2"), results, strict=True))
            return torch.ops.aten.native_layer_norm.out(x_t, SHAPE[1:], w_t, b_t, EPS, **out)[0]

    return Work(
        "layer_norm", name_of([SHAPE]), *costs.layer_norm(x.size),
        contestants(
            lambda: naive.layer_norm(x, weight, bias, EPS)[0],
            lambda: fastgrad.layer_norm(x, weight, bias, EPS, out=own)[0],
            by_torch,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
    )  # fmt: skip


def backward() -> Work:
    """dx, dweight and dbias."""
    x, dy, weight, own = normal(0, *SHAPE), normal(3, *SHAPE), normal(1, SHAPE[1]), np.empty(SHAPE, np.float32)
    _, mean, rstd = naive.layer_norm(x, weight, weight, EPS)
    _, saved = fastgrad.layer_norm(x, weight, weight, EPS)
    by_torch = None
    if torch:
        dy_t, x_t, w_t, mean_t, rstd_t = tensors([dy, x, weight, mean, rstd])
        results = tensors([own.copy(), weight.copy(), weight.copy()])

        @torch.no_grad()
        def by_torch() -> object:
            out = dict(zip(("out0", "out1", "out2"), results, strict=True))
            return torch.ops.aten.native_layer_norm_backward.out(
                dy_t, x_t, SHAPE[1:], mean_t, rstd_t, w_t, w_t, [True, True, True], **out
            )

    return Work(
        "layer_norm_backward", name_of([SHAPE]), *costs.layer_norm_backward(x.size),
        contestants(
            lambda: naive.layer_norm_backward(dy, x, weight, mean, rstd),
            lambda: fastgrad.layer_norm_backward(dy, saved, out=own),
            by_torch,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 2, 1)),
        rtol=1e-4,  # float32 sums over the rows, in three orders
    )  # fmt: skip


def bench_layer_norm(race):
    race(forward)


def bench_layer_norm_backward(race):
    race(backward)
