"""One step of stochastic gradient descent, with momentum as in torch, or Nesterov's (Sutskever et al., 2013).

g = scale * grad  (sign flipped to maximize) + wd p
b = momentum b + (1 - dampening) g
p = p - lr (g + momentum b)  nesterov;  p - lr b  with momentum;  p - lr g  without
"""

from __future__ import annotations

import numpy as np

from .clip_ref import clip_by_value
from .norm_ref import squares_of_change

Array = np.ndarray


def sgd_step(
    params: list[Array],
    grads: list[Array],
    momentum_buffer: list[Array] | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    scale: float,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> Array | None:
    """Update params and momentum_buffer in place; grads are only read.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    before = [p.copy() for p in params] if measured else []
    with np.errstate(all="ignore"):
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            g = g * (-scale if maximize else scale)
            if weight_decay != 0:
                g = g + weight_decay * p
            if momentum_buffer is not None:
                b = momentum_buffer[k]
                b[...] = momentum * b + (1 - dampening) * g
                g = g + momentum * b if nesterov else b
            p -= lr * g
    if bounds is not None:
        clip_by_value(params, *bounds)
    return squares_of_change(before, params) if measured else None
