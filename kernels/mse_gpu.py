"""Launch the mean squared error on a device; see mse.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda, loss_gpu

Array = Any

UNROLL = 4  # as in mean_loss.cuh

_MSE = cuda.Kernel("mse", "fg_mse", "pred: T*, target: T*, dpred: T*, partial: f64*, n: i64, scale: A")


def mean_loss(kernel: cuda.Kernel, pred: Array, target: Array, dpred: Array, numerator: float) -> Array:
    """Run a kernel made of mean_loss.cuh, with the factor numerator / n; return the mean, 0-d on the device."""
    n = pred.size
    device = cuda.device_of(pred)
    block = cuda.threads(device)
    grid = cuda.blocks(n, block * UNROLL * (16 // pred.itemsize))
    partial = device.xp.empty(grid, np.float64)
    kernel(device, pred.dtype, grid, block, pred, target, dpred, partial, n, numerator / n)
    return loss_gpu.mean(partial, n, pred.dtype)


def mse(pred: Array, target: Array, dpred: Array) -> Array:
    """Return the loss, 0-d on the device, and write the gradient into dpred (the shape of pred, may be pred)."""
    return mean_loss(_MSE, pred, target, dpred, 2)
