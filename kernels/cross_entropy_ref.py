"""Mean softmax cross-entropy with its gradient, M counted rows of V classes, those whose target is not ignored.

q_j = (1 - smoothing) [j = target] + smoothing / V
loss = mean over rows of  log sum_j exp(z_j) - sum_j q_j z_j,    dz_j = (softmax(z)_j - q_j) / M
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def cross_entropy(
    logits: Array, targets: Array, dlogits: Array, smoothing: float = 0.0, ignored: int | None = None
) -> float:
    """Return the loss and write the gradient into dlogits (M, V), may be logits; targets int64 (M,). NaN if M = 0.

    Where a target is `ignored` the gradient is 0 and the row is not counted.
    """
    counted = np.flatnonzero(targets != ignored) if ignored is not None else np.arange(len(targets))
    if len(counted) < len(targets):
        part = logits[counted]
        loss = cross_entropy(part, targets[counted], part, smoothing)
        dlogits[...] = 0
        dlogits[counted] = part
        return loss
    M, V = logits.shape
    if M == 0:
        return math.nan
    rows = np.arange(M)
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        loss = np.log(total[:, 0]) - (1 - smoothing) * shifted[rows, targets]
        gradient = exp / total
        gradient[rows, targets] -= 1 - smoothing
        if smoothing:
            loss -= smoothing * shifted.mean(axis=1)
            gradient -= smoothing / V
        np.divide(gradient, M, out=dlogits)
        return float(np.mean(loss))
