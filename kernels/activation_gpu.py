"""Launch activations and their backward pass on a device; see activation.cu.

The sum over rows goes by ROWS_EACH rows for each row of threads, see columns.cuh; the partial sums are less than a
hundredth of the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

Array = Any

UNROLL = 4  # as in activation.cu
ROWS_EACH = 16  # as in columns.cuh

_FORWARD = cuda.Kernel("activation", "fg_activation", "x: T*, y: T*, n: i64, p0: A, p1: A", ["kind"])
_BACKWARD = cuda.Kernel("activation", "fg_activation_backward", "dy: T*, x: T*, dx: T*, n: i64, p0: A, p1: A", ["kind"])
_BACKWARD_ROWS = cuda.Kernel(
    "activation",
    "fg_activation_backward_rows",
    "dy: T*, x: T*, dx: T*, partial: A*, rows: i64, columns: i64, vectors: i32, p0: A, p1: A",
    ["kind"],
)
_COLUMN_SUMS = cuda.Kernel("column_sums", "fg_column_sums", "partial: A*, out: T*, count: i64, columns: i64")


def two_parameters(params: tuple[float, ...]) -> tuple[float, float]:
    first, second, *_ = (*params, 0.0, 0.0)
    return first, second


def activation(x: Array, kind: str, params: tuple[float, ...], out: Array) -> None:
    """Write f(x) into `out` (the shape of x; may be x)."""
    device = cuda.device_of(x)
    block = cuda.threads(device)
    span = block * UNROLL * (16 // x.itemsize)
    _FORWARD(device, x.dtype, cuda.blocks(x.size, span), block, x, out, x.size, *two_parameters(params), kind=kind)


def activation_backward(
    dy: Array, x: Array, kind: str, params: tuple[float, ...], out: Array, bias_grad: Array | None
) -> None:
    """Write dy * f'(x) into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    device = cuda.device_of(x)
    if bias_grad is None:
        block = cuda.threads(device)
        span = block * UNROLL * (16 // x.itemsize)
        grid = cuda.blocks(x.size, span)
        _BACKWARD(device, x.dtype, grid, block, dy, x, out, x.size, *two_parameters(params), kind=kind)
        return
    columns = bias_grad.size
    rows = x.size // columns if columns else 0
    tile = column_tile(device, rows, columns, x.dtype, (dy, x, out))
    partial = device.xp.empty((tile.row_blocks, columns), x.dtype)
    _BACKWARD_ROWS(
        device, x.dtype, tile.grid, tile.block, dy, x, out, partial, rows, columns, tile.width > 1,
        *two_parameters(params), shared=tile.block[0] * tile.block[1] * tile.width * x.itemsize, kind=kind,
    )  # fmt: skip
    column_sums(partial, bias_grad)


class Tile:
    """How a (rows, columns) matrix is cut for a pass that also sums its rows.

    Attributes:
        width: columns for each thread, 16 bytes of them where the layout allows.
        block: threads along the columns and along the rows.
        row_blocks: blocks along the rows.
        grid: all blocks.
    """

    __slots__ = ("block", "grid", "row_blocks", "width")

    def __init__(self, width: int, block: tuple[int, int], row_blocks: int, across: int) -> None:
        self.width, self.block, self.row_blocks, self.grid = width, block, row_blocks, row_blocks * across


def column_tile(device: cuda.Device, rows: int, columns: int, dtype: np.dtype, arrays: tuple[Array, ...]) -> Tile:
    """Return the tile of a matrix: a row of threads takes up to 32 vectors of a row, narrow matrices fewer."""
    width = 16 // dtype.itemsize
    if columns % width or any(a.data.ptr % 16 for a in arrays):
        width = 1
    threads = cuda.threads(device)
    along = min(cuda.WARP, 1 << max(0, -(-columns // width) - 1).bit_length())
    block = (along, threads // along)
    return Tile(width, block, cuda.blocks(rows, block[1] * ROWS_EACH), cuda.blocks(columns, along * width))


def column_sums(partial: Array, out: Array) -> None:
    """Write the sum of `partial` (count, N) over its rows into `out` (N,), added up in double."""
    device = cuda.device_of(out)
    count, columns = partial.shape
    if columns == 0:
        return
    # Few columns leave the rows to many threads: of one column of 100,000 rows, each takes 100.
    along = min(cuda.WARP, 1 << (columns - 1).bit_length())
    rows = 1 << (cuda.threads(device, cuda.LARGEST_BLOCK) // along).bit_length() - 1
    _COLUMN_SUMS(device, out.dtype, cuda.blocks(columns, along), (along, rows), partial, out, count, columns)
