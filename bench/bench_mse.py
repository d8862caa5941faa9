"""Mean squared error with its gradient. Bytes an element: 12 (two read, gradient written). Flops: 4."""

from __future__ import annotations

import numpy as np
from inputs import MATRIX, name_of, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad
from fastgrad.profiling import costs


def loss() -> Work:
    """Mean loss and gradient of the prediction, out given."""
    pred, target = normal(0, *MATRIX), normal(1, *MATRIX)
    own, hand = np.empty_like(pred), np.empty_like(pred)
    by_torch = None
    if torch:
        p, t, dp = tensors([pred, target, np.empty_like(pred)])
        one = torch.ones(())

        @torch.no_grad()
        def by_torch() -> object:
            value = torch.nn.functional.mse_loss(p, t)
            return [value, torch.ops.aten.mse_loss_backward.grad_input(one, p, t, 1, grad_input=dp)]

    return Work(
        "mse",
        name_of([MATRIX]),
        *costs.mse(pred.size),
        contestants(
            on_reference(lambda: fastgrad.mse(pred, target, out=hand)),
            lambda: fastgrad.mse(pred, target, out=own),
            by_torch,
        ),
        rtol=1e-4,
    )


def bench_mse(race):
    race(loss)
