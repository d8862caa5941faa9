"""What arrays look like: norm, largest magnitude, and how many entries are NaN, Inf, zero or subnormal."""

from __future__ import annotations

import numpy as np

from .norm_ref import tensor_norms

Array = np.ndarray


def health(arrays: list[Array]) -> Array:
    """Return for each array: l2 norm, max |a| without NaN; NaN, Inf, zero, subnormal entries. float64 (6, arrays)."""
    largest = [np.max(np.abs(a), where=~np.isnan(a), initial=0.0) for a in arrays]
    counts = [
        (np.isnan(a).sum(), np.isinf(a).sum(), (a == 0).sum(), ((a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)).sum())
        for a in arrays
    ]
    return np.array([tensor_norms(arrays, 2.0), largest, *np.transpose(counts)], np.float64)
