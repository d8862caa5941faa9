"""What the options of an optimizer cost: a step with each, on 32 matrices of 4 MiB, or 200 tensors of 1,000.

Bytes a parameter of a step: Adam 28, AMSGrad 36, centred RMSprop 28. A range of the weights is part of fastgrad's
update; what else is done to them afterwards is a pass of its own, as all of it is in torch: 12 bytes for a mask, 12 for
a norm. torch divides accumulated gradients in a pass of 8 bytes, for which fastgrad takes none; its schedulers work in
Python, as fastgrad's do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from inputs import LISTS, QUICK, copies, count, name_of, normals
from machine import torch
from work import NUMPY, TORCH, Work, contestants, on_reference, restore, tensors

import fastgrad
from fastgrad import pruning, schedules
from fastgrad.profiling import limits

MATRICES = [(64, 64)] * 4 if QUICK else [(1024, 1024)] * 32
RANGE, NORM, MICRO_BATCHES, LR = (-0.03, 0.03), 15.0, 4, 1e-3
Arrays = Sequence[np.ndarray]

# option -> the optimizer, its arguments, bytes a parameter
OPTIONS: dict[str, tuple[str, dict[str, Any], int]] = {
    "none": ("Adam", {}, 28),
    "amsgrad": ("Adam", {"amsgrad": True}, 36),
    "centered": ("RMSprop", {"centered": True}, 28),
    "weight_range": ("Adam", {"weight_range": RANGE}, 28),
    "max_weight_norm": ("Adam", {"max_weight_norm": NORM}, 40),
    "masks": ("Adam", {}, 40),
    "grad_scale": ("Adam", {}, 28),
    "schedule": ("Adam", {"lr": schedules.Cosine(LR, 1000)}, 28),
}


def _masks(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [(values > 0).astype(np.float32) for values in normals(2, shapes)]


def _by_fastgrad(option: str, params: list[np.ndarray], grads: Arrays, masks: Arrays) -> Callable[[], object]:
    kind, arguments, _ = OPTIONS[option]
    optimizer = getattr(fastgrad, kind)(params, **({"lr": LR} | arguments))
    scale = float(MICRO_BATCHES) if option == "grad_scale" else None

    def run() -> object:
        optimizer.step(grads, grad_scale=scale)
        if option == "masks":
            pruning.apply_masks(params, masks)
        return params

    return run


def _by_torch(option: str, arrays: list[np.ndarray], grads: Arrays, masks: Arrays) -> Callable[[], object]:
    kind, arguments, _ = OPTIONS[option]
    params, masks_t, grads_t = [p.requires_grad_() for p in tensors(arrays)], tensors(masks), tensors(grads)
    own = {name: value for name, value in arguments.items() if name in ("amsgrad", "centered")}
    own |= {"fused": True} if kind == "Adam" else {"foreach": True}
    optimizer = getattr(torch.optim, kind)(params, lr=LR, **own)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000) if option == "schedule" else None
    for parameter, gradient in zip(params, grads_t, strict=True):
        parameter.grad = gradient

    @torch.no_grad()
    def run() -> object:
        if option == "grad_scale":
            torch._foreach_div_(grads_t, MICRO_BATCHES)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if option == "weight_range":
            torch._foreach_clamp_min_(params, RANGE[0])
            torch._foreach_clamp_max_(params, RANGE[1])
        elif option == "max_weight_norm":
            norms = torch.stack(torch._foreach_norm(params))
            torch._foreach_mul_(params, list((NORM / (norms + 1e-6)).clamp_(max=1.0)))
        elif option == "masks":
            torch._foreach_mul_(params, masks_t)
        return arrays

    return run


def step(option: str, small: bool = False) -> Work:
    """A step with one option."""
    shapes = LISTS["200x1000"] if small else MATRICES
    start, gradients = normals(0, shapes, scale=0.02), normals(1, shapes)
    masks = _masks(shapes) if option == "masks" else []
    # torch divides the gradients where they are: they are written anew before each of its steps.
    torch_grads = copies(gradients) if option == "grad_scale" else gradients
    before = {TORCH: restore(torch_grads, gradients)} if option == "grad_scale" and torch else {}
    competitors = contestants(
        on_reference(_by_fastgrad(option, copies(start), gradients, masks)),
        _by_fastgrad(option, copies(start), gradients, masks),
        _by_torch(option, copies(start), torch_grads, masks) if torch else None,
        before,
    )
    assert NUMPY in competitors
    size = OPTIONS[option][2] * count(shapes)
    return Work(
        f"step with {option}{', 200 tensors' if small else ''}",
        name_of(shapes),
        size,
        12 * count(shapes),
        competitors,
        limit=lambda: limits.of_memory(limits.moving(count(shapes), 4, 3, in_place=True)),
        rtol=1e-4,
    )


@pytest.mark.parametrize("option", OPTIONS)
def bench_step_with(race, option):
    race(step, option)


def bench_step_with_schedule_of_small_tensors(race):
    race(step, "schedule", True)
