"""Softmax cross-entropy with its gradient. Bytes a logit: 8 (read, gradient written). Flops: 0, see README.md."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import QUICK, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad
from fastgrad.profiling import costs

# Rows and classes: a step of the character model, and a vocabulary of a language model.
SIZES = [(20, 96), (8, 1000)] if QUICK else [(2048, 96), (512, 50257)]


def loss(M: int, V: int) -> Work:
    """Mean loss and gradient of the logits, out given."""
    logits, targets = normal(0, M, V, scale=3.0), np.random.default_rng(1).integers(V, size=M)
    own, hand = np.empty_like(logits), np.empty_like(logits)
    by_torch = None
    if torch:
        aten, (z, t) = torch.ops.aten, tensors([logits, targets])
        log_p, dlog_p, dz = tensors([np.empty_like(logits) for _ in range(3)])
        one = torch.ones(())

        @torch.no_grad()
        def by_torch() -> object:
            # The four passes of autograd for cross_entropy, into arrays given.
            aten._log_softmax.out(z, 1, False, out=log_p)
            value, weight = aten.nll_loss_forward(log_p, t, None, 1, -100)
            aten.nll_loss_backward.grad_input(one, log_p, t, None, 1, -100, weight, grad_input=dlog_p)
            aten._log_softmax_backward_data.out(dlog_p, log_p, 1, torch.float32, out=dz)
            return [value, dz]

    return Work(
        f"softmax_cross_entropy {M} x {V}",
        f"{M}x{V}",
        *costs.cross_entropy(logits.size),
        contestants(
            on_reference(lambda: fastgrad.softmax_cross_entropy(logits, targets, out=hand)),
            lambda: fastgrad.softmax_cross_entropy(logits, targets, out=own),
            by_torch,
        ),
        rtol=1e-4,
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def bench_softmax_cross_entropy(race, sizes):
    race(loss, *sizes)
