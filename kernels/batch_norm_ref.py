"""Batch normalisation of channels (Ioffe & Szegedy, Batch Normalization, 2015), on x as (outer, C, inner).

    xhat = (x - mean) rstd,    rstd = 1 / sqrt(var + eps),    y = weight xhat + bias

mean and var, of divisor n = outer inner, are those of a channel in training, the running ones in evaluation.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def batch_norm(
    x: Array, weight: Array, bias: Array, running: tuple[Array, Array] | None, training: bool, momentum: float,
    eps: float, y: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Write y (outer, C, inner); return mean and rstd (C,) in float64.

    running : (mean, var), each (C,); updated in training: running += momentum (new - running), new variance unbiased
    """
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        if training:
            mean, var = wide.mean(axis=(0, 2)), wide.var(axis=(0, 2))
            if running is not None:
                count = x.shape[0] * x.shape[2]
                for kept, new in zip(running, (mean, var * count / (count - 1)), strict=True):
                    kept[...] = (1 - momentum) * kept + momentum * new
        else:
            assert running is not None
            mean, var = (kept.astype(np.float64) for kept in running)
        rstd = 1 / np.sqrt(var + eps)
        y[...] = weight[:, None] * ((wide - mean[:, None]) * rstd[:, None]) + bias[:, None]
        return mean, rstd


def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, training: bool, dx: Array, dweight: Array,
    dbias: Array,
) -> None:  # fmt: skip
    """Write dx (outer, C, inner), may be dy, dweight and dbias (C,).

    In training dx = weight rstd (dy - mean of dy - xhat mean of (dy xhat)), in evaluation dx = weight rstd dy;
    dweight = sum of dy xhat, dbias = sum of dy.
    """
    with np.errstate(all="ignore"):
        xhat = (x.astype(np.float64) - mean[:, None]) * rstd[:, None]
        product, total = np.sum(dy * xhat, axis=(0, 2)), np.sum(dy, axis=(0, 2), dtype=np.float64)
        dweight[...], dbias[...] = product, total
        scale = (weight * rstd)[:, None]
        if training:
            count = x.shape[0] * x.shape[2]
            dx[...] = scale * (dy - (total / count)[:, None] - xhat * (product / count)[:, None])
        else:
            dx[...] = scale * dy
