"""One RMSprop step over any list of tensors in one launch (Tieleman and Hinton, 2012; centered: Graves, 2013), with
momentum as in torch.

    g = scale * grad  (sign flipped to maximize) + wd p
    v = alpha v + (1 - alpha) g^2
    a = alpha a + (1 - alpha) g
    d = sqrt(max(v - a^2, 0)) + eps  centered;  sqrt(v) + eps  otherwise
    b = momentum b + g / d
    p = p - lr b  with momentum;  p - lr g / d  without

Bytes: 20 a parameter in float32 (read p, g, v; write p, v), 8 more with momentum and 8 more centered. The coefficient
of gradient clipping is part of `scale`: gradients are read, never rewritten.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import step_clipped
from .simd import Machine, Value
from .streams import streams_kernel, table_of, within_bounds

PARAM, GRAD, SQUARE = range(3)  # streams; the buffer and the mean follow where there are any


@runtime.kernel
def _step(dtype: np.dtype, momentum: bool, centered: bool, decay: bool, bounded: bool, measured: bool) -> Any:
    def rmsprop(m: Machine, inputs: list[Value], scalars: list[Value]) -> tuple[Value, ...]:
        p, g, square, *rest = inputs
        scale, lr, alpha, rest_alpha, eps, weight_decay, mu = scalars
        g = g * scale
        if decay:
            g = m.fma(p, weight_decay, g)
        square = m.fma(square, alpha, g * (g * rest_alpha))
        variance, state = square, []
        if centered:
            mean = m.fma(rest[-1], alpha, g * rest_alpha)
            # Rounding takes the variance of a constant gradient below 0, where a square root would be NaN.
            variance = m.maximum(m.fma(-mean, mean, square), 0.0)
            state = [mean]
        d = m.sqrt(variance) + eps
        if not momentum:
            return (p - lr * g / d, square, *state)
        b = m.fma(rest[0], mu, g / d)
        return (m.fma(-b, lr, p), square, b, *state)

    state = tuple(range(SQUARE, SQUARE + 1 + momentum + centered))
    formula = within_bounds(rmsprop) if bounded else rmsprop
    scalars = 7 + 2 * bounded
    return streams_kernel(formula, dtype, (PARAM, GRAD, *state), (PARAM, *state), scalars, change=measured)


def rmsprop_step(
    params: list[np.ndarray],
    grads: list[np.ndarray],
    square_avg: list[np.ndarray],
    momentum_buffer: list[np.ndarray] | None,
    grad_avg: list[np.ndarray] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    maximize: bool,
    scale: float,
    max_norm: float | None = None,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> float | np.ndarray | None:
    """Update params and state in place; grads are only read. grad_avg given is centered.

    With max_norm return the norm of the gradients times `scale`, and clip them to it.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    if not params:
        return None if max_norm is None else 0.0
    lists = [params, grads, square_avg, *(state for state in (momentum_buffer, grad_avg) if state is not None)]
    table, stream = table_of(lists)
    decay, bounded = weight_decay != 0, bounds is not None
    kernel = _step(table.dtype, momentum_buffer is not None, grad_avg is not None, decay, bounded, measured)
    scalars = (-scale if maximize else scale, lr, alpha, 1 - alpha, eps, weight_decay, momentum, *(bounds or ()))
    if measured:
        return table.run_measured(kernel, scalars, stream)
    if max_norm is not None:
        return step_clipped(table, stream, grads, kernel, scalars, max_norm)
    table.run(kernel, scalars, stream=stream)
    return None
