"""Activations and their backward pass in one pass over memory.

    y = f(x),    dx = dy f'(x),    bias_grad = sum of dx over all axes but the last

Bytes an element: 8 forward and 12 backward in float32 (as many again where the output's lines are read before they
are written). The derivatives lose no digits in the tails: each is a quotient of sums of positive terms in
e = exp(-|x|), or uses the Mills ratio of the normal distribution. At x = +-inf each gives its limit.

Sums over rows have a fixed order: ROWS rows at a time in the array's dtype, then those sums in double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime, streams, vecmath
from .simd import Machine, Value, traced

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
GELU_TANH = 2.0 * math.sqrt(2.0 / math.pi)  # twice the argument of tanh is x (GELU_TANH + GELU_TANH_CUBIC x^2)
GELU_TANH_CUBIC = GELU_TANH * 0.044715
ROWS = 64  # rows summed in the array's dtype before the double sum takes over

Function = Callable[..., Value]


def _clamp(m: Machine, x: Value) -> Value:
    """Clamp x where a factor exp(-|x|) has long been 0, so that it meets no infinity."""
    return m.minimum(m.maximum(x, -1000.0), 1000.0)


def _nan_or(m: Machine, x: Value, value: Value) -> Value:
    """Return `value`, but NaN where x is NaN: a comparison with NaN is false and would hide it."""
    return m.select(m.is_nan(x), x, value)


def _relu_derivative(m: Machine, x: Value) -> Value:
    return _nan_or(m, x, m.select(x > 0.0, 1.0, 0.0))


def _hardtanh(m: Machine, x: Value, low: Value | float, high: Value | float) -> Value:
    return m.minimum(m.maximum(x, low), high)


def _hardtanh_derivative(m: Machine, x: Value, low: Value | float, high: Value | float) -> Value:
    return _nan_or(m, x, m.select((x > low) & (x < high), 1.0, 0.0))


def _elu(m: Machine, x: Value, alpha: Value | float) -> Value:
    return m.select(x > 0.0, x, vecmath.expm1_negative(m, m.minimum(x, 0.0)) * alpha)


def _elu_derivative(m: Machine, x: Value, alpha: Value | float) -> Value:
    return m.select(x > 0.0, 1.0, vecmath.exp(m, m.minimum(x, 0.0)) * alpha)


def _celu(m: Machine, x: Value, alpha: Value) -> Value:
    return m.select(x > 0.0, x, vecmath.expm1_negative(m, m.minimum(x / alpha, 0.0)) * alpha)


def _celu_derivative(m: Machine, x: Value, alpha: Value) -> Value:
    return m.select(x > 0.0, 1.0, vecmath.exp(m, m.minimum(x / alpha, 0.0)))


def _gelu_tail(m: Machine, x: Value) -> Value:
    """Return |x| where the tail of the normal distribution is not yet 0."""
    return m.minimum(m.abs(x), 15.0 if vecmath.single(m) else 40.0)


def _gelu(m: Machine, x: Value) -> Value:
    t = _gelu_tail(m, x)
    e, scale = vecmath.exp_half_square(m, t)
    tail = t * vecmath.normal_tail(m, t) * e * scale
    return m.select(x < 0.0, -tail, x - tail)


def _gelu_derivative(m: Machine, x: Value) -> Value:
    t = _gelu_tail(m, x)
    e, scale = vecmath.exp_half_square(m, t)
    tail = vecmath.normal_tail_slope(m, t) * e * scale
    return m.select(x < 0.0, tail, 1.0 - tail)


def _gelu_tanh_argument(m: Machine, x: Value) -> tuple[Value, Value, Value, Value]:
    """Return x where the tails are not yet 0, x^2, and the two factors of exp(-|z|), for gelu_tanh = x sigmoid(z).

    z is carried in two parts: its rounding error alone would cost |z| ulp.
    """
    limit = 12.5 if vecmath.single(m) else 23.0
    x = m.minimum(m.maximum(x, -limit), limit)

    def two_parts(number: float) -> tuple[float, float]:
        high = float(m.dtype.type(number))
        return high, number - high

    (a, a_low), (b, b_low) = two_parts(GELU_TANH), two_parts(GELU_TANH_CUBIC)
    square = x * x
    square_low = m.fma(x, x, -square)
    cubic = square * b
    cubic_low = m.fma(square, b_low, m.fma(square_low, b, m.fma(square, b, -cubic)))
    # The two terms added with their rounding error (Knuth, The Art of Computer Programming, 4.2.2).
    w = cubic + a
    rest = w - cubic
    w_low = (cubic - (w - rest)) + (a - rest) + cubic_low + a_low
    z = x * w
    z_low = m.fma(x, w_low, m.fma(x, w, -z))
    e, scale = vecmath.exp_parts(m, -m.abs(z))
    return x, square, m.fma(e, m.select(x < 0.0, z_low, -z_low), e), scale


def _times_sigmoid(m: Machine, x: Value, factor: Value, e: Value, scale: Value) -> Value:
    """Return factor sigmoid(z) given e scale = exp(-|z|), z of the sign of x; a subnormal e costs no digits."""
    negative = x < 0.0
    return m.select(negative, factor * e, factor) / m.fma(e, scale, m.full(1.0)) * m.select(negative, scale, 1.0)


def _times_sigmoid_derivative(m: Machine, x: Value, factor: Value, e: Value, scale: Value) -> Value:
    """Return sigmoid(z) + factor sigmoid(z) sigmoid(-z), given the same."""
    negative = x < 0.0
    d = m.fma(e, scale, m.full(1.0))
    inner = m.select(negative, factor, factor * (e * scale)) / d + 1.0
    return m.select(negative, inner * e, inner) / d * m.select(negative, scale, 1.0)


def _gelu_tanh(m: Machine, x: Value) -> Value:
    clipped, _, e, scale = _gelu_tanh_argument(m, x)
    return _times_sigmoid(m, x, m.select(x < 0.0, clipped, x), e, scale)


def _gelu_tanh_derivative(m: Machine, x: Value) -> Value:
    x, square, e, scale = _gelu_tanh_argument(m, x)
    slope = m.fma(square, 3.0 * GELU_TANH_CUBIC, m.full(GELU_TANH))
    return _times_sigmoid_derivative(m, x, x * slope, e, scale)


def _silu(m: Machine, x: Value) -> Value:
    return _times_sigmoid(m, x, m.maximum(x, -1000.0), *vecmath.exp_parts(m, -m.abs(x)))


def _silu_derivative(m: Machine, x: Value) -> Value:
    return _times_sigmoid_derivative(m, x, _clamp(m, x), *vecmath.exp_parts(m, -m.abs(x)))


def _mish_parts(m: Machine, x: Value) -> tuple[Value, Value, Value, Value, Value]:
    """Return e, scale with e scale = q = exp(-|x|), and q, p, d: tanh(softplus(x)) is p / d, or q p / d for x < 0."""
    e, scale = vecmath.exp_parts(m, -m.abs(x))
    q = e * scale
    negative = x < 0.0
    p = m.select(negative, q + 2.0, m.fma(q, 2.0, m.full(1.0)))
    return e, scale, q, p, m.select(negative, m.fma(q, p, m.full(2.0)), m.fma(q, q + q, p))


def _mish(m: Machine, x: Value) -> Value:
    e, scale, _, p, d = _mish_parts(m, x)
    negative = x < 0.0
    y = m.maximum(x, -1000.0) * (p / d)
    return m.select(negative, y * e * scale, y)


def _mish_derivative(m: Machine, x: Value) -> Value:
    x = _clamp(m, x)
    e, scale, q, p, d = _mish_parts(m, x)
    negative = x < 0.0
    k = (q + 1.0) * m.select(negative, 1.0, q * q)
    y = m.fma(x * 4.0, k, p * d) / (d * d)
    return m.select(negative, y * e * scale, y)


def _softplus(m: Machine, x: Value, beta: Value | None = None) -> Value:
    z = x if beta is None else x * beta
    y = m.maximum(z, 0.0) + vecmath.log1p_unit(m, vecmath.exp(m, -m.abs(z)))
    return y if beta is None else y / beta


def _softsign(m: Machine, x: Value) -> Value:
    largest = float(np.finfo(m.dtype).max)
    x = m.minimum(m.maximum(x, -largest), largest)
    return x / (m.abs(x) + 1.0)


def _softsign_derivative(m: Machine, x: Value) -> Value:
    r = m.full(1.0) / (m.abs(x) + 1.0)
    return r * r


def _hardsigmoid_derivative(m: Machine, x: Value) -> Value:
    return _nan_or(m, x, m.select((x > -3.0) & (x < 3.0), 1.0 / 6.0, 0.0))


def _hardswish(m: Machine, x: Value) -> Value:
    return m.maximum(x, -3.0) * (_hardtanh(m, x + 3.0, 0.0, 6.0) / 6.0)


def _hardswish_derivative(m: Machine, x: Value) -> Value:
    return m.select(x <= -3.0, 0.0, m.select(x >= 3.0, 1.0, (x + 1.5) / 3.0))


# kind -> f(m, x, *params), f'(m, x, *params)
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "identity": (lambda m, x: x, lambda m, x: m.full(1.0)),
    "relu": (lambda m, x: m.maximum(x, 0.0), _relu_derivative),
    "leaky_relu": (
        lambda m, x, slope: m.select(x > 0.0, x, x * slope),
        lambda m, x, slope: _nan_or(m, x, m.select(x > 0.0, 1.0, slope)),
    ),
    "relu6": (lambda m, x: _hardtanh(m, x, 0.0, 6.0), lambda m, x: _hardtanh_derivative(m, x, 0.0, 6.0)),
    "hardtanh": (_hardtanh, _hardtanh_derivative),
    "elu": (_elu, _elu_derivative),
    "celu": (_celu, _celu_derivative),
    "selu": (
        lambda m, x: m.select(
            x > 0.0, x * SELU_SCALE, vecmath.expm1_negative(m, m.minimum(x, 0.0)) * (SELU_SCALE * SELU_ALPHA)
        ),
        lambda m, x: m.select(x > 0.0, SELU_SCALE, vecmath.exp(m, m.minimum(x, 0.0)) * (SELU_SCALE * SELU_ALPHA)),
    ),
    "gelu": (_gelu, _gelu_derivative),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_derivative),
    "silu": (_silu, _silu_derivative),
    "mish": (_mish, _mish_derivative),
    "softplus": (_softplus, lambda m, x, beta: vecmath.sigmoid(m, x * beta)),
    "softsign": (_softsign, _softsign_derivative),
    "sigmoid": (vecmath.sigmoid, vecmath.sigmoid_derivative),
    "logsigmoid": (lambda m, x: -_softplus(m, -x), lambda m, x: vecmath.sigmoid(m, -x)),
    "tanh": (vecmath.tanh, vecmath.tanh_derivative),
    "hardsigmoid": (lambda m, x: _hardtanh(m, x + 3.0, 0.0, 6.0) / 6.0, _hardsigmoid_derivative),
    "hardswish": (_hardswish, _hardswish_derivative),
}


@runtime.kernel
def _forward(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    function = FUNCTIONS[kind][0]
    return streams.streams_kernel(
        lambda m, inputs, scalars: (function(m, inputs[0], *scalars),), dtype, (0,), (1,), params, streaming=streaming
    )


@runtime.kernel
def _backward(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    derivative = FUNCTIONS[kind][1]
    return streams.streams_kernel(
        lambda m, inputs, scalars: (inputs[0] * derivative(m, inputs[1], *scalars),),
        dtype, (0, 1), (2,), params, streaming=streaming,
    )  # fmt: skip


@runtime.kernel
def _backward_rows(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    """Backward of ROWS rows, and their sum. pointers: dy, x, dx, sums (blocks, N), rows, N, scalars."""
    derivative = FUNCTIONS[kind][1]
    item = dtype.itemsize

    def row(first: bool) -> Any:
        def run(m, dy, x, dx, sums, columns, numbers):
            constants = [m.splat(m.load_double(numbers + i * 8)) for i in range(params)]

            def body(index: Value, mask: Value | None) -> None:
                at = index * item
                value = m.load_ahead(dy + at, mask) * derivative(m, m.load_ahead(x + at, mask), *constants)
                m.store(dx + at, value, mask, streaming and mask is None)
                m.store(sums + at, value if first else m.load(sums + at, mask) + value, mask)

            m.over(0, columns, body, dx if streaming else None)
            if streaming:
                m.fence()

        return traced(run, dtype)

    first_row, next_row = row(first=True), row(first=False)

    def kernel(block, pointers):
        rows, columns, numbers = pointers[4], pointers[5], pointers[6]
        stride = columns * item
        sums = pointers[3] + block * stride
        first = block * ROWS
        at = first * stride
        first_row(pointers[0] + at, pointers[1] + at, pointers[2] + at, sums, columns, numbers)
        for r in range(first + 1, min(first + ROWS, rows)):
            at = r * stride
            next_row(pointers[0] + at, pointers[1] + at, pointers[2] + at, sums, columns, numbers)

    return kernel


def activation(x: np.ndarray, kind: str, params: tuple[float, ...], out: np.ndarray) -> None:
    """Write f(x) into `out` (the shape of x; may be x)."""
    kernel = _forward(kind, x.dtype, len(params), streams.may_stream(out, [x]))
    streams.run_single(kernel, (x, out), params)


def activation_backward(
    dy: np.ndarray, x: np.ndarray, kind: str, params: tuple[float, ...], out: np.ndarray, bias_grad: np.ndarray | None
) -> None:
    """Write dy * f'(x) into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    streaming = streams.may_stream(out, [dy, x])
    if bias_grad is None:
        streams.run_single(_backward(kind, x.dtype, len(params), streaming), (dy, x, out), params)
        return
    columns = bias_grad.size
    rows = x.size // columns if columns else 0
    if rows == 0:
        bias_grad[...] = 0
        return
    blocks = -(-rows // ROWS)
    sums = empty((blocks, columns), x.dtype)
    numbers = np.array(params, np.float64)
    pointers = np.array(
        [
            runtime.address(dy), runtime.address(x), runtime.address(out), runtime.address(sums),
            rows, columns, runtime.address(numbers),
        ],
        np.int64,
    )  # fmt: skip
    kernel = _backward_rows(kind, x.dtype, len(params), streaming)
    runtime.run(kernel, blocks, pointers, parallel=x.size > streams.PARALLEL_SIZE)
    bias_grad[...] = sums.sum(axis=0, dtype=np.float64)
