"""Affine map y = x W^T + b and its gradients. x (M, K), weight (N, K), bias (N,), y (M, N)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """Write y into `out` (M, N)."""
    np.matmul(x, weight.T, out=out)
    if bias is not None:
        out += bias


def backward(dy: Array, x: Array, weight: Array, dx: Array | None, dweight: Array, dbias: Array | None) -> None:
    """Write (not add) dx = dy W, dweight = dy^T x and dbias = sum of dy over its rows; dx and dbias may be None."""
    if dx is not None:
        np.matmul(dy, weight, out=dx)
    np.matmul(dy.T, x, out=dweight)
    if dbias is not None:
        np.sum(dy, axis=0, out=dbias)
