"""Table look-up y_k = weight[indices_k] and the gradient of the table. weight (V, E), indices int64 (n,), y (n, E)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def forward(weight: Array, indices: Array, out: Array) -> None:
    """Write the chosen rows into `out` (n, E)."""
    out[...] = weight[indices]


def backward(dy: Array, indices: Array, dweight: Array) -> None:
    """Write (not add) the sum of dy over the uses of each row into dweight (V, E); rows not used get 0."""
    dweight[...] = 0
    np.add.at(dweight, indices, dy)
