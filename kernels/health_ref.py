"""What arrays look like: norm, largest magnitude, and how many entries are NaN, Inf, zero or subnormal."""

from __future__ import annotations

import numpy as np

from .norm_ref import tensor_norms

Array = np.ndarray


def health(arrays: list[Array]) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return for each array: l2 norm, max |a| without NaN (float64); NaN, Inf, zero, subnormal entries (int64)."""
    largest = [np.max(np.abs(a), where=~np.isnan(a), initial=0.0) for a in arrays]
    counts = [
        (np.isnan(a).sum(), np.isinf(a).sum(), (a == 0).sum(), ((a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)).sum())
        for a in arrays
    ]
    nan, inf, zero, subnormal = np.array(counts, np.int64).reshape(len(arrays), 4).T
    return tensor_norms(arrays, 2.0), np.array(largest, np.float64), nan, inf, zero, subnormal
