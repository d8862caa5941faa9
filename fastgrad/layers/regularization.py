"""Dropout as a layer."""

from __future__ import annotations

import numpy as np

from fastgrad._arrays import Array
from fastgrad._checks import number
from fastgrad.layers.base import Layer, Rng
from fastgrad.regularization import dropout, dropout_backward


class Dropout(Layer):
    """In training set entries to 0 with probability p and scale the others by 1 / (1 - p); in evaluation do nothing.

    Attributes:
        seed, offset: of the random numbers, see `fastgrad.dropout`. The seed is drawn from `rng`, and the offset counts
            the forward passes in training: put both back to repeat a run.
    """

    _counters = ("offset",)

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        self.p = number("p", p, 0.0, 1.0)
        self.seed, self.offset = int(np.random.default_rng(rng).integers(1 << 63)), 0

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; in evaluation x itself."""
        if not self.training or self.p == 0.0:
            self._keep(x, None)
            return x
        y = dropout(x, self.p, self.seed, self.offset)
        self._keep(y, self.offset)
        self.offset += 1
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape."""
        offset = self._take(dy)
        return dy if offset is None else dropout_backward(dy, self.p, self.seed, offset)
