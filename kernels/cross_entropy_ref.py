"""Mean softmax cross-entropy with its gradient, M rows of V classes.

loss = mean over rows of  log sum_j exp(z_j) - z_target,    dz_j = (softmax(z)_j - [j = target]) / M
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def cross_entropy(logits: Array, targets: Array, dlogits: Array) -> float:
    """Return the loss and write the gradient into dlogits (M, V), may be logits; targets int64 (M,). NaN if M = 0."""
    M = logits.shape[0]
    if M == 0:
        return math.nan
    rows = np.arange(M)
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total[:, 0]) - shifted[rows, targets])
        gradient = exp / total
        gradient[rows, targets] -= 1
        np.divide(gradient, M, out=dlogits)
    return float(loss)
