"""Table look-up y_k = weight[indices_k] and the gradient of the table. weight (V, E), indices int64 (n,), y (n, E)."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .simd import STREAM_BYTES, Machine, Value, traced
from .streams import PARALLEL_SIZE


@runtime.kernel
def _scatter_add(dtype: np.dtype) -> Any:
    """Add the rows of dy to the rows that they came from, one strip of columns per block.

    pointers: dy, indices, dweight, n, E. Each strip takes the rows in their order: the sums have a fixed order.
    """
    item, width = dtype.itemsize, STREAM_BYTES // dtype.itemsize

    def add_row(m: Machine, source: Value, target: Value, columns: Value) -> None:
        mask = m.mask(columns)
        m.store(target, m.load(target, mask) + m.load(source, mask), mask)

    add = traced(add_row, dtype)

    def kernel(block, pointers):
        stride = pointers[4] * item
        column = block * width
        for k in range(pointers[3]):
            at = runtime.peek(pointers[1], k) * stride + column * item
            add(pointers[0] + k * stride + column * item, pointers[2] + at, min(width, pointers[4] - column))

    return kernel


def forward(weight: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """Write the chosen rows into `out` (n, E)."""
    np.take(weight, indices, axis=0, out=out, mode="clip")  # already checked; "raise" would buffer the output


def backward(dy: np.ndarray, indices: np.ndarray, dweight: np.ndarray) -> None:
    """Write (not add) the sum of dy over the uses of each row into dweight (V, E); rows not used get 0."""
    dweight[...] = 0
    columns = dweight.shape[1]
    pointers = dy, indices, dweight, indices.size, columns
    blocks = -(-columns * dy.itemsize // STREAM_BYTES) if indices.size else 0
    runtime.run(_scatter_add(dy.dtype), blocks, pointers, dy.size > PARALLEL_SIZE)
