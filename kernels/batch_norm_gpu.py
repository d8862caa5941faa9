"""Launch batch normalisation and its gradients on a device; see batch_norm.cu, and channels.py for what lies between.

What is computed of the channels, some ten launches over (C,) doubles, costs more than a pass where x is small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import channels, cuda
from .activation_gpu import column_sums, column_tile

Array = Any

_ACROSS = cuda.Kernel(
    "batch_norm", "fg_batch_norm_sums_across",
    "dy: T*, x: T*, shift: T*, partial_u: f64*, partial_d: f64*, rows: i64, columns: i64, backward: i32, vectors: i32",
)  # fmt: skip
_ALONG = cuda.Kernel(
    "batch_norm", "fg_batch_norm_sums_along",
    "dy: T*, x: T*, shift: T*, partial_u: f64*, partial_d: f64*, channels: i64, inner: i64, backward: i32, "
    "vectors: i32",
)  # fmt: skip
_APPLY = cuda.Kernel(
    "batch_norm", "fg_batch_norm_apply",
    "dy: T*, x: T*, centre: T*, scale: T*, constant: T*, slope: T*, out: T*, n: i64, channels: i64, inner: i64, "
    "backward: i32, vectors: i32",
)  # fmt: skip


def _total(dy: Array, x: Array, shift: Array, backward: bool) -> tuple[Array, Array]:
    """Return the sums of both terms, each (C,) float64."""
    outer, count, inner = x.shape
    device = cuda.device_of(x)
    totals = tuple(device.xp.zeros((count,), np.float64) for _ in range(2))
    if x.size == 0:
        return totals
    if inner == 1:
        tile = column_tile(device, outer, count, x.dtype, (dy, x, shift))
        partial = [device.xp.empty((tile.row_blocks, count), np.float64) for _ in range(2)]
        _ACROSS(
            device, x.dtype, tile.grid, tile.block, dy, x, shift, *partial, outer, count, backward, tile.width > 1,
            shared=tile.block[0] * tile.block[1] * tile.width * 8,
        )  # fmt: skip
    else:
        partial = [device.xp.empty((outer, count), np.float64) for _ in range(2)]
        width = 16 // x.itemsize
        vectors = inner % width == 0 and all(a.data.ptr % 16 == 0 for a in (dy, x))
        wanted = 1 << (cuda.blocks(inner, width if vectors else 1) - 1).bit_length()
        block = cuda.threads(device, min(wanted, cuda.BLOCK))
        _ALONG(device, x.dtype, outer * count, block, dy, x, shift, *partial, count, inner, backward, vectors)
    for part, total in zip(partial, totals, strict=True):
        column_sums(part, total)
    return totals


def _write(dy: Array, x: Array, by: channels.Coefficients, out: Array) -> None:
    _, count, inner = x.shape
    if x.size == 0:
        return
    device = cuda.device_of(x)
    width, block = 16 // x.itemsize, cuda.threads(device)
    vectors = (count if inner == 1 else inner) % width == 0 and all(a.data.ptr % 16 == 0 for a in (dy, x, out))
    slope = by.centre if by.slope is None else by.slope
    _APPLY(
        device, x.dtype, cuda.blocks(x.size, block * (width if vectors else 1)), block, dy, x, by.centre, by.scale,
        by.constant, slope, out, x.size, count, inner, by.slope is not None, vectors,
    )  # fmt: skip


def batch_norm(
    x: Array, weight: Array, bias: Array, running: tuple[Array, Array] | None, training: bool, momentum: float,
    eps: float, y: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Write y (outer, C, inner); return mean and rstd (C,) in float64; see batch_norm_ref."""
    if training:
        count, shift = x.shape[0] * x.shape[2], x[0, :, 0].copy()
        mean, variance = channels.statistics(shift, *_total(x, x, shift, False), count)
        if running is not None:
            channels.update(running, mean, variance, count, momentum)
    else:
        assert running is not None
        mean, variance = (kept.astype(np.float64) for kept in running)
    rstd = channels.rstd_of(variance, eps)
    _write(x, x, channels.forward(mean, rstd, weight, bias), y)
    return mean, rstd


def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, training: bool, dx: Array, dweight: Array,
    dbias: Array,
) -> None:  # fmt: skip
    """Write dx (outer, C, inner), may be dy, dweight and dbias (C,)."""
    centre = mean.astype(x.dtype)
    sums, products = _total(dy, x, centre, True)
    by, product = channels.backward(mean, rstd, weight, centre, sums, products, max(x.shape[0] * x.shape[2], 1))
    dweight[...], dbias[...] = product.astype(x.dtype), sums.astype(x.dtype)
    if not training:
        nothing = cuda.device_of(x).xp.zeros(centre.shape, centre.dtype)
        by, x = channels.Coefficients(nothing, by.scale, nothing), dy
    _write(dy, x, by, dx)
