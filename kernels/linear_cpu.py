"""Affine map y = x W^T + b and its gradients. x (M, K), weight (N, K), bias (N,), y (M, N).

Flops: 2 M N K forward, 4 M N K backward.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .matmul_cpu import matmul, most_steps, product, zeros
from .rows_cpu import add_column, adding_rows
from .simd import Value, traced
from .streams import PARALLEL_SIZE

ROWS = 64  # rows summed in the array's dtype before the double sum takes over
SMALL_ENTRIES = 10  # of a small product in the table
SMALL = 4096  # multiplications of a product that takes less time entry by entry


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


@runtime.kernel
def _small(dtype: np.dtype) -> Any:
    """Write small products a b + start, one for each block, with the bits of `matmul`.

    One of 512 multiplications takes 1.1 us in all, packed and in tiles 3.4; at 8,000 both take the same.

    pointers, of each product: a (M, K), whether it lies as a^T, bytes from row to row as it lies; b (K, N), whether it
    lies as b^T; start (N,), out (M, N), M, K, N
    """
    item = dtype.itemsize

    def entry(m, a, a_step, b, b_step, depth, start, out):
        def add(k: Value, state: list[Value]) -> list[Value]:
            return [m.fma(m.load(a + a_step * k), m.load(b + b_step * k), state[0])]

        m.store(out, m.load(start) + m.loop(0, depth, 1, [m.zero()], add)[0])

    run_entry = traced(entry, dtype, 1)

    def kernel(block, pointers):
        at = SMALL_ENTRIES * block
        a, stride, b, start, out = (
            pointers[at], pointers[at + 2], pointers[at + 3], pointers[at + 5], pointers[at + 6],
        )  # fmt: skip
        rows, depth, columns = pointers[at + 7], pointers[at + 8], pointers[at + 9]
        a_row, a_step = (item, stride) if pointers[at + 1] else (stride, item)
        b_column, b_step = (depth * item, item) if pointers[at + 4] else (item, columns * item)
        for r in range(rows):
            for c in range(columns):
                here = out + (r * columns + c) * item
                run_entry(a + r * a_row, a_step, b + c * b_column, b_step, depth, start + c * item, here)

    return kernel


@functools.cache
def _ones(dtype: np.dtype) -> np.ndarray:
    return np.ones(ROWS, dtype)


def are_small(rows: int, depth: int, columns: int) -> bool:
    """Say whether products of (rows, depth) and (depth, columns) take less time one entry after the other."""
    return 0 < rows <= ROWS and 0 < rows * depth * columns <= SMALL


def small_products(*products: runtime.Pointers) -> runtime.Launch:
    """Return what writes small products, each given as `_small` says."""
    pointers = tuple(itertools.chain(*products))
    return _small(products[0][5].dtype), len(products), pointers, False


def small_sum(matrix: np.ndarray, rows: int, columns: int, out: np.ndarray) -> runtime.Pointers:
    """Return the product with ones, which changes nothing, that sums at most ROWS rows into out (columns,)."""
    dtype = matrix.dtype
    return _ones(dtype), False, 0, matrix, False, zeros(columns, dtype), out, 1, rows, columns


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
    """Write y into `out` (M, N)."""
    columns, depth = weight.shape
    if are_small(x.shape[0], depth, columns) and depth <= most_steps(x.dtype):
        start = zeros(columns, x.dtype) if bias is None else bias
        pointers = x, False, x.strides[0], weight, True, start, out, x.shape[0], depth, columns
        runtime.run(_small(x.dtype), 1, pointers, False)
    else:
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
    columns, depth = weight.shape
    if are_small(x.shape[0], depth, columns) and columns <= most_steps(x.dtype):
        rows, dtype, stride = x.shape[0], x.dtype, dy.strides[0]
        nothing = zeros(depth, dtype)
        products: runtime.Pointers = (dy, True, stride, x, False, nothing, dweight, columns, rows, depth)
        if dx is not None:
            products += dy, False, stride, weight, False, nothing, dx, rows, columns, depth
        if dbias is not None:
            products += small_sum(dy, rows, columns, dbias)
        runtime.run(_small(dtype), len(products) // SMALL_ENTRIES, products, False)
        return
    queue = runtime.Queue()
    if dx is not None:
        product(queue, dy, weight, dx)
    product(queue, dy.T, x, dweight)
    if dbias is not None:
        column_sums(queue, dy, dbias)
    queue.run()
