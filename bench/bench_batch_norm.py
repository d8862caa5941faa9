"""Batch normalisation forward and backward of a matrix, in training.

Bytes an element: forward 12, backward 20; the statistics ask for a pass of their own over x, and over dy and x.
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
    """y = weight xhat + bias, by the statistics of the batch."""
    x, weight, bias, own = normal(0, *SHAPE), normal(1, SHAPE[1]), normal(2, SHAPE[1]), np.empty(SHAPE, np.float32)
    by_torch = None
    if torch:
        x_t, w_t, b_t, *results = tensors([x, weight, bias, own.copy(), weight.copy(), weight.copy()])

        @torch.no_grad()
        def by_torch() -> object:
            out = dict(zip(("out", "save_mean", "save_invstd"), results, strict=True))
            return torch.ops.aten.native_batch_norm.out(x_t, w_t, b_t, None, None, True, 0.1, EPS, **out)[0]

    return Work(
        "batch_norm", name_of([SHAPE]), *costs.batch_norm(x.size),
        contestants(
            lambda: naive.batch_norm(x, weight, bias, EPS)[0],
            lambda: fastgrad.batch_norm(x, weight, bias, eps=EPS, out=own)[0],
            by_torch,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 1, 1)),
        rtol=1e-4,  # float32 sums over the rows, in three orders
    )  # fmt: skip


def backward() -> Work:
    """dx, dweight and dbias."""
    x, dy, weight, own = normal(0, *SHAPE), normal(3, *SHAPE), normal(1, SHAPE[1]), np.empty(SHAPE, np.float32)
    _, mean, rstd = naive.batch_norm(x, weight, weight, EPS)
    _, saved = fastgrad.batch_norm(x, weight, weight, eps=EPS)
    by_torch = None
    if torch:
        dy_t, x_t, w_t, mean_t, rstd_t = tensors([dy, x, weight, mean, rstd])
        results = tensors([own.copy(), weight.copy(), weight.copy()])

        @torch.no_grad()
        def by_torch() -> object:
            out = dict(zip(("out0", "out1", "out2"), results, strict=True))
            return torch.ops.aten.native_batch_norm_backward.out(
                dy_t, x_t, w_t, None, None, mean_t, rstd_t, True, EPS, [True, True, True], **out
            )

    return Work(
        "batch_norm_backward", name_of([SHAPE]), *costs.batch_norm_backward(x.size),
        contestants(
            lambda: naive.batch_norm_backward(dy, x, weight, mean, rstd),
            lambda: fastgrad.batch_norm_backward(dy, saved, out=own),
            by_torch,
        ),
        limit=lambda: limits.of_memory(limits.moving(x.size, 2, 1)),
        rtol=1e-4,  # as above
    )  # fmt: skip


def bench_batch_norm(race):
    race(forward)


def bench_batch_norm_backward(race):
    race(backward)
