"""Affine map y = x W^T + b and its gradients. x (M, K), weight (N, K), bias (N,), y (M, N).

Flops: 2 M N K forward, 4 M N K backward.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .matmul_cpu import matmul, product
from .rows_cpu import add_column, adding_rows
from .simd import Value, traced
from .streams import PARALLEL_SIZE

ROWS = 64  # rows summed in the array's dtype before the double sum takes over


@runtime.kernel
def _sum_rows(dtype: np.dtype) -> Any:
    """Sum ROWS rows. pointers: matrix, rows, columns, row stride in bytes, sums (blocks, columns)."""
    item = dtype.itemsize

    def strip(m, matrix, rows, stride, sums, columns):
        def body(index: Value, mask: Value | None) -> None:
            at = matrix + index * item

            def add(row: Value, state: list[Value]) -> list[Value]:
                return [state[0] + m.load(at + stride * row, mask)]

            m.store(sums + index * item, m.loop(0, rows, 1, [m.zero()], add)[0], mask)

        m.over(0, columns, body)

    run_strip = traced(strip, dtype)

    def kernel(block, pointers):
        rows, columns, stride = pointers[1], pointers[2], pointers[3]
        first = block * ROWS
        run_strip(
            pointers[0] + first * stride,
            min(ROWS, rows - first),
            stride,
            pointers[4] + block * columns * item,
            columns,
        )

    return kernel


def column_sums(queue: runtime.Queue, matrix: np.ndarray, out: np.ndarray) -> None:
    """Have the queue write the sum over the rows of a row-major matrix (M, N) into out (N,), in a fixed order."""
    rows, columns = matrix.shape
    if rows == 0 or columns == 0:
        out[...] = 0
        return
    blocks, dtype = -(-rows // ROWS), matrix.dtype
    sums = empty((blocks, columns), dtype)
    pointers = matrix, rows, columns, matrix.strides[0], sums
    queue.launches.append((_sum_rows(dtype), blocks, pointers, matrix.size > PARALLEL_SIZE))
    if columns == 1 and blocks >= 8:
        queue.run()
        add_column(sums, out)
    else:
        queue.launches.append(adding_rows(sums, columns * dtype.itemsize, blocks, columns, out))


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
    """Write y into `out` (M, N)."""
    matmul(x, weight.T, out, bias)


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray | None,
    dweight: np.ndarray,
    dbias: np.ndarray | None,
) -> None:
    """Write (not add) dx = dy W, dweight = dy^T x and dbias = sum of dy over its rows; dx and dbias may be None."""
    queue = runtime.Queue()
    if dx is not None:
        product(queue, dy, weight, dx)
    product(queue, dy.T, x, dweight)
    if dbias is not None:
        column_sums(queue, dy, dbias)
    queue.run()
