"""PReLU: y = x where x > 0, else w x, with one weight per channel (He et al., 2015)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def prelu(x: Array, weight: Array, out: Array) -> None:
    """Write y into `out` (outer, C, inner), may be x; x (outer, C, inner), weight (C,)."""
    with np.errstate(all="ignore"):
        out[...] = np.where(x > 0, x, weight[:, None] * x)


def prelu_backward(dy: Array, x: Array, weight: Array, dx: Array, dweight: Array) -> None:
    """Write dx (outer, C, inner), may be dy or x, and dweight (C,): dw = sum of dy min(x, 0)."""
    with np.errstate(all="ignore"):
        dweight[...] = np.sum(dy * np.minimum(x, 0), axis=(0, 2))
        dx[...] = dy * np.where(x > 0, 1, np.where(np.isnan(x), x, weight[:, None]))
