"""Launch the mean squared error on a device; see mse.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda, loss_gpu

Array = Any

UNROLL = 4  # as in mse.cu

_MSE = cuda.Kernel("mse", "fg_mse", "pred: T*, target: T*, dpred: T*, partial: f64*, n: i64, scale: A")


def mse(pred: Array, target: Array, dpred: Array) -> Array:
    """Return the loss, 0-d on the device, and write the gradient into dpred (the shape of pred, may be pred)."""
    n = pred.size
    device = cuda.device_of(pred)
    block = cuda.threads(device)
    grid = cuda.blocks(n, block * UNROLL * (16 // pred.itemsize))
    partial = device.xp.empty(grid, np.float64)
    _MSE(device, pred.dtype, grid, block, pred, target, dpred, partial, n, 2 / n)
    return loss_gpu.mean(partial, n, pred.dtype)
