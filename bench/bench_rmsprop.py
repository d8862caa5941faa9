"""RMSprop without momentum. Bytes a parameter: 20 (p, g, v read; p, v written). Flops: 6."""

from __future__ import annotations

import naive
import pytest
from inputs import LISTS, ONE_TENSOR, copies, count, name_of, normals, zeros
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

TENSORS = {"one-tensor": ONE_TENSOR, "200x1000": LISTS["200x1000"]}


def rmsprop(name: str) -> Work:
    """A step with torch's defaults."""
    shapes = TENSORS[name]
    start, grads = normals(0, shapes, scale=0.02), normals(1, shapes)
    hand, hand_square, own, own_square = copies(start), zeros(shapes), copies(start), zeros(shapes)

    def by_hand() -> object:
        naive.rmsprop_step(hand, grads, hand_square)
        return [hand, hand_square]

    def by_fastgrad() -> object:
        fastgrad.rmsprop_step(own, grads, own_square)
        return [own, own_square]

    by_torch = None
    if torch:
        torchs, torch_square = copies(start), zeros(shapes)
        params = [tensor.requires_grad_() for tensor in tensors(torchs)]
        # There is no fused one.
        optimizer = torch.optim.RMSprop(params, foreach=True)
        for p, g, v in zip(params, tensors(grads), tensors(torch_square), strict=True):
            p.grad = g
            optimizer.state[p] = {"step": torch.zeros(()), "square_avg": v}

        def by_torch() -> object:
            optimizer.step()
            return [torchs, torch_square]

    return Work(
        f"rmsprop_step {name}",
        name_of(shapes),
        *costs.rmsprop(count(shapes)),
        contestants(by_hand, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(count(shapes), 3, 2, in_place=True)),
    )


@pytest.mark.parametrize("name", TENSORS)
def bench_rmsprop_step(race, name):
    race(rmsprop, name)
