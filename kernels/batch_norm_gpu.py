"""Launch batch normalisation and its gradients on a device; see batch_norm.cu. Three launches each way."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda
from .activation_gpu import column_tile

Array = Any

_ACROSS = cuda.Kernel(
    "batch_norm", "fg_batch_norm_sums_across",
    "dy: T*, x: T*, mean: f64*?, partial_u: f64*, partial_d: f64*, rows: i64, columns: i64, backward: i32, "
    "vectors: i32",
)  # fmt: skip
_ALONG = cuda.Kernel(
    "batch_norm", "fg_batch_norm_sums_along",
    "dy: T*, x: T*, mean: f64*?, partial_u: f64*, partial_d: f64*, channels: i64, inner: i64, backward: i32, "
    "vectors: i32",
)  # fmt: skip
_STATISTICS = cuda.Kernel(
    "batch_norm", "fg_batch_norm_statistics",
    "partial_u: f64*?, partial_d: f64*?, partials: i64, x: T*, inner: i64, weight: T*, bias: T*, running_mean: T*?, "
    "running_var: T*?, mean: f64*, rstd: f64*, centre: T*, scale: T*, constant: T*, channels: i64, n: f64, "
    "momentum: f64, eps: f64, training: i32",
)  # fmt: skip
_GRADIENTS = cuda.Kernel(
    "batch_norm", "fg_batch_norm_gradients",
    "partial_u: f64*, partial_d: f64*, partials: i64, mean: f64*, rstd: f64*, weight: T*, dweight: T*, dbias: T*, "
    "centre: T*, scale: T*, constant: T*, slope: T*, channels: i64, n: f64, training: i32",
)  # fmt: skip
_APPLY = cuda.Kernel(
    "batch_norm", "fg_batch_norm_apply",
    "dy: T*, x: T*, centre: T*, scale: T*, constant: T*, slope: T*, out: T*, n: i64, channels: i64, inner: i64, "
    "backward: i32, vectors: i32",
)  # fmt: skip


def _partial_sums(dy: Array, x: Array, mean: Array | None) -> Array:
    """Return the sums of both terms that the blocks leave, (2, blocks, C) float64; backward where there is a mean."""
    outer, count, inner = x.shape
    device, backward = cuda.device_of(x), mean is not None
    if inner == 1:
        tile = column_tile(device, outer, count, x.dtype, (dy, x))
        partial = device.xp.empty((2, tile.row_blocks, count), np.float64)
        _ACROSS(
            device, x.dtype, tile.grid, tile.block, dy, x, mean, partial[0], partial[1], outer, count, backward,
            tile.width > 1, shared=tile.block[0] * tile.block[1] * tile.width * 8,
        )  # fmt: skip
        return partial
    partial = device.xp.empty((2, outer, count), np.float64)
    width = 16 // x.itemsize
    vectors = inner % width == 0 and all(a.data.ptr % 16 == 0 for a in (dy, x))
    wanted = 1 << (cuda.blocks(inner, width if vectors else 1) - 1).bit_length()
    block = cuda.threads(device, min(wanted, cuda.BLOCK))
    _ALONG(
        device, x.dtype, outer * count, block, dy, x, mean, partial[0], partial[1], count, inner, backward, vectors
    )  # fmt: skip
    return partial


def _over_channels(device: cuda.Device, count: int) -> tuple[int, tuple[int, int]]:
    """Return grid and block for a column of threads each: few channels leave the partial sums to many threads."""
    along = min(cuda.WARP, 1 << (count - 1).bit_length())
    rows = 1 << (cuda.threads(device, cuda.LARGEST_BLOCK) // along).bit_length() - 1
    return cuda.blocks(count, along), (along, rows)


def _apply(dy: Array, x: Array, by: Array, out: Array, backward: bool) -> None:
    """Write the second pass; by (4, C): centre, scale, constant, slope."""
    _, count, inner = x.shape
    device = cuda.device_of(x)
    width, block = 16 // x.itemsize, cuda.threads(device)
    vectors = (count if inner == 1 else inner) % width == 0 and all(a.data.ptr % 16 == 0 for a in (dy, x, out))
    _APPLY(
        device, x.dtype, cuda.blocks(x.size, block * (width if vectors else 1)), block, dy, x, by[0], by[1], by[2],
        by[3], out, x.size, count, inner, backward, vectors,
    )  # fmt: skip


def batch_norm(
    x: Array, weight: Array, bias: Array, running: tuple[Array, Array] | None, training: bool, momentum: float,
    eps: float, y: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Write y (outer, C, inner); return mean and rstd (C,) in float64; see batch_norm_ref."""
    outer, count, inner = x.shape
    device = cuda.device_of(x)
    mean, rstd = (device.xp.empty((count,), np.float64) for _ in range(2))
    if count == 0:
        return mean, rstd
    partial = _partial_sums(x, x, None) if training else None
    by = device.xp.empty((4, count), x.dtype)
    sums = (None, None, 0) if partial is None else (partial[0], partial[1], partial.shape[1])
    kept = (None, None) if running is None else running
    _STATISTICS(
        device, x.dtype, *_over_channels(device, count), *sums, x, inner, weight, bias, *kept, mean, rstd, by[0], by[1],
        by[2], count, outer * inner, momentum, eps, training,
    )  # fmt: skip
    if x.size:
        _apply(x, x, by, y, False)
    return mean, rstd


def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, training: bool, dx: Array, dweight: Array,
    dbias: Array,
) -> None:  # fmt: skip
    """Write dx (outer, C, inner), may be dy, dweight and dbias (C,)."""
    if x.size == 0:
        cuda.fill(0, dweight, dbias)
        return
    outer, count, inner = x.shape
    device = cuda.device_of(x)
    partial = _partial_sums(dy, x, mean)
    by = device.xp.empty((4, count), x.dtype)
    _GRADIENTS(
        device, x.dtype, *_over_channels(device, count), partial[0], partial[1], partial.shape[1], mean, rstd, weight,
        dweight, dbias, by[0], by[1], by[2], by[3], count, outer * inner, training,
    )  # fmt: skip
    if training:
        _apply(dy, x, by, dx, True)
    else:
        _apply(dy, dy, by, dx, False)  # dy scale
