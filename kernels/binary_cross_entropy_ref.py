"""Mean binary cross-entropy of logits with its gradient, n entries, s the sigmoid.

loss = mean of  -t log s(z) - (1 - t) log s(-z) = mean of  |z| w + log(1 + exp(-|z|)),  w = t for z < 0, else 1 - t
dz = (s(z) - t) / n = +-(w - s(-|z|)) / n,  - for z < 0
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def binary_cross_entropy(logits: Array, targets: Array, dlogits: Array) -> float:
    """Return the loss and write the gradient into dlogits (the shape of logits, may be either). NaN if empty."""
    n = logits.size
    if n == 0:
        return math.nan
    with np.errstate(all="ignore"):
        size, negative = np.abs(logits), logits < 0
        e = np.exp(-size)
        weight = np.where(negative, targets, 1 - targets)
        loss = np.where(weight == 0, 0, size * weight) + np.log1p(e)
        gradient = weight - e / (1 + e)
        np.divide(np.where(negative, -gradient, gradient), n, out=dlogits)
        return float(np.mean(loss, dtype=np.float64))
