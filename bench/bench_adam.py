"""Adam's step, alone and with clipping by the global norm.

Bytes a parameter: 28 (p, g, m, v read; p, m, v written), and 4 for the norm of a clipped step. torch and naive NumPy
clip in passes of their own, 8 bytes more, which are not counted: the rates compare useful work.
Flops a parameter: 12, and 3 for clipping.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import naive
import numpy as np
import peers
import pytest
from inputs import LISTS, ONE_TENSOR, copies, count, name_of, normals, zeros
from machine import torch
from work import DEEPSPEED, FASTGRAD, NUMPY, OPTAX, TORCH, Work, contestants, restore, tensors

import fastgrad
from fastgrad.profiling import costs, limits
from fastgrad.profiling.turns import Contestant

MAX_NORM = 1.0
TENSORS = {"one-tensor": ONE_TENSOR, **LISTS}


def adam(name: str, clipped: bool, others: bool = False, fed: bool = False) -> Work:
    """A step on the tensors of this name.

    clipped: after clipping their global norm to 1; others: with `peers`; fed: fastgrad has taken the norm of each
    gradient before, outside of the clock, as when it is taken while gradients are produced.
    """
    shapes = TENSORS[name]
    start, gradients = normals(0, shapes, scale=0.02), normals(1, shapes)
    hand, own = [[copies(start), zeros(shapes), zeros(shapes)] for _ in range(2)]
    hand_grads = copies(gradients) if clipped else gradients
    hand_steps, own_steps = itertools.count(1), itertools.count(1)
    # Every clip rewrites its gradients, except fastgrad's. All are written anew, so that all find them equally cached.
    before = {NUMPY: restore(hand_grads, gradients)} if clipped else {}
    own_grads = gradients
    if clipped:
        own_grads = copies(gradients)
        before[FASTGRAD] = restore(own_grads, gradients)
    gradient_norm = fastgrad.GradientNorm() if fed else None
    if gradient_norm is not None:

        def before_own(written: Callable[[], None] = before[FASTGRAD]) -> None:
            written()
            gradient_norm.add(own_grads)

        before[FASTGRAD] = before_own

    def by_hand() -> object:
        if clipped:
            naive.clip_by_global_norm(hand_grads, MAX_NORM)
        naive.adam_step(hand[0], hand_grads, *hand[1:], step=next(hand_steps))
        return hand

    def by_fastgrad() -> object:
        max_norm = MAX_NORM if clipped else None
        step = next(own_steps)
        fastgrad.adam_step(own[0], own_grads, *own[1:], step=step, max_norm=max_norm, gradient_norm=gradient_norm)
        assert gradient_norm is None or gradient_norm.missed == 0
        return own

    by_torch = None
    if torch:
        torchs, torch_grads = copies(start), copies(gradients) if clipped else gradients
        if clipped:
            before[TORCH] = restore(torch_grads, gradients)
        params = [tensor.requires_grad_() for tensor in tensors(torchs)]
        optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)
        averages, squares = zeros(shapes), zeros(shapes)
        for p, g, m, v in zip(params, tensors(torch_grads), tensors(averages), tensors(squares), strict=True):
            p.grad = g
            optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": m, "exp_avg_sq": v}

        def by_torch() -> object:
            if clipped:
                torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
            optimizer.step()
            return [torchs, averages, squares]

    competitors = contestants(by_hand, by_fastgrad, by_torch, before)
    if others:
        optax = peers.optax_adam(start, gradients, MAX_NORM if clipped else None)
        if optax:
            competitors[OPTAX] = Contestant(optax)
        if torch and len(shapes) == 1 and not clipped:
            deepspeed = peers.deepspeed_adam(tensors([start[0].copy(), gradients[0], *zeros(shapes * 2)]))
            if deepspeed:
                competitors[DEEPSPEED] = Contestant(deepspeed)

    def least() -> limits.Limit:
        elements = count(shapes)
        streams = [limits.ones(elements) for _ in range(4)]
        update = limits.moving(elements, 4, 3, in_place=True, streams=streams)
        if not clipped:
            return limits.of_memory(update)
        # The gradients are the last stream, which is only read, and are written anew like those of the others.
        norm, written = limits.reading(elements, streams[-1]), np.ones_like(streams[-1])
        return limits.of_memory(norm, update, before=lambda: np.copyto(streams[-1], written))

    return Work(
        f"{'clip + ' if clipped else ''}adam_step {name}{', norms taken before' if fed else ''}",
        name_of(shapes),
        *costs.adam(count(shapes), clipped),
        competitors,
        limit=least,
        # torch and NumPy sum the norm in float32: on 124 M gradients torch's is off by 8e-4, and squares by twice that.
        # DeepSpeed takes 1 - beta2 in float32, 1.3e-5 off.
        rtol=5e-3 if clipped else 5e-5 if others else 1e-5,
    )


@pytest.mark.parametrize(
    ("name", "clipped"), [("one-tensor", False), ("gpt2-small", True), ("200x1000", False), ("200x1000", True)]
)
def bench_adam_step(race, name, clipped):
    race(adam, name, clipped)
