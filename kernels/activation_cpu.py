"""Activations and their backward pass in one pass over memory.

    y = f(x),    dx = dy f'(x),    bias_grad = sum of dx over all axes but the last

Bytes an element: 8 forward and 12 backward in float32 (as many again where the output's lines are read before they
are written). The derivatives lose no digits in the tails: each is a quotient of sums of positive terms in
e = exp(-|x|), or uses the Mills ratio of the normal distribution. At x = +-inf each gives its limit.

Sums over rows have a fixed order: ROWS rows at a time in the array's dtype, then those sums in double.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime, streams, vecmath
from .rows_cpu import add_column, adding_rows
from .simd import CACHE_LINE, Machine, Value, traced

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
# 2 sqrt(2 / pi) and 0.044715 of it, to more digits than a double has: z = x (GELU_TANH + GELU_TANH_CUBIC x^2) is twice
# the argument of tanh.
GELU_TANH = (1.5957691216057308, -9.96930880911092e-17)
GELU_TANH_CUBIC = (0.07135481627260025, -6.175149918155315e-19)
ROWS = 64  # rows summed in the array's dtype before the double sum takes over

Function = Callable[..., Value]


def _clamp(m: Machine, x: Value) -> Value:
    """Clamp x where a factor exp(-|x|) has long been 0, so that it meets no infinity."""
    return m.minimum(m.maximum(x, vecmath.lowest(m)), -vecmath.lowest(m))


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
    return m.select(x > 0.0, 1.0, vecmath.exp_negative(m, m.minimum(x, 0.0)) * alpha)


def _celu(m: Machine, x: Value, alpha: Value) -> Value:
    return m.select(x > 0.0, x, vecmath.expm1_negative(m, m.minimum(x / alpha, 0.0)) * alpha)


def _celu_derivative(m: Machine, x: Value, alpha: Value) -> Value:
    return m.select(x > 0.0, 1.0, vecmath.exp_negative(m, m.minimum(x / alpha, 0.0)))


def _gelu_tail(m: Machine, x: Value) -> Value:
    """Return |x| where the tail of the normal distribution is not yet 0."""
    return m.minimum(m.abs(x), 15.0 if vecmath.single(m) else 40.0)


def _gelu(m: Machine, x: Value) -> Value:
    t = _gelu_tail(m, x)
    e, e_low = vecmath.decay_half_square(m, t)
    tail = t * vecmath.normal_tail(m, t)
    tail = m.fma(tail, e, tail * e_low) * vecmath.shrunk(m)
    return m.select(x < 0.0, -tail, x - tail)


def _gelu_derivative(m: Machine, x: Value) -> Value:
    t = _gelu_tail(m, x)
    e, e_low = vecmath.decay_half_square(m, t)
    tail = vecmath.normal_tail_slope(m, t)
    tail = m.fma(tail, e, tail * e_low) * vecmath.shrunk(m)
    return m.select(x < 0.0, tail, 1.0 - tail)


def _decay(m: Machine, x: Value) -> tuple[Value, Value]:
    """`vecmath.decay` of -|x|, for any x."""
    return vecmath.decay(m, m.maximum(-m.abs(x), vecmath.lowest(m)))


def _of_sign(m: Machine, negative: Value, e: Value) -> tuple[Value, Value]:
    """Return q = exp(-|x|) for the e of `decay`, and the factor that a result with e in its numerator lacks."""
    shrunk = vecmath.shrunk(m)
    return e * shrunk, m.select(negative, shrunk, 1.0)


def _gelu_tanh_argument(m: Machine, x: Value) -> tuple[Value, Value, Value, Value, Value]:
    """Return x where the tails are not yet 0, z for gelu_tanh = x sigmoid(z), and c for z = a x + c x, two parts each.

    The rounding error of z alone would cost |z| ulp.
    """
    limit = 11.0 if vecmath.single(m) else 23.0
    x = m.minimum(m.maximum(x, -limit), limit)
    # z = x w, w = a + b x^2. The high part of a has so few bits that c = w - a is exact whatever w is.
    unit = 2.0**-20 if vecmath.single(m) else 2.0**-47
    a, b = round(GELU_TANH[0] / unit) * unit, float(m.dtype.type(GELU_TANH_CUBIC[0]))
    a_low, b_low = GELU_TANH[0] - a + GELU_TANH[1], GELU_TANH_CUBIC[0] - b + GELU_TANH_CUBIC[1]
    square = x * x
    w = m.fma(square, b, m.full(a))
    c = w - a
    c_low = m.fma(square, b, -c) + m.fma(m.fma(x, x, -square), b, square * b_low)
    z = x * w
    return x, z, m.fma(x, c_low + a_low, m.fma(x, w, -z)), c, c_low


def _gelu_tanh(m: Machine, x: Value) -> Value:
    clipped, z, z_low, _, _ = _gelu_tanh_argument(m, x)
    negative = x < 0.0
    e, _ = vecmath.decay(m, -m.abs(z), m.select(negative, z_low, -z_low))
    q, scale = _of_sign(m, negative, e)
    return m.select(negative, clipped * e, x) / (q + 1.0) * scale


def _gelu_tanh_derivative(m: Machine, x: Value) -> Value:
    # f' = (1 + q + h) q / (1 + q)^2 for x < 0, (1 + q + h q) / (1 + q)^2 else, with h = x z' = z + 2 c x. The former
    # crosses zero: there 1 + z + q is exact, and what was rounded off its terms is put back: e_low with q at the
    # crossing, where it matters, and with about what the quotient feels of it elsewhere.
    negative = x < 0.0
    x, z, z_low, c, c_low = _gelu_tanh_argument(m, x)
    twice = x + x
    e, e_low = vecmath.decay(m, -m.abs(z), m.select(negative, z_low, -z_low))
    q, scale = _of_sign(m, negative, e)
    first = z + 1.0
    total = first + q
    below = m.fma(twice, c, m.fma(twice, c_low, z_low) + ((first - total) + q)) + total
    above = m.fma(q, m.fma(twice, c, z + z_low), q + 1.0)
    numerator = m.select(negative, m.fma(below, e, m.fma(below, 0.5, q) * e_low), above)
    return numerator / m.fma(q, q + 2.0, m.full(1.0)) * scale


def _silu(m: Machine, x: Value) -> Value:
    negative = x < 0.0
    e, _ = _decay(m, x)
    q, scale = _of_sign(m, negative, e)
    return m.select(negative, m.maximum(x, vecmath.lowest(m)) * e, x) / (q + 1.0) * scale


def _silu_derivative(m: Machine, x: Value) -> Value:
    # With q = exp(-|x|): (1 + x + q) q / (1 + q)^2 for x < 0, which crosses zero where 1 + x + q is exact, and what was
    # rounded off q is put back; (1 + q + x q) / (1 + q)^2 else.
    negative = x < 0.0
    e, e_low = _decay(m, x)
    x = _clamp(m, x)
    q, scale = _of_sign(m, negative, e)
    below = (x + 1.0) + q
    numerator = m.select(negative, m.fma(below, e, m.fma(below, 0.5, q) * e_low), m.fma(x, q, q + 1.0))
    return numerator / m.fma(q, q + 2.0, m.full(1.0)) * scale


def _mish(m: Machine, x: Value) -> Value:
    # tanh(softplus(x)) = y (y + 2) / (y (y + 2) + 2) with y = exp(x), for x < 0; (2 y + 2) / (the same) with
    # y = 2 exp(-x) else.
    negative = x < 0.0
    e, e_low = _decay(m, x)
    q, scale = _of_sign(m, negative, e)
    y = m.select(negative, q, q + q)
    p = y + 2.0
    tanh = m.select(negative, m.fma(p, e, p * e_low), p + y) / m.fma(y, p, m.full(2.0))
    return m.maximum(x, vecmath.lowest(m)) * tanh * scale


def _mish_derivative(m: Machine, x: Value) -> Value:
    # With the same y and d = (y^2 + 2 y + 2)^2. For x >= 0: (4 + 8 y + y^2 (6 + 2 y + 4 x + 2 x y)) / d. For x < 0:
    # (y^3 + 4 y^2 + 6 y + 4 + 4 x (1 + y)) y / d, whose factor crosses zero where 4 + 4 x + 2.5 y and 3.5 + 4 x + 4 y
    # are small and therefore exact. What was rounded off the factor and off y is put back, the latter with a straight
    # line for what the quotient feels of it: the factor plus (9 - 16.5 y) y.
    negative = x < 0.0
    e, e_low = _decay(m, x)
    x = _clamp(m, x)
    q, scale = _of_sign(m, negative, e)
    y = m.select(negative, q, q + q)
    a = m.fma(x, 4.0, m.full(4.0))
    large, small = m.fma(q, 2.5, a), m.fma(q, q, m.fma(q, 4.0, a - 0.5))
    below = m.fma(q, small, large)
    rest = m.fma(q, small, large - below)
    rest = m.fma(rest, e, m.fma(q, m.fma(q, -16.5, m.full(9.0)), below) * e_low)
    above = m.fma(y, m.fma(y, m.fma(y, a * 0.5, a + 2.0), m.full(8.0)), m.full(4.0))
    numerator = m.select(negative, m.fma(below, e, rest), above)
    return numerator / m.poly(y, 1.0, 4.0, 8.0, 8.0, 4.0) * scale


def _softplus(m: Machine, x: Value, beta: Value | None = None) -> Value:
    z = x if beta is None else x * beta
    y = m.maximum(z, 0.0) + vecmath.log1p_unit(m, vecmath.exp_negative(m, -m.abs(z)))
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
        lambda m, x: m.select(
            x > 0.0, SELU_SCALE, vecmath.exp_negative(m, m.minimum(x, 0.0)) * (SELU_SCALE * SELU_ALPHA)
        ),
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


def rows_kernel(step: Callable[..., None], dtype: np.dtype, streaming: bool) -> Any:
    """Return the Python function of a kernel that writes ROWS rows of dx, and their sum.

    step : step(m, dy, x, dx, sums, width, numbers, entry, record) writes part of a row and adds it to `sums`; entry is
        its place in the whole array, record what the block has of its own
    streaming : store dx past the caches

    pointers: dy, x, dx, sums (blocks, N + a cache line + record), rows, N, numbers, bytes of a row of sums

    Where dx is stored past the caches, a row is taken from a column that begins a cache line to the same column of the
    next row: with parts of lines at both ends of each row, gelu took 8.4 ms in place of 7.0 (one thread, 8192 x 2048).
    The sums of the columns before that one are kept behind the others until the end. Every column still adds up its
    rows in their order.
    """
    item = dtype.itemsize

    def clear(m, sums, width):
        m.over(0, width, lambda index, mask: m.store(sums + index * item, m.zero(), mask))

    def finish(m, sums, columns, begin):
        """Move the sums of the first `begin` columns from behind the others to their place."""
        m.over(0, begin, lambda i, mask: m.store(sums + i * item, m.load(sums + (columns + i) * item, mask), mask))
        if streaming:
            m.fence()

    run, clear, finish = (traced(function, dtype) for function in (step, clear, finish))

    def kernel(block, pointers):
        dy, x, dx, numbers = pointers[0], pointers[1], pointers[2], pointers[6]
        rows, columns = pointers[4], pointers[5]
        stride = columns * item
        sums = pointers[3] + block * pointers[7]
        record = sums + stride + CACHE_LINE
        row = block * ROWS
        last = min(row + ROWS, rows)
        begin = 0
        if streaming and stride % CACHE_LINE == 0:
            begin = (-(dx + row * stride) % CACHE_LINE) // item
        clear(sums, columns + begin)
        entry = row * columns
        at = entry * item
        run(dy + at, x + at, dx + at, sums + stride, begin, numbers, entry, record)
        entry += begin
        at = entry * item
        sums_here = sums + begin * item
        for _ in range(row, last - 1):
            run(dy + at, x + at, dx + at, sums_here, columns, numbers, entry, record)
            entry += columns
            at += stride
        run(dy + at, x + at, dx + at, sums_here, columns - begin, numbers, entry, record)
        finish(sums, columns, begin)

    return kernel


@runtime.kernel
def _backward_rows(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    derivative = FUNCTIONS[kind][1]
    item = dtype.itemsize

    def step(m, dy, x, dx, sums, width, numbers, entry, record):
        constants = [m.splat(m.load_double(numbers + i * 8)) for i in range(params)]

        def body(index: Value, mask: Value | None) -> None:
            at = index * item
            value = m.load_ahead(dy + at, mask) * derivative(m, m.load_ahead(x + at, mask), *constants)
            m.store(dx + at, value, mask, streaming and mask is None)
            m.store(sums + at, m.load(sums + at, mask) + value, mask)

        m.over(0, width, body, dx if streaming else None)

    return rows_kernel(step, dtype, streaming)


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
    kernel = _backward_rows(kind, x.dtype, len(params), streaming)
    run_rows(kernel, dy, x, out, bias_grad, params)


def run_rows(
    kernel: runtime.Kernel, dy: np.ndarray, x: np.ndarray, out: np.ndarray, bias_grad: np.ndarray,
    numbers: tuple[float, ...], record_bytes: int = 0,
) -> None:  # fmt: skip
    """Run a `rows_kernel` on matrices of rows of bias_grad's size; each block has so many bytes of its own."""
    columns = bias_grad.size
    rows = x.size // columns if columns else 0
    if rows == 0:
        bias_grad[...] = 0
        return
    blocks = -(-rows // ROWS)
    sums = empty((blocks, columns + (CACHE_LINE + record_bytes) // x.itemsize), x.dtype)
    stride = sums.strides[0]
    pointers = dy, x, out, sums, rows, columns, numbers, stride
    launch = kernel, blocks, pointers, x.size > streams.PARALLEL_SIZE
    if columns > 1:
        runtime.run_in_turn(launch, adding_rows(sums, stride, blocks, columns, bias_grad))
    else:
        runtime.run(*launch)
        add_column(sums[:, :1], bias_grad)
