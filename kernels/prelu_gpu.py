"""Launch PReLU and its gradients on a device; see prelu.cu.

The partial sums of the weights' gradient are less than a thirtieth of the bytes where rows are not shorter than 32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import cuda
from .activation_gpu import column_sums, column_tile

Array = Any

ITEMS = 8  # as in prelu.cu

_ACROSS = cuda.Kernel(
    "prelu", "fg_prelu_across", "x: T*, weight: T*, y: T*, rows: i64, columns: i64, vectors: i32"
)  # fmt: skip
_BACKWARD_ACROSS = cuda.Kernel(
    "prelu", "fg_prelu_backward_across",
    "dy: T*, x: T*, weight: T*, dx: T*, partial: A*, rows: i64, columns: i64, vectors: i32",
)  # fmt: skip
_ALONG = cuda.Kernel(
    "prelu", "fg_prelu_along",
    "x: T*, weight: T*, y: T*, rows: i64, channels: i64, inner: i64, pieces: i64, width: i32, vectors: i32",
)  # fmt: skip
_BACKWARD_ALONG = cuda.Kernel(
    "prelu", "fg_prelu_backward_along",
    "dy: T*, x: T*, weight: T*, dx: T*, partial: A*, rows: i64, channels: i64, inner: i64, pieces: i64, width: i32, "
    "vectors: i32",
)  # fmt: skip


class _Rows(NamedTuple):
    """How rows of one weight each are cut: pieces of a row, threads for each, if 16 bytes at a time; the launch."""

    pieces: int
    width: int
    vectors: bool
    grid: int
    block: int


def _rows(device: cuda.Device, x: Array, arrays: tuple[Array, ...]) -> _Rows:
    outer, channels, inner = x.shape
    per_vector = 16 // x.itemsize
    aligned = all(a.data.ptr % 16 == 0 for a in arrays)
    vectors = aligned and (inner % per_vector == 0 or outer * channels == 1)
    per_thread = per_vector if vectors else 1
    width = min(cuda.WARP, 1 << (cuda.blocks(inner, per_thread) - 1).bit_length())
    pieces = cuda.blocks(inner, width * per_thread * ITEMS)
    block = cuda.threads(device)
    return _Rows(pieces, width, vectors, cuda.blocks(outer * channels * pieces * width, block), block)


def prelu(x: Array, weight: Array, out: Array) -> None:
    """Write y into `out` (outer, C, inner), may be x; x (outer, C, inner), weight (C,)."""
    outer, channels, inner = x.shape
    device = cuda.device_of(x)
    if x.size == 0:
        return
    if inner == 1:
        tile = column_tile(device, outer, channels, x.dtype, (x, weight, out))
        _ACROSS(device, x.dtype, tile.grid, tile.block, x, weight, out, outer, channels, tile.width > 1)
        return
    rows = _rows(device, x, (x, out))
    _ALONG(
        device, x.dtype, rows.grid, rows.block, x, weight, out, outer * channels, channels, inner, rows.pieces,
        rows.width, rows.vectors,
    )  # fmt: skip


def prelu_backward(dy: Array, x: Array, weight: Array, dx: Array, dweight: Array) -> None:
    """Write dx (outer, C, inner), may be dy or x, and dweight (C,): dw = sum of dy min(x, 0)."""
    outer, channels, inner = x.shape
    device = cuda.device_of(x)
    if x.size == 0:
        cuda.fill(0, dweight)
        return
    if inner == 1:
        tile = column_tile(device, outer, channels, x.dtype, (dy, x, weight, dx))
        partial = device.xp.empty((tile.row_blocks, channels), x.dtype)
        _BACKWARD_ACROSS(
            device, x.dtype, tile.grid, tile.block, dy, x, weight, dx, partial, outer, channels, tile.width > 1,
            shared=tile.block[0] * tile.block[1] * tile.width * x.itemsize,
        )  # fmt: skip
    else:
        rows = _rows(device, x, (dy, x, dx))
        partial = device.xp.empty((outer * rows.pieces, channels), x.dtype)
        _BACKWARD_ALONG(
            device, x.dtype, rows.grid, rows.block, dy, x, weight, dx, partial, outer * channels, channels, inner,
            rows.pieces, rows.width, rows.vectors,
        )  # fmt: skip
    column_sums(partial, dweight)
