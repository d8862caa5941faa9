"""Mean binary cross-entropy of logits with its gradient in one pass; see binary_cross_entropy_ref.py.

No digit is lost in the tails: where t = 1 and s(z) is 1 to the last bit, loss and gradient are still exp(-z).

Bytes: 12 an element in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime, vecmath
from .mean_loss import mean_loss, mean_loss_kernel


@runtime.kernel
def _binary_cross_entropy(dtype: np.dtype) -> Any:
    def cross_entropy(m, z, t, factor, to_double, wide, total):
        size, negative = m.abs(z), z < 0.0
        e = vecmath.exp_negative(m, -size)
        weight = m.select(negative, t, m.full(1.0) - t)
        nothing = (weight <= 0.0) & (weight >= 0.0)  # also of an infinite logit
        loss = m.select(nothing, 0.0, size * weight) + vecmath.log1p_unit(m, e)
        gradient = (weight - e / (e + 1.0)) * factor
        return m.select(negative, -gradient, gradient), total + to_double(loss)

    return mean_loss_kernel(cross_entropy, dtype)


def binary_cross_entropy(logits: np.ndarray, targets: np.ndarray, dlogits: np.ndarray) -> float:
    """Return the loss and write the gradient into dlogits (the shape of logits, may be either). NaN if empty."""
    return mean_loss(_binary_cross_entropy(logits.dtype), logits, targets, dlogits, 1.0)
