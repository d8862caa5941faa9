"""Norms of a list of arrays, in double precision whatever the dtype of the arrays.

ord 1: sum |a|; ord 2: sqrt(sum a^2); ord inf: max |a|. A NaN anywhere makes the norm NaN.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray

# Squares of float64 numbers outside of this range may have lost digits to underflow, or have overflowed.
TINY, HUGE = 1e-140, 1e150


def _norm(a: Array, ord: float) -> float:
    if a.size == 0:
        return 0.0
    if ord == math.inf:
        return float(np.max(np.abs(a)))
    if ord == 1:
        with np.errstate(over="ignore"):
            return float(np.sum(np.abs(a), dtype=np.float64))
    with np.errstate(over="ignore", under="ignore"):
        norm = math.sqrt(np.sum(np.square(a, dtype=np.float64)))
    if TINY < norm < HUGE or math.isnan(norm):
        return norm
    largest = float(np.max(np.abs(a)))
    if largest == 0 or math.isinf(largest):
        return largest
    # Divided, not multiplied by 1 / largest, which overflows where largest is subnormal.
    with np.errstate(under="ignore"):
        return largest * math.sqrt(np.sum(np.square(a / largest, dtype=np.float64)))


def tensor_norms(arrays: list[Array], ord: float) -> Array:
    """Return the norm of each array, float64 (len(arrays),)."""
    return np.array([_norm(a, ord) for a in arrays], dtype=np.float64)


def norm_of_norms(norms: Array, ord: float) -> float:
    """Return the norm of all entries together of tensors with these norms."""
    return _norm(norms, ord)


def global_norm(arrays: list[Array], ord: float) -> float:
    """Return the norm of all entries together: the norm of the norms."""
    return norm_of_norms(tensor_norms(arrays, ord), ord)


def squares_of_change(before: list[Array], after: list[Array]) -> Array:
    """Return for each array the sum of the squares of its change, and of its entries before, float64 (2, n)."""
    with np.errstate(all="ignore"):
        pairs = [
            (np.square(b - a, dtype=np.float64), np.square(a, dtype=np.float64))
            for a, b in zip(before, after, strict=True)
        ]
    return np.array([[moved.sum() for moved, _ in pairs], [held.sum() for _, held in pairs]])
