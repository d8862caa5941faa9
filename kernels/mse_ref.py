"""Mean squared error with its gradient: loss = mean of (p - t)^2, dp = 2 (p - t) / n."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def mse(pred: Array, target: Array, dpred: Array) -> float:
    """Return the loss and write the gradient into dpred (the shape of pred, may be pred). NaN for empty arrays."""
    if pred.size == 0:
        return math.nan
    with np.errstate(all="ignore"):
        error = pred - target
        loss = np.mean(error * error)
        np.multiply(error, 2 / pred.size, out=dpred)
    return float(loss)
