"""One step of stochastic gradient descent over any list of tensors in one launch, with momentum as in torch, or
Nesterov's (Sutskever et al., 2013).

    g = scale * grad  (sign flipped to maximize) + wd p
    b = momentum b + (1 - dampening) g
    p = p - lr (g + momentum b)  nesterov;  p - lr b  with momentum;  p - lr g  without

Bytes: 12 a parameter in float32, 20 with momentum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import step_clipped
from .simd import Machine, Value
from .streams import streams_kernel, table_of, within_bounds

PARAM, GRAD, BUFFER = range(3)  # streams


@runtime.kernel
def _step(dtype: np.dtype, momentum: bool, nesterov: bool, decay: bool, bounded: bool, measured: bool) -> Any:
    def sgd(m: Machine, inputs: list[Value], scalars: list[Value]) -> tuple[Value, ...]:
        p, g, *buffer = inputs
        scale, lr, weight_decay, mu, rest = scalars
        g = g * scale
        if decay:
            g = m.fma(p, weight_decay, g)
        if not momentum:
            return (m.fma(-g, lr, p),)
        b = m.fma(buffer[0], mu, g * rest)
        return m.fma(-(m.fma(b, mu, g) if nesterov else b), lr, p), b

    streams = (PARAM, GRAD, BUFFER) if momentum else (PARAM, GRAD)
    formula = within_bounds(sgd) if bounded else sgd
    written = (PARAM, BUFFER) if momentum else (PARAM,)
    return streams_kernel(formula, dtype, streams, written, scalars=5 + 2 * bounded, change=measured)


def sgd_step(
    params: list[np.ndarray],
    grads: list[np.ndarray],
    momentum_buffer: list[np.ndarray] | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    scale: float,
    max_norm: float | None = None,
    bounds: tuple[float, float] | None = None,
    measured: bool = False,
) -> float | np.ndarray | None:
    """Update params and momentum_buffer in place; grads are only read.

    With max_norm return the norm of the gradients times `scale`, and clip them to it.

    bounds : to which params are clamped afterwards
    measured : return of each parameter the sum of the squares of its change and of its entries before, float64 (2, n)
    """
    if not params:
        return None if max_norm is None else 0.0
    lists = [params, grads] if momentum_buffer is None else [params, grads, momentum_buffer]
    table, stream = table_of(lists)
    decay, bounded = weight_decay != 0, bounds is not None
    kernel = _step(table.dtype, momentum_buffer is not None, nesterov, decay, bounded, measured)
    scalars = (-scale if maximize else scale, lr, weight_decay, momentum, 1 - dampening, *(bounds or ()))
    if measured:
        return table.run_measured(kernel, scalars, stream)
    if max_norm is not None:
        return step_clipped(table, stream, grads, kernel, scalars, max_norm)
    table.run(kernel, scalars, stream=stream)
    return None
