"""Initialisers: fresh weights whose forward and backward signals neither vanish nor explode at the start.

All take the shape of the weight and return a new array. A weight is (out, in) as in torch; further axes are a
receptive field, as in a convolution's (out, in, height, width). Then

    fan_in  = in  * product of the receptive field     inputs that one output sums over
    fan_out = out * product of the receptive field     outputs that one input feeds

`rng` is a numpy Generator, a seed, or None for fresh entropy. Values are drawn in the dtype asked for, so the same
seed gives different numbers in float32 and float64. They are drawn on the CPU and returned as NumPy arrays; a layer
takes them to its device, so that a seed gives the same weights there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "fan_in_uniform",
    "fans",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lstm_bias",
    "orthogonal",
    "xavier_normal",
    "xavier_uniform",
]

Array = np.ndarray[Any, np.dtype[Any]]
Rng = np.random.Generator | int | None


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of `shape` (out, in, *receptive field).

    Raises TypeError for anything but integers, and ValueError for fewer than two axes: a bias has no fan.
    """
    try:
        shape = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers (out, in), got {shape!r}") from None
    if len(shape) < 2:
        raise ValueError(
            f"shape must have at least the two axes (out, in), got {shape}; biases are set by hand, usually to zero"
        )
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must hold no negative size, got {shape}")
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def fan_in_uniform(shape: Sequence[int], *, c: float = 1.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from U(-a, a), a = c / sqrt(fan_in): the heuristic in common use before Xavier's.

    With c = 1 the variance of a signal falls to a third in every linear layer: Glorot & Bengio, 2010, equation 1. It is
    what torch and `layers.Linear` draw by default. c = sqrt(3) keeps the variance (LeCun's uniform; LeCun, Bottou, Orr
    & Müller, Efficient BackProp, 1998), c = sqrt(6) makes up for ReLU and is `he_uniform`.
    """
    fan_in, _ = fans(shape)
    return uniform(shape, c * _root(1.0, fan_in), rng, dtype)


def xavier_uniform(shape: Sequence[int], *, gain: float = 1.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)).

    Keeps the variance of signals and of gradients alike through layers with a slope of 1 at zero (tanh).
    Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    fan_in, fan_out = fans(shape)
    return uniform(shape, gain * _root(6.0, fan_in + fan_out), rng, dtype)


def xavier_normal(shape: Sequence[int], *, gain: float = 1.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from N(0, s^2), s = gain * sqrt(2 / (fan_in + fan_out)). Glorot & Bengio, 2010."""
    fan_in, fan_out = fans(shape)
    return normal(shape, gain * _root(2.0, fan_in + fan_out), rng, dtype)


def he_uniform(shape: Sequence[int], *, negative_slope: float = 0.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from U(-a, a), a = sqrt(6 / ((1 + negative_slope^2) * fan_in)).

    Makes up for the half of the signal that ReLU drops; `negative_slope` is that of a leaky ReLU behind the layer.
    He, Zhang, Ren & Sun, Delving Deep into Rectifiers, 2015.
    """
    fan_in, _ = fans(shape)
    return uniform(shape, _root(6.0, (1.0 + negative_slope**2) * fan_in), rng, dtype)


def he_normal(shape: Sequence[int], *, negative_slope: float = 0.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from N(0, s^2), s = sqrt(2 / ((1 + negative_slope^2) * fan_in)). He, Zhang, Ren & Sun, 2015."""
    fan_in, _ = fans(shape)
    return normal(shape, _root(2.0, (1.0 + negative_slope**2) * fan_in), rng, dtype)


def lecun_normal(shape: Sequence[int], *, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw from N(0, 1 / fan_in), not truncated: the start that SELU's fixed point needs.

    LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998; Klambauer et al., Self-Normalizing Neural Networks, 2017.
    """
    fan_in, _ = fans(shape)
    return normal(shape, _root(1.0, fan_in), rng, dtype)


def orthogonal(shape: Sequence[int], *, gain: float = 1.0, rng: Rng = None, dtype: Any = np.float32) -> Array:
    """Draw a (semi-)orthogonal matrix, uniformly over all of them, times `gain`.

    The weight is taken as the matrix (out, in * receptive field): with at most as many rows as columns its rows are
    orthonormal, otherwise its columns. Every singular value is `gain`, so a product of many such matrices neither
    shrinks nor grows a gradient. The QR factor is computed in float64 and its signs fixed by R's diagonal.
    Saxe, McClelland & Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural networks,
    2014; Mezzadri, How to generate random matrices from the classical compact groups, 2007 (the signs).
    """
    fans(shape)
    dtype = float_dtype(dtype)
    rows, columns = int(shape[0]), math.prod(int(size) for size in shape[1:])
    gaussian = np.random.default_rng(rng).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(gaussian)
    q *= np.where(np.diagonal(r) < 0, -gain, gain)
    matrix = q if rows >= columns else q.T
    return np.ascontiguousarray(matrix.reshape(tuple(shape)), dtype=dtype)


def lstm_bias(hidden_size: int, *, forget: float = 1.0, dtype: Any = np.float32) -> Array:
    """Return a bias (4 hidden_size,) of an LSTM: `forget` for the forget gate, 0 for the others, in torch's order.

    A gate that starts open lets the gradient through time until it has learned what to forget. bias_ih and bias_hh are
    added up: give one of them this and the other zeros. Gers, Schmidhuber & Cummins, Learning to Forget, 2000;
    Jozefowicz, Zaremba & Sutskever, An Empirical Exploration of Recurrent Network Architectures, 2015 (forget = 1).
    """
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be at least 1, got {hidden_size}")
    bias = np.zeros(4 * hidden_size, float_dtype(dtype))
    bias[hidden_size : 2 * hidden_size] = forget
    return bias


def _root(numerator: float, denominator: float) -> float:
    """Return sqrt(numerator / denominator), or 0 for a weight without entries."""
    return math.sqrt(numerator / denominator) if denominator > 0 else 0.0


def float_dtype(dtype: Any) -> np.dtype[Any]:
    if dtype is None:  # for which NumPy has float64
        raise TypeError("dtype must be float32 or float64, got None")
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


def uniform(shape: Sequence[int], bound: float, rng: Rng, dtype: Any) -> Array:
    dtype = float_dtype(dtype)
    values = np.random.default_rng(rng).random(tuple(shape), dtype=dtype.type)
    values *= dtype.type(2.0 * bound)
    values -= dtype.type(bound)
    return values


def normal(shape: Sequence[int], deviation: float, rng: Rng, dtype: Any) -> Array:
    dtype = float_dtype(dtype)
    values = np.random.default_rng(rng).standard_normal(tuple(shape), dtype=dtype.type)
    values *= dtype.type(deviation)
    return values
