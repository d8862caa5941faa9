"""Launch layer normalisation and its gradients on a device; see layer_norm.cu.

A block backward takes a 1024th of the rows, 64 at most: the partial sums of 8192 rows are an eighth of the bytes of
an array, and every multiprocessor of an H200 has 7 blocks.
"""

from __future__ import annotations

from typing import Any

from . import cuda
from .activation_gpu import column_sums

Array = Any

MOST_ROWS = 64  # of a block backward
BLOCKS = 1024  # backward, at least, where there are so many rows

_FORWARD = cuda.Kernel(
    "layer_norm", "fg_layer_norm",
    "x: T*, weight: T*, bias: T*, y: T*, mean: f64*, rstd: f64*, columns: i64, eps: f64, vectors: i32",
)  # fmt: skip
_BACKWARD = cuda.Kernel(
    "layer_norm", "fg_layer_norm_backward",
    "dy: T*, x: T*, weight: T*, mean: f64*, rstd: f64*, dx: T*, partial_w: A*, partial_b: A*, rows: i64, columns: i64, "
    "each: i64, vectors: i32, in_shared: i32",
)  # fmt: skip


def _block(device: cuda.Device, columns: int, arrays: tuple[Array, ...]) -> tuple[int, bool]:
    """Return the threads that take a row, one for each 16 bytes of a short one, and whether 16 bytes at a time."""
    width = 16 // arrays[0].itemsize
    vectors = columns % width == 0 and all(a.data.ptr % 16 == 0 for a in arrays)
    wanted = 1 << (cuda.blocks(columns, width if vectors else 1) - 1).bit_length()
    return cuda.threads(device, min(wanted, cuda.BLOCK if columns <= 16384 else cuda.LARGEST_BLOCK)), vectors


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, y: Array, mean: Array, rstd: Array) -> None:
    """Write y (M, N), and mean and rstd (M,) of each row, both float64; x (M, N), weight and bias (N,)."""
    rows, columns = x.shape
    if x.size == 0:
        return
    device = cuda.device_of(x)
    block, vectors = _block(device, columns, (x, weight, bias, y))
    _FORWARD(device, x.dtype, rows, block, x, weight, bias, y, mean, rstd, columns, eps, vectors)


def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    """Write dx (M, N), may be dy or x, dweight and dbias (N,); mean and rstd (M,) as `layer_norm` wrote them."""
    rows, columns = x.shape
    if x.size == 0:
        cuda.fill(0, dweight, dbias)
        return
    device = cuda.device_of(x)
    block, vectors = _block(device, columns, (dy, x, weight, dx))
    each = min(MOST_ROWS, cuda.blocks(rows, BLOCKS))
    blocks = cuda.blocks(rows, each)
    partial_w, partial_b = (device.xp.empty((blocks, columns), x.dtype) for _ in range(2))
    room = 2 * columns * x.itemsize
    # parts of the block's own sums take 512 bytes of what a block may have unasked.
    in_shared = room <= cuda.SHARED_UNASKED - 1024
    _BACKWARD(
        device, x.dtype, blocks, block, dy, x, weight, mean, rstd, dx, partial_w, partial_b, rows, columns, each,
        vectors, in_shared, shared=room if in_shared else 0,
    )  # fmt: skip
    column_sums(partial_w, dweight)
    column_sums(partial_b, dbias)
