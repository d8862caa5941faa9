"""Launch an activation with dropout, and its backward pass, on a device; see activation_dropout.cu."""

from __future__ import annotations

from typing import Any

from . import cuda
from .activation_gpu import column_sums, column_tile, two_parameters
from .dropout_gpu import RANDOM, by_vectors, grid_of_counters

Array = Any

_REST = f"{RANDOM}, vectors: i32, p0: A, p1: A"
_FORWARD = cuda.Kernel("activation_dropout", "fg_activation_dropout", f"x: T*, out: T*, n: i64, {_REST}", ["kind"])
_BACKWARD = cuda.Kernel(
    "activation_dropout", "fg_activation_dropout_backward", f"dy: T*, x: T*, dx: T*, n: i64, {_REST}", ["kind"]
)
_BACKWARD_ROWS = cuda.Kernel(
    "activation_dropout",
    "fg_activation_dropout_backward_rows",
    f"dy: T*, x: T*, dx: T*, partial: A*, rows: i64, columns: i64, {_REST}",
    ["kind"],
)


def activation_dropout(
    x: Array, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int, offset: int, out: Array
) -> None:
    """Write f(x) scale where the random number is at least `threshold`, else 0, into `out` (may be x)."""
    device = cuda.device_of(x)
    block = cuda.threads(device)
    grid = grid_of_counters(x.size, x.itemsize, block)
    _FORWARD(
        device, x.dtype, grid, block, x, out, x.size, seed, offset, threshold, scale, by_vectors(x, out),
        *two_parameters(params), kind=kind,
    )  # fmt: skip


def activation_dropout_backward(
    dy: Array, x: Array, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int, offset: int,
    out: Array, bias_grad: Array | None,
) -> None:  # fmt: skip
    """Write dx into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    device = cuda.device_of(x)
    random, p = (seed, offset, threshold, scale), two_parameters(params)
    if bias_grad is None:
        block = cuda.threads(device)
        grid = grid_of_counters(x.size, x.itemsize, block)
        _BACKWARD(device, x.dtype, grid, block, dy, x, out, x.size, *random, by_vectors(dy, x, out), *p, kind=kind)
        return
    columns = bias_grad.size
    rows = x.size // columns if columns else 0
    tile = column_tile(device, rows, columns, x.dtype, (dy, x, out))
    partial = device.xp.empty((tile.row_blocks, columns), x.dtype)
    _BACKWARD_ROWS(
        device, x.dtype, tile.grid, tile.block, dy, x, out, partial, rows, columns, *random, tile.width > 1, *p,
        shared=tile.block[0] * tile.block[1] * tile.width * x.itemsize, kind=kind,
    )  # fmt: skip
    column_sums(partial, bias_grad)
