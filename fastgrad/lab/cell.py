"""The plain recurrent cell, which has no gates: a layer as a user of fastgrad writes one of their own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array
from fastgrad.layers import Layer, Parameter

__all__ = ["PlainCell"]


class PlainCell(Layer):
    """h_t = tanh(W_ih x_t + W_hh h_(t-1) + b) from h_0 = 0. Elman, Finding Structure in Time, 1990.

    weight_ih (H, I), weight_hh (H, H) and bias (H,) from U(-a, a), a = 1 / sqrt(H), as those of LSTM and GRU;
    `orthogonal` makes weight_hh that number times an orthogonal matrix instead.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        orthogonal: float | None = None,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        bound = 1.0 / math.sqrt(hidden_size)
        self.weight_ih = Parameter(init.uniform((hidden_size, input_size), bound, rng, dtype))
        self.weight_hh = Parameter(init.uniform((hidden_size, hidden_size), bound, rng, dtype))
        self.bias = Parameter(init.uniform((hidden_size,), bound, rng, dtype))
        if orthogonal is not None:
            self.weight_hh.data[...] = init.orthogonal(
                (hidden_size, hidden_size), gain=orthogonal, rng=rng, dtype=dtype
            )

    def forward(self, x: Array) -> Array:
        """Return h (T, B, H) of every step for x (T, B, I)."""
        steps, batch, _ = x.shape
        h = np.zeros((steps + 1, batch, self.bias.data.size), x.dtype)
        inputs = x @ self.weight_ih.data.T + self.bias.data
        for t in range(steps):
            np.tanh(inputs[t] + h[t] @ self.weight_hh.data.T, out=h[t + 1])
        self._keep(h[1:], (x, h))
        return h[1:]

    def backward(self, dy: Array) -> Array:
        """Return the gradient of x (T, B, I) for dy (T, B, H); adds to the gradients of the parameters."""
        x, h = self._take(dy)
        before, carried = np.empty_like(dy), np.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            before[t] = (dy[t] + carried) * (1 - h[t + 1] * h[t + 1])
            carried = before[t] @ self.weight_hh.data
        rows = before.reshape(-1, before.shape[-1])
        self.weight_ih.accumulate(rows.T @ x.reshape(len(rows), -1))
        self.weight_hh.accumulate(rows.T @ h[:-1].reshape(len(rows), -1))
        self.bias.accumulate(rows.sum(axis=0))
        return before @ self.weight_ih.data
