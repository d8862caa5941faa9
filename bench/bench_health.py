"""What a list of gradients looks like, tensor by tensor. Bytes an element: 4. Flops: 2 (of the norm).

The gradients have what gradients have: a tenth of them are zero, one in a thousand is subnormal; none is NaN or Inf.
"""

from __future__ import annotations

import naive
import numpy as np
import pytest
from inputs import LISTS, Array, count, name_of, normals
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits


def gradients(name: str) -> list[Array]:
    """Return a list of gradients, a tenth of them zero and one in a thousand subnormal."""
    arrays = normals(0, LISTS[name])
    for array in arrays:
        flat = array.reshape(-1)
        flat[::10] = 0
        flat[1::1000] = 1e-40
    return arrays


def by_torch(grads: list) -> list:
    """Return the same in torch: fused over the tensors where it can be, counts tensor by tensor."""
    tiny = torch.finfo(grads[0].dtype).tiny
    norms = torch._foreach_norm(grads, 2)
    largest = torch._foreach_norm(grads, float("inf"))
    return [
        torch.stack(
            [
                norm.double(),
                top.double(),
                torch.isnan(g).sum(),
                torch.isinf(g).sum(),
                (g == 0).sum(),
                ((g != 0) & (g.abs() < tiny)).sum(),
            ]
        )
        for g, norm, top in zip(grads, norms, largest, strict=True)
    ]


def health(name: str) -> Work:
    """Norm, largest entry and four counts of each tensor."""
    grads = gradients(name)
    by_torch_ = None
    if torch:
        grads_t = tensors(grads)
        by_torch_ = torch.no_grad()(lambda: torch.stack(by_torch(grads_t)))

    def by_fastgrad() -> object:
        h = fastgrad.health(grads)
        return np.stack([h.norm, h.max_abs, h.nan, h.inf, h.zero, h.subnormal], axis=1)

    return Work(
        f"health {name}",
        name_of(LISTS[name]),
        *costs.norm(count(LISTS[name])),
        contestants(lambda: np.array(naive.health(grads)), by_fastgrad, by_torch_),
        limit=lambda: limits.of_memory(limits.reading(count(LISTS[name]))),
        rtol=1e-3,  # torch and NumPy sum in float32
    )


@pytest.mark.parametrize("name", LISTS)
def bench_health(race, name):
    race(health, name)
