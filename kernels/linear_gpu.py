"""Launch the affine map y = x W^T + b and its gradients on a device. x (M, K), weight (N, K), bias (N,), y (M, N).

Flops: 2 M N K forward, 4 M N K backward, all in products of cuBLAS; the bias and its gradient pass over y and dy once.
"""

from __future__ import annotations

from typing import Any

from . import cuda
from .activation_gpu import column_sums, column_tile
from .matmul_gpu import matmul

Array = Any

_ADD_BIAS = cuda.Kernel("linear", "fg_add_bias", "y: T*, bias: T*, rows: i64, columns: i64, vectors: i32")
_PARTIAL_SUMS = cuda.Kernel(
    "column_sums", "fg_matrix_partial_sums", "matrix: T*, partial: A*, rows: i64, columns: i64, vectors: i32"
)


def add_bias(y: Array, bias: Array) -> None:
    """Add `bias` (N,) to each row of y (M, N)."""
    rows, columns = y.shape
    device = cuda.device_of(y)
    tile = column_tile(device, rows, columns, y.dtype, (y, bias))
    _ADD_BIAS(device, y.dtype, tile.grid, tile.block, y, bias, rows, columns, tile.width > 1)


def sum_rows(matrix: Array, out: Array) -> None:
    """Write the sum over the rows of a matrix (M, N) into `out` (N,), in a fixed order."""
    rows, columns = matrix.shape
    if rows == 0:
        cuda.fill(0, out)
        return
    device = cuda.device_of(out)
    tile = column_tile(device, rows, columns, matrix.dtype, (matrix,))
    partial = device.xp.empty((tile.row_blocks, columns), matrix.dtype)
    _PARTIAL_SUMS(
        device, matrix.dtype, tile.grid, tile.block, matrix, partial, rows, columns, tile.width > 1,
        shared=tile.block[0] * tile.block[1] * tile.width * matrix.itemsize,
    )  # fmt: skip
    column_sums(partial, out)


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """Write y into `out` (M, N)."""
    matmul(x, weight, out, transpose_b=True)
    if bias is not None:
        add_bias(out, bias)


def backward(dy: Array, x: Array, weight: Array, dx: Array | None, dweight: Array, dbias: Array | None) -> None:
    """Write (not add) dx = dy W, dweight = dy^T x and dbias = sum of dy over its rows; dx and dbias may be None."""
    if dx is not None:
        matmul(dy, weight, dx)
    matmul(dy, x, dweight, transpose_a=True)
    if dbias is not None:
        sum_rows(dy, dbias)
