"""What people write by hand in NumPy: the baseline of the benchmarks, where a reference kernel is not already that.

A reference is careful in the tails, and pays for it. These are the plain formulas, with the passes over memory that
plain formulas have, and without the traps that a practised hand avoids (x**3 takes 60 times as long as x * x * x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import erf

Array = np.ndarray

SQRT_HALF = math.sqrt(0.5)
DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


def _silu_backward(dy: Array, x: Array) -> Array:
    s = _sigmoid(x)
    return dy * (s * (1 + x * (1 - s)))


def _gelu_backward(dy: Array, x: Array) -> Array:
    return dy * (0.5 * (1 + erf(x * SQRT_HALF)) + x * (np.exp(-0.5 * x * x) * DENSITY))


def _gelu_tanh_backward(dy: Array, x: Array) -> Array:
    square = x * x
    t = np.tanh(SQRT_2_OVER_PI * x * (1 + 0.044715 * square))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (SQRT_2_OVER_PI * (1 + 3 * 0.044715 * square)))


def _mish_backward(dy: Array, x: Array) -> Array:
    t = np.tanh(np.log1p(np.exp(x)))
    return dy * (t + x * _sigmoid(x) * (1 - t * t))


FORWARD: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + erf(x * SQRT_HALF)),
    "gelu_tanh": _gelu_tanh,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
}

# Kinds whose derivative is usually taken from the output y that the forward pass has left.
FROM_OUTPUT = ("sigmoid", "tanh")

# kind -> dx from dy and x, or from dy and y for the kinds of FROM_OUTPUT.
BACKWARD: dict[str, Callable[[Array, Array], Array]] = {
    "relu": lambda dy, x: dy * (x > 0),
    "silu": _silu_backward,
    "sigmoid": lambda dy, y: dy * (y * (1 - y)),
    "tanh": lambda dy, y: dy * (1 - y * y),
    "gelu": _gelu_backward,
    "gelu_tanh": _gelu_tanh_backward,
    "mish": _mish_backward,
}


def prelu(x: Array, weight: Array) -> Array:
    """Return PReLU of x (N, C, ...) with weight (C,) or (1,)."""
    return np.where(x > 0, x, _along_channels(weight, x) * x)


def prelu_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """Return dx and dweight of `prelu`."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1) if weight.size > 1 else None
    dweight = np.sum(dy * np.minimum(x, 0), axis=axes)
    return dy * np.where(x > 0, np.float32(1), _along_channels(weight, x)), dweight.reshape(weight.shape)


def _along_channels(weight: Array, x: Array) -> Array:
    return weight.reshape(-1, *[1] * (x.ndim - 2))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return y, and mean and rstd of each row of x (M, N)."""
    mean = x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axis=1, keepdims=True) + np.float32(eps))
    return weight * ((x - mean) * rstd) + bias, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """Return dx, dweight and dbias of `layer_norm`."""
    xhat, g = (x - mean) * rstd, weight * dy
    dx = rstd * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)


def batch_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return y, and mean and rstd of each column of x (M, N)."""
    mean = x.mean(axis=0)
    rstd = 1 / np.sqrt(x.var(axis=0) + np.float32(eps))
    return weight * ((x - mean) * rstd) + bias, mean, rstd


def batch_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """Return dx, dweight and dbias of `batch_norm`."""
    xhat = (x - mean) * rstd
    dweight, dbias = (dy * xhat).sum(axis=0), dy.sum(axis=0)
    return weight * rstd * (dy - dbias / len(x) - xhat * (dweight / len(x))), dweight, dbias


def dropout(x: Array, p: float, rng: np.random.Generator) -> Array:
    """Return x / (1 - p) where a random number keeps it, else 0."""
    return np.where(rng.random(x.shape, dtype=np.float32) >= p, x * np.float32(1 / (1 - p)), np.float32(0))


def global_norm(grads: Sequence[Array]) -> Array:
    """Return the l2 norm of all entries, one sum of squares for each array."""
    return np.sqrt(sum(np.sum(g * g) for g in grads))


def health(arrays: Sequence[Array]) -> list[list[float]]:
    """Return for each array its norm, largest magnitude, and counts of NaN, Inf, zero and subnormal entries."""
    tiny = np.finfo(arrays[0].dtype).tiny
    return [
        [
            float(np.linalg.norm(a)),
            float(np.abs(a).max()),
            np.isnan(a).sum(),
            np.isinf(a).sum(),
            (a == 0).sum(),
            ((a != 0) & (np.abs(a) < tiny)).sum(),
        ]
        for a in arrays
    ]


def clip_by_global_norm(grads: Sequence[Array], max_norm: float) -> Array:
    """Scale the gradients in place to at most this norm; return the norm before."""
    norm = global_norm(grads)
    coefficient = max_norm / (norm + 1e-6)
    if coefficient < 1:
        for g in grads:
            g *= coefficient
    return norm


def adam_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avg: Sequence[Array],
    exp_avg_sq: Sequence[Array],
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> None:
    """Take Adam's step as its paper writes it, in place on params and state."""
    for p, g, m, v in zip(params, grads, exp_avg, exp_avg_sq, strict=True):
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        m_hat = m / (1 - beta1**step)
        v_hat = v / (1 - beta2**step)
        p -= lr * m_hat / (np.sqrt(v_hat) + eps)


def sgd_step(
    params: Sequence[Array], grads: Sequence[Array], momentum_buffer: Sequence[Array], lr: float, momentum: float
) -> None:
    """Take a step with momentum, in place on params and buffers."""
    for p, g, b in zip(params, grads, momentum_buffer, strict=True):
        b *= momentum
        b += g
        p -= lr * b


def rmsprop_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    square_avg: Sequence[Array],
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
) -> None:
    """Take an RMSprop step, in place on params and averages."""
    for p, g, v in zip(params, grads, square_avg, strict=True):
        v *= alpha
        v += (1 - alpha) * (g * g)
        p -= lr * g / (np.sqrt(v) + eps)
