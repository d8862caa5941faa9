"""Dropout of a matrix; backward is the same work for fastgrad, which draws the numbers again.

Bytes an element: 8. Everybody drops other entries, so nobody returns any to be compared.
"""

from __future__ import annotations

import naive
import numpy as np
from inputs import MATRIX, name_of, normal
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

P = 0.1


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


def bench_dropout(race):
    race(forward)
