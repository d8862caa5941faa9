"""The in-place half of clipping: multiply arrays by their coefficients, or clamp their entries."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def scale(arrays: list[Array], coefficients: list[float]) -> None:
    """Multiply each array in place by its coefficient; 1.0 leaves the array untouched."""
    with np.errstate(all="ignore"):
        for a, c in zip(arrays, coefficients, strict=True):
            if c != 1.0:
                a *= c


def clip_by_value(arrays: list[Array], low: float, high: float) -> None:
    """Clamp the entries in place to [low, high]; NaN stays NaN."""
    for a in arrays:
        np.clip(a, low, high, out=a)
