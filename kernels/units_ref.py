"""Clip each unit of arrays by its own norm: a row along axis 0, the whole of an array of fewer than two axes.

clip_units:     limit = max_norm, coefficient = min(1, limit / (norm + 1e-6))
adaptive_clip:  limit = clipping * max(|W|, eps), coefficient = min(1, limit / |G|)
"""

from __future__ import annotations

import numpy as np

from .norm_ref import tensor_norms

Array = np.ndarray


def _units(a: Array) -> Array:
    """Return a view (units, length)."""
    count = a.shape[0] if a.ndim > 1 else 1
    return a.reshape(count, a.size // max(count, 1))


def _scale(units: Array, coefficients: Array) -> None:
    with np.errstate(all="ignore"):
        for unit, c in zip(units, coefficients, strict=True):
            if c != 1.0:
                unit *= float(c)


def clip_units(arrays: list[Array], max_norm: float) -> list[Array]:
    """Scale each unit in place by min(1, max_norm / (norm + 1e-6)); return the norms before, (units,) of each array."""
    norms = []
    for a in map(_units, arrays):
        found = tensor_norms(list(a), 2.0)
        coefficients = max_norm / (found + 1e-6)
        _scale(a, np.where(coefficients >= 1, 1.0, coefficients))
        norms.append(found)
    return norms


def adaptive_clip(grads: list[Array], params: list[Array], clipping: float, eps: float) -> None:
    """Scale each unit G of the gradients in place so that |G| <= clipping * max(|W|, eps), W its parameters."""
    for g, w in zip(map(_units, grads), map(_units, params), strict=True):
        norms, sizes = tensor_norms(list(g), 2.0), tensor_norms(list(w), 2.0)
        with np.errstate(all="ignore"):
            limits = clipping * np.maximum(sizes, eps)
            _scale(g, np.where(norms <= limits, 1.0, limits / norms))
