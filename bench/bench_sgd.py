"""Stochastic gradient descent with momentum. Bytes a parameter: 20 (p, g, b read; p, b written). Flops: 4."""

from __future__ import annotations

import naive
import pytest
from inputs import LISTS, ONE_TENSOR, copies, count, name_of, normals, zeros
from machine import torch
from work import Work, contestants, tensors

import fastgrad
from fastgrad.profiling import costs, limits

LR, MOMENTUM = 1e-3, 0.9
TENSORS = {"one-tensor": ONE_TENSOR, "200x1000": LISTS["200x1000"]}


def sgd(name: str) -> Work:
    """A step with momentum 0.9."""
    shapes = TENSORS[name]
    start, grads = normals(0, shapes, scale=0.02), normals(1, shapes)
    hand, hand_buffer, own, own_buffer = copies(start), zeros(shapes), copies(start), zeros(shapes)

    def by_hand() -> object:
        naive.sgd_step(hand, grads, hand_buffer, LR, MOMENTUM)
        return [hand, hand_buffer]

    def by_fastgrad() -> object:
        fastgrad.sgd_step(own, grads, own_buffer, lr=LR, momentum=MOMENTUM)
        return [own, own_buffer]

    by_torch = None
    if torch:
        torchs, torch_buffer = copies(start), zeros(shapes)
        params = [tensor.requires_grad_() for tensor in tensors(torchs)]
        optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, fused=True)
        for p, g, b in zip(params, tensors(grads), tensors(torch_buffer), strict=True):
            p.grad = g
            optimizer.state[p] = {"momentum_buffer": b}

        def by_torch() -> object:
            optimizer.step()
            return [torchs, torch_buffer]

    return Work(
        f"sgd_step {name}",
        name_of(shapes),
        *costs.sgd(count(shapes)),
        contestants(by_hand, by_fastgrad, by_torch),
        limit=lambda: limits.of_memory(limits.moving(count(shapes), 3, 2, in_place=True)),
    )


@pytest.mark.parametrize("name", TENSORS)
def bench_sgd_step(race, name):
    race(sgd, name)
