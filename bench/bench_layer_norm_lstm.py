"""LSTM with layer normalisation over sequences, forward and backward.

torch has no such layer: it is a loop over the steps of its operations, with the products of x and their norm taken out
of it. Flops and bytes as in recurrent.py, of the products alone.
"""

from __future__ import annotations

import limit
import numpy as np
import pytest
import recurrent
from inputs import SEQUENCES, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad

EPS = 1e-5


def sequence(T: int, B: int, I: int, H: int) -> Work:  # noqa: E741  the letters of DESIGN and torch
    """A layer over a sequence, with the gradient of its whole output."""
    x, dy = normal(0, T, B, I), normal(1, T, B, H)
    states = [normal(2 + k, B, H, scale=0.5) for k in range(2)]
    weight_ih, weight_hh, bias_ih, bias_hh = recurrent._weights(4, I, H)
    gains = [1 + normal(20 + k, n, scale=0.1) for k, n in enumerate((4 * H, 4 * H, H))]
    weights = [weight_ih, weight_hh, *gains, bias_ih, bias_hh, np.zeros(H, np.float32)]

    def by_fastgrad() -> object:
        y, ends, saved = fastgrad.layer_norm_lstm(x, *states, *weights, eps=EPS)
        return [y, ends, fastgrad.layer_norm_lstm_backward(dy, None, None, saved)]

    by_torch = None
    if torch:
        x_t, dy_t, *others = tensors([x, dy, *states, *weights])
        wanted = [array.requires_grad_() for array in (x_t, *others)]
        norm = torch.nn.functional.layer_norm

        def by_torch() -> object:
            h, c, weight_ih, weight_hh, gain_ih, gain_hh, gain_c, bias_ih, bias_hh, bias_c = others
            from_x = norm(x_t @ weight_ih.T, (4 * H,), gain_ih, bias_ih, EPS)
            outputs = []
            for t in range(T):
                sums = from_x[t] + norm(h @ weight_hh.T, (4 * H,), gain_hh, bias_hh, EPS)
                i, f, g, o = sums.chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(norm(c, (H,), gain_c, bias_c, EPS))
                outputs.append(h)
            y = torch.stack(outputs)
            return [y, h, c, torch.autograd.grad(y, wanted, dy_t)]

    flops = 24 * T * B * H * (I + H)
    return Work(
        f"layer_norm_lstm forward + backward {(T, B, I, H)}",
        f"(T, B, I, H) = {(T, B, I, H)}",
        4 * 2 * (x.size + dy.size + sum(weight.size for weight in weights)),
        flops,
        contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limit.of_products(flops),
        rtol=1e-3,  # float32 in three orders of summation, through the statistics of every step
    )


@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
def bench_layer_norm_lstm(race, sizes):
    race(sequence, *sizes)
