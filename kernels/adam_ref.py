"""One Adam step (Kingma and Ba, 2015), with decoupled weight decay (Loshchilov and Hutter, 2019) or AMSGrad (Reddi et
al., 2018).

    g = scale * grad  (sign flipped to maximize)
    p = p (1 - lr wd)           decoupled;  g = g + wd p  otherwise
    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) g^2;    AMSGrad: v_max = max(v_max, v), used in place of v below
    p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
"""

from __future__ import annotations

import math

import numpy as np

from .clip_ref import clip_by_value
from .norm_ref import squares_of_change

Array = np.ndarray


def adam_step(
    params: list[Array],
    grads: list[Array],
    exp_avg: list[Array],
    exp_avg_sq: list[Array],
    max_exp_avg_sq: list[Array] | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: float,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> Array | None:
    """Update params, exp_avg, exp_avg_sq and max_exp_avg_sq in place; grads are only read.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    before = [p.copy() for p in params] if measured else []
    step_size = lr / (1 - beta1**step)
    correction2 = math.sqrt(1 - beta2**step)
    with np.errstate(all="ignore"):
        for k, (p, g, m, v) in enumerate(zip(params, grads, exp_avg, exp_avg_sq, strict=True)):
            g = g * (-scale if maximize else scale)
            if weight_decay != 0:
                if decoupled:
                    p *= 1 - lr * weight_decay
                else:
                    g = g + weight_decay * p
            m[...] = beta1 * m + (1 - beta1) * g
            v[...] = beta2 * v + (1 - beta2) * g * g
            if max_exp_avg_sq is not None:
                v = np.maximum(max_exp_avg_sq[k], v, out=max_exp_avg_sq[k])
            p -= step_size * m / (np.sqrt(v) / correction2 + eps)
    if bounds is not None:
        clip_by_value(params, *bounds)
    return squares_of_change(before, params) if measured else None
