"""Layer normalisation of the rows of a matrix (Ba, Kiros & Hinton, Layer Normalization, 2016).

    xhat = (x - mean) rstd,    rstd = 1 / sqrt(var + eps),    y = weight xhat + bias

mean and var are those of a row, var with the divisor N.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, y: Array, mean: Array, rstd: Array) -> None:
    """Write y (M, N), and mean and rstd (M,) of each row, both float64; x (M, N), weight and bias (N,)."""
    if x.size == 0:
        return
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        mean[...] = wide.mean(axis=1)
        centred = wide - mean[:, None]
        rstd[...] = 1 / np.sqrt(np.mean(centred * centred, axis=1) + eps)
        y[...] = weight * (centred * rstd[:, None]) + bias


def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    """Write dx (M, N), may be dy or x, dweight and dbias (N,).

    With g = weight dy:  dx = rstd (g - mean of g - xhat mean of (g xhat)),  dweight = sum of dy xhat,  dbias = sum of
    dy; means over a row, sums over the rows.
    """
    if x.size == 0:
        dweight[...] = dbias[...] = 0
        return
    with np.errstate(all="ignore"):
        xhat = (x.astype(np.float64) - mean[:, None]) * rstd[:, None]
        dweight[...] = np.sum(dy * xhat, axis=0)
        dbias[...] = np.sum(dy, axis=0, dtype=np.float64)
        g = weight * dy
        along = np.mean(g * xhat, axis=1, keepdims=True)
        dx[...] = rstd[:, None] * (g - g.mean(axis=1, keepdims=True) - xhat * along)
