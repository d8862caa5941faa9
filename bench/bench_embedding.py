"""Table look-up and the gradient of the table.

Bytes: forward the rows read and written and the indices; backward dy read, the table's gradient written. Flops:
backward one addition for each entry of dy.
"""

from __future__ import annotations

import numpy as np
import pytest
from inputs import QUICK, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

from fastgrad.linear import embedding, embedding_backward
from fastgrad.profiling import costs

# (V, E, n): rows of the table, their width, look-ups. The character model at its default size; a language model's.
SIZES = [(96, 8, 20)] if QUICK else [(96, 64, 2048), (50257, 768, 4096)]


def forward(V: int, E: int, n: int) -> Work:
    """y = weight[indices]."""
    weight, indices = normal(0, V, E), np.random.default_rng(1).integers(V, size=n)
    by_torch = None
    if torch:
        w_t, i_t, y_t = tensors([weight, indices, np.empty((n, E), np.float32)])
        by_torch = torch.no_grad()(lambda: torch.index_select(w_t, 0, i_t, out=y_t))
    return Work(
        f"embedding {(V, E, n)}",
        f"(V, E, n) = {(V, E, n)}",
        *costs.embedding(n, E),
        contestants(on_reference(lambda: embedding(weight, indices)), lambda: embedding(weight, indices), by_torch),
    )


def backward(V: int, E: int, n: int) -> Work:
    """dweight: the sum of dy over the uses of each row."""
    dy, indices = normal(2, n, E), np.random.default_rng(1).integers(V, size=n)
    by_torch = None
    if torch:
        dy_t, i_t = tensors([dy, indices])
        by_torch = torch.no_grad()(lambda: torch.ops.aten.embedding_dense_backward(dy_t, i_t, V, -1, False))
    return Work(
        f"embedding_backward {(V, E, n)}",
        f"(V, E, n) = {(V, E, n)}",
        *costs.embedding_backward(n, E, V),
        contestants(
            on_reference(lambda: embedding_backward(dy, indices, V)),
            lambda: embedding_backward(dy, indices, V),
            by_torch,
        ),
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def bench_embedding(race, sizes):
    race(forward, *sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def bench_embedding_backward(race, sizes):
    race(backward, *sizes)
