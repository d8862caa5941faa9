"""Activations and their derivatives, from the equations, in the dtype of the array.

The derivatives are written so that no digits are lost in the tails: tanh' is 1/cosh^2 and not 1 - tanh^2,
sigmoid' is s(x) s(-x) and not s (1 - s). At x = +-inf every kind gives its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

Array = np.ndarray

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def _finite(x: Array) -> Array:
    # An infinite x times a factor that is 0 there would be NaN; the largest number gives the limit.
    largest = float(np.finfo(x.dtype).max)
    return np.clip(x, -largest, largest)


def _identity(x: Array) -> Array:
    return x


def _identity_grad(x: Array) -> Array:
    return np.ones_like(x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _piecewise(x: Array, choices: list[tuple[Array, Array | float]], default: Array | float) -> Array:
    # A comparison with NaN is false and would pass it in silence, so NaN is a piece of its own.
    pieces = [(np.isnan(x), x), *choices]
    return np.select([c for c, _ in pieces], [v for _, v in pieces], default)


def _relu_grad(x: Array) -> Array:
    return _piecewise(x, [(x > 0, 1.0)], 0.0)


def _leaky_relu(x: Array, negative_slope: float) -> Array:
    return np.where(x > 0, x, negative_slope * x)


def _leaky_relu_grad(x: Array, negative_slope: float) -> Array:
    return _piecewise(x, [(x > 0, 1.0)], negative_slope)


def _hardtanh(x: Array, min_val: float, max_val: float) -> Array:
    return np.clip(x, min_val, max_val)


def _hardtanh_grad(x: Array, min_val: float, max_val: float) -> Array:
    return _piecewise(x, [((x > min_val) & (x < max_val), 1.0)], 0.0)


def _relu6(x: Array) -> Array:
    return _hardtanh(x, 0.0, 6.0)


def _relu6_grad(x: Array) -> Array:
    return _hardtanh_grad(x, 0.0, 6.0)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu_grad(x: Array, alpha: float) -> Array:
    return np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))


def _celu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x / alpha, 0)))


def _celu_grad(x: Array, alpha: float) -> Array:
    return np.where(x > 0, 1, np.exp(np.minimum(x / alpha, 0)))


def _selu(x: Array) -> Array:
    return SELU_SCALE * _elu(x, SELU_ALPHA)


def _selu_grad(x: Array) -> Array:
    return SELU_SCALE * _elu_grad(x, SELU_ALPHA)


def _gelu(x: Array) -> Array:
    return np.maximum(x, -float(np.finfo(x.dtype).max)) * ndtr(x)


def _gelu_grad(x: Array) -> Array:
    x = _finite(x)
    density = np.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return ndtr(x) + x * density


def _gelu_tanh(x: Array) -> Array:
    # (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its digits where tanh(u) is close to -1.
    u = SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3)
    return np.maximum(x, -float(np.finfo(x.dtype).max)) * sigmoid(2 * u)


def _gelu_tanh_grad(x: Array) -> Array:
    # Past |x| = 1e3 the sigmoids are exactly 0 and 1 in any dtype, and x^3 would overflow.
    x = np.clip(x, -1e3, 1e3)
    u = SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3)
    du = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x**2)
    s = sigmoid(2 * u)
    return s + 2 * x * du * s * sigmoid(-2 * u)


def _silu(x: Array) -> Array:
    return np.maximum(x, -float(np.finfo(x.dtype).max)) * sigmoid(x)


def _silu_grad(x: Array) -> Array:
    x = _finite(x)
    return sigmoid(x) * (1 + x * sigmoid(-x))


def _mish(x: Array) -> Array:
    return np.maximum(x, -float(np.finfo(x.dtype).max)) * np.tanh(np.logaddexp(0, x))


def _mish_grad(x: Array) -> Array:
    x = _finite(x)
    softplus = np.logaddexp(0, x)
    sech = 1 / np.cosh(softplus)
    return np.tanh(softplus) + x * sigmoid(x) * sech * sech


def _softplus(x: Array, beta: float) -> Array:
    return np.logaddexp(0, beta * x) / beta


def _softplus_grad(x: Array, beta: float) -> Array:
    return sigmoid(beta * x)


def _softsign(x: Array) -> Array:
    x = _finite(x)
    return x / (1 + np.abs(x))


def _softsign_grad(x: Array) -> Array:
    r = 1 / (1 + np.abs(x))
    return r * r


def _sigmoid_grad(x: Array) -> Array:
    return sigmoid(x) * sigmoid(-x)


def _logsigmoid(x: Array) -> Array:
    return -np.logaddexp(0, -x)


def _logsigmoid_grad(x: Array) -> Array:
    return sigmoid(-x)


def _tanh_grad(x: Array) -> Array:
    sech = 1 / np.cosh(x)
    return sech * sech


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x + 3, 0, 6) / 6


def _hardsigmoid_grad(x: Array) -> Array:
    return _piecewise(x, [((x > -3) & (x < 3), 1.0 / 6.0)], 0.0)


def _hardswish(x: Array) -> Array:
    return np.maximum(x, -3) * (np.clip(x + 3, 0, 6) / 6)


def _hardswish_grad(x: Array) -> Array:
    return _piecewise(x, [(x <= -3, 0.0), (x < 3, x / 3 + 0.5)], 1.0)


# kind -> (f, f'), each called with x and then the parameters in the order of the public signature.
FUNCTIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "identity": (_identity, _identity_grad),
    "relu": (_relu, _relu_grad),
    "leaky_relu": (_leaky_relu, _leaky_relu_grad),
    "relu6": (_relu6, _relu6_grad),
    "hardtanh": (_hardtanh, _hardtanh_grad),
    "elu": (_elu, _elu_grad),
    "celu": (_celu, _celu_grad),
    "selu": (_selu, _selu_grad),
    "gelu": (_gelu, _gelu_grad),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_grad),
    "silu": (_silu, _silu_grad),
    "mish": (_mish, _mish_grad),
    "softplus": (_softplus, _softplus_grad),
    "softsign": (_softsign, _softsign_grad),
    "sigmoid": (sigmoid, _sigmoid_grad),
    "logsigmoid": (_logsigmoid, _logsigmoid_grad),
    "tanh": (np.tanh, _tanh_grad),
    "hardsigmoid": (_hardsigmoid, _hardsigmoid_grad),
    "hardswish": (_hardswish, _hardswish_grad),
}


def activation(x: Array, kind: str, params: tuple[float, ...], out: Array) -> None:
    """Write f(x) into `out` (the shape of x; may be x)."""
    with np.errstate(all="ignore"):
        out[...] = FUNCTIONS[kind][0](x, *params)


def activation_backward(
    dy: Array, x: Array, kind: str, params: tuple[float, ...], out: Array, bias_grad: Array | None
) -> None:
    """Write dy * f'(x) into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    with np.errstate(all="ignore"):
        np.multiply(dy, FUNCTIONS[kind][1](x, *params), out=out)
        if bias_grad is not None:
            np.sum(out, axis=tuple(range(out.ndim - 1)), out=bias_grad)
