"""The global norm of a list of gradients. Bytes an element: 4. Flops: 2."""

from __future__ import annotations

import naive
import pytest
from inputs import LISTS, count, name_of, normals
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits


def norm(name: str) -> Work:
    """The l2 norm of all entries together."""
    shapes = LISTS[name]
    grads = normals(0, shapes)
    by_torch = None
    if torch:
        grads_t = tensors(grads)
        by_torch = torch.no_grad()(lambda: torch.nn.utils.get_total_norm(grads_t, foreach=True))
    return Work(
        f"global_norm {name}",
        name_of(shapes),
        *costs.norm(count(shapes)),
        contestants(lambda: naive.global_norm(grads), lambda: fastgrad.global_norm(grads), by_torch),
        limit=lambda: limits.of_memory(limits.reading(count(shapes))),
        rtol=1e-3,  # torch and NumPy sum in float32
    )


@pytest.mark.parametrize("name", LISTS)
def bench_global_norm(race, name):
    race(norm, name)
