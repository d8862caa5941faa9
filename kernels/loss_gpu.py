"""Launch what losses have in common on a device; see loss.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

Array = Any

_MEAN = cuda.Kernel("loss", "fg_loss_mean", "terms: f64*, loss: T*, count: i64, divisor: f64, counted: i64*?")


def mean(terms: Array, divisor: int, dtype: np.dtype, counted: Array | None = None) -> Array:
    """Return the sum of `terms` (count,) float64 over `divisor`, a 0-d array of the dtype on the device.

    counted : (1,) int64, stands for divisor where given
    """
    device = cuda.device_of(terms)
    loss = device.xp.empty((), dtype)
    _MEAN(device, dtype, 1, cuda.threads(device, cuda.LARGEST_BLOCK), terms, loss, terms.size, divisor, counted)
    return loss
