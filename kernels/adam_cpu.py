"""One Adam step over any list of tensors in one launch (Kingma and Ba, 2015; decoupled weight decay: Loshchilov and
Hutter, 2019; AMSGrad: Reddi et al., 2018).

    g = scale * grad  (sign flipped to maximize)
    p = p (1 - lr wd)           decoupled;  g = g + wd p  otherwise
    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) g^2;    AMSGrad: v_max = max(v_max, v), used in place of v below
    p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Bytes: 28 a parameter in float32 (read p, g, m, v; write p, m, v), 36 with AMSGrad. The coefficient of gradient clipping
is part of `scale`: gradients are read, never rewritten.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import step_clipped
from .simd import Machine, Value
from .streams import streams_kernel, table_of, within_bounds

PARAM, GRAD, MEAN, SQUARE, LARGEST = range(5)  # streams


@runtime.kernel
def _step(dtype: np.dtype, amsgrad: bool, coupled: bool, bounded: bool, measured: bool) -> Any:
    def adam(m: Machine, inputs: list[Value], scalars: list[Value]) -> tuple[Value, ...]:
        p, g, mean, square, *largest = inputs
        scale, beta1, rest1, beta2, rest2, step_size, correction2, eps, decay = scalars
        g = g * scale
        if coupled:
            g = m.fma(p, decay, g)
        else:
            p = p * decay
        mean = m.fma(mean, beta1, g * rest1)
        square = m.fma(square, beta2, g * (g * rest2))
        used = m.select((square > largest[0]) | m.is_nan(square), square, largest[0]) if amsgrad else square
        p = p - step_size * mean / m.fma(m.sqrt(used), correction2, eps)
        return (p, mean, square, used) if amsgrad else (p, mean, square)

    state = (MEAN, SQUARE, LARGEST) if amsgrad else (MEAN, SQUARE)
    formula = within_bounds(adam) if bounded else adam
    scalars = 9 + 2 * bounded
    return streams_kernel(formula, dtype, (PARAM, GRAD, *state), (PARAM, *state), scalars, change=measured)


def adam_step(
    params: list[np.ndarray],
    grads: list[np.ndarray],
    exp_avg: list[np.ndarray],
    exp_avg_sq: list[np.ndarray],
    max_exp_avg_sq: list[np.ndarray] | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: float,
    max_norm: float | None = None,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> float | np.ndarray | None:
    """Update params, exp_avg, exp_avg_sq and max_exp_avg_sq in place; grads are only read.

    With max_norm return the norm of the gradients times `scale`, and clip them to it.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    if not params:
        return None if max_norm is None else 0.0
    coupled = weight_decay != 0 and not decoupled
    scalars = (
        -scale if maximize else scale,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        eps,
        weight_decay if coupled else 1 - lr * weight_decay,
    )
    lists = [params, grads, exp_avg, exp_avg_sq]
    if max_exp_avg_sq is not None:
        lists.append(max_exp_avg_sq)
    table, stream = table_of(lists)
    kernel = _step(table.dtype, max_exp_avg_sq is not None, coupled, bounds is not None, measured)
    scalars = (*scalars, *(bounds or ()))
    if measured:
        return table.run_measured(kernel, scalars, stream)
    if max_norm is not None:
        return step_clipped(table, stream, grads, kernel, scalars, max_norm)
    table.run(kernel, scalars, stream=stream)
    return None
