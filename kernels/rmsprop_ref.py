"""One RMSprop step (Tieleman and Hinton, 2012), centered as in Graves (2013), with momentum as in torch.

g = scale * grad  (sign flipped to maximize) + wd p
v = alpha v + (1 - alpha) g^2
a = alpha a + (1 - alpha) g
d = sqrt(max(v - a^2, 0)) + eps  centered;  sqrt(v) + eps  otherwise
b = momentum b + g / d
p = p - lr b  with momentum;  p - lr g / d  without
"""

from __future__ import annotations

import numpy as np

from .clip_ref import clip_by_value
from .norm_ref import squares_of_change

Array = np.ndarray


def rmsprop_step(
    params: list[Array],
    grads: list[Array],
    square_avg: list[Array],
    momentum_buffer: list[Array] | None,
    grad_avg: list[Array] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    maximize: bool,
    scale: float,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> Array | None:
    """Update params and state in place; grads are only read. grad_avg given is centered.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    before = [p.copy() for p in params] if measured else []
    with np.errstate(all="ignore"):
        for k, (p, g, v) in enumerate(zip(params, grads, square_avg, strict=True)):
            g = g * (-scale if maximize else scale)
            if weight_decay != 0:
                g = g + weight_decay * p
            v[...] = alpha * v + (1 - alpha) * g * g
            if grad_avg is not None:
                a = grad_avg[k]
                a[...] = alpha * a + (1 - alpha) * g
                v = np.maximum(v - a * a, 0)
            g = g / (np.sqrt(v) + eps)
            if momentum_buffer is not None:
                b = momentum_buffer[k]
                b[...] = momentum * b + g
                g = b
            p -= lr * g
    if bounds is not None:
        clip_by_value(params, *bounds)
    return squares_of_change(before, params) if measured else None
