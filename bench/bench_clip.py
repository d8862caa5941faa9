"""Clipping by the global norm in place, with gradients that are above it in every call.

Bytes an element: 12 (read for the norm; read and written for the scaling). Flops: 3.
"""

from __future__ import annotations

import naive
import numpy as np
import pytest
from inputs import LISTS, copies, count, name_of, normals
from machine import torch
from work import FASTGRAD, NUMPY, TORCH, Work, contestants, restore, tensors

import fastgrad
from fastgrad.profiling import costs, limits

MAX_NORM = 1.0


def clip(name: str) -> Work:
    """Norm, then scaling; the gradients are written anew before each call, outside of the clock."""
    shapes = LISTS[name]
    originals, size = normals(0, shapes), count(shapes)
    own, hand = copies(originals), copies(originals)
    before = {NUMPY: restore(hand, originals), FASTGRAD: restore(own, originals)}
    by_torch = None
    if torch:
        torchs = copies(originals)
        before[TORCH] = restore(torchs, originals)
        holders = tensors(torchs)
        for holder, grad in zip(holders, tensors(torchs), strict=True):
            holder.grad = grad

        def by_torch() -> object:
            return [torch.nn.utils.clip_grad_norm_(holders, MAX_NORM, foreach=True), *torchs]

    def least() -> limits.Limit:
        stream, written = limits.ones(size), np.ones(size, np.float32)
        scaling = limits.moving(size, 1, 1, in_place=True, streams=[stream])
        return limits.of_memory(limits.reading(size, stream), scaling, before=lambda: np.copyto(stream, written))

    return Work(
        f"clip_by_global_norm {name}",
        name_of(shapes),
        *costs.clip(count(shapes)),
        contestants(
            lambda: [naive.clip_by_global_norm(hand, MAX_NORM), *hand],
            lambda: [fastgrad.clip_by_global_norm(own, MAX_NORM), *own],
            by_torch,
            before,
        ),
        limit=least,
        rtol=1e-3,  # of the norm, which torch and NumPy sum in float32
    )


@pytest.mark.parametrize("name", LISTS)
def bench_clip_by_global_norm(race, name):
    race(clip, name)
