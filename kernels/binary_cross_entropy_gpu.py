"""Launch the mean binary cross-entropy of logits on a device; see binary_cross_entropy.cu."""

from __future__ import annotations

from typing import Any

from . import cuda
from .mse_gpu import mean_loss

Array = Any

_LOSS = cuda.Kernel(
    "binary_cross_entropy",
    "fg_binary_cross_entropy",
    "logits: T*, targets: T*, dlogits: T*, partial: f64*, n: i64, scale: A",
)


def binary_cross_entropy(logits: Array, targets: Array, dlogits: Array) -> Array:
    """Return the loss, 0-d on the device, and write the gradient into dlogits (the shape of logits, may be either)."""
    return mean_loss(_LOSS, logits, targets, dlogits, 1)
