"""An activation and the dropout of what comes out of it, as one: y = dropout(f(x)), dx = dropout(dy) f'(x)."""

from __future__ import annotations

import numpy as np

from .activation_ref import activation, activation_backward
from .dropout_ref import dropout

Array = np.ndarray


def activation_dropout(
    x: Array, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int, offset: int, out: Array
) -> None:
    """Write f(x) scale where the random number is at least `threshold`, else 0, into `out` (may be x)."""
    activation(x, kind, params, out)
    flat = out.reshape(-1)
    dropout(flat, threshold, scale, seed, offset, flat)


def activation_dropout_backward(
    dy: Array, x: Array, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int, offset: int,
    out: Array, bias_grad: Array | None,
) -> None:  # fmt: skip
    """Write dx into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    upstream = np.empty(dy.size, dy.dtype)
    dropout(dy.reshape(-1), threshold, scale, seed, offset, upstream)
    activation_backward(upstream.reshape(dy.shape), x, kind, params, out, bias_grad)
