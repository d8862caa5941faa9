"""Dropout, alone and behind an activation: contracts and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._arrays import Array
from fastgrad._checks import finish, float_array, float_array_like, number, output
from fastgrad._dispatch import kernels
from fastgrad.activations import parameters_of

__all__ = ["activation_dropout", "activation_dropout_backward", "dropout", "dropout_backward"]

EVERYTHING = 1 << 32  # the threshold below which each random number falls
EVERY_COUNT = 1 << 64


def counted(name: str, value: Any) -> int:
    """Return a seed or an offset of counted random numbers as an int, inside 64 bits."""
    if type(value) is int and 0 <= value < EVERY_COUNT:
        return value
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__qualname__}")
    if not 0 <= value < EVERY_COUNT:
        raise ValueError(f"{name}: expected 0 to 2^64 - 1, got {value}")
    return int(value)


def _random(p: Any, seed: Any, offset: Any) -> tuple[int, float, int, int]:
    """Return what the kernels take: threshold, scale, seed and offset."""
    p = number("p", p, 0.0, 1.0)
    threshold = round(p * 2**32)
    scale = 0.0 if threshold == EVERYTHING else 1.0 / (1.0 - p)
    return threshold, scale, counted("seed", seed), counted("offset", offset)


def _dropped(name: str, value: Any, p: float, seed: int, offset: int, out: Array | None) -> Array:
    source = float_array(name, value)
    random = _random(p, seed, offset)
    result = output("out", out, name, value, aliases=((name, value),))
    if random[0] == EVERYTHING:
        result.fill(0)
    elif source.size:
        kernels("dropout", source).dropout(source.reshape(-1), *random, result.reshape(-1))
    return finish(out, result)


def dropout(x: Array, p: float, seed: int, offset: int = 0, *, out: Array | None = None) -> Array:
    """Set each entry to 0 with probability p and scale the others: y = x / (1 - p) where it is kept, else 0.

    Which entries are kept depends on (seed, offset), p and the position in C order only: it is the same on CPU and GPU,
    in float32 and float64, for any number of threads, and `dropout_backward` finds it again, so nothing is stored. Take
    another offset for each call. The random numbers are Philox 4x32-10, p is rounded to a multiple of 2^-32. A NaN that
    is dropped becomes 0.

    Args:
        x: any shape, float32 or float64. A strided array is copied first.
        p: probability that an entry is dropped, 0 to 1.
        seed, offset: integers from 0 to 2^64 - 1.
        out: array of the shape and dtype of x that receives y. It may be x, and may not overlap it otherwise.

    Returns:
        y, the shape and dtype of x; `out` itself where it is given.

    Raises:
        TypeError: x or out is no array, or not float32 or float64; seed or offset is no integer.
        ValueError: p, seed or offset is out of range; out has another shape, is read-only or overlaps x.

    Sources: Srivastava et al., Dropout, 2014; Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
    """
    return _dropped("x", x, p, seed, offset, out)


def dropout_backward(dy: Array, p: float, seed: int, offset: int = 0, *, out: Array | None = None) -> Array:
    """Return the gradient of `dropout`, dx = dy / (1 - p) where the entry was kept, else 0.

    Args:
        dy: gradient of y, the shape and dtype of x.
        p, seed, offset: as in `dropout`.
        out: array of the shape and dtype of dy that receives dx. It may be dy, and may not overlap it otherwise.

    Returns:
        dx, the shape and dtype of dy; `out` itself where it is given.

    Raises:
        TypeError, ValueError: as in `dropout`.
    """
    return _dropped("dy", dy, p, seed, offset, out)


def activation_dropout(
    x: Array, kind: str, p: float, seed: int, offset: int = 0, *, out: Array | None = None, **params: float
) -> Array:
    """Apply an activation and drop entries of what comes out, in one pass: y = f(x) / (1 - p) where kept, else 0.

    To the bit `dropout(activation(x, kind, **params), p, seed, offset)`, of which it keeps the contract: which entries
    are kept depends on seed, offset, p and the position only, and nothing is stored.

    Args:
        x: any shape, float32 or float64. A strided array is copied first.
        kind, params: as in `activation`.
        p, seed, offset: as in `dropout`.
        out: array of the shape and dtype of x that receives y. It may be x, and may not overlap it otherwise.

    Returns:
        y, the shape and dtype of x; `out` itself where it is given.

    Raises:
        TypeError, ValueError: as in `activation` and `dropout`.
    """
    source = float_array("x", x)
    values = parameters_of(kind, params, source)
    random = _random(p, seed, offset)
    y = output("out", out, "x", x, aliases=(("x", x),))
    if random[0] == EVERYTHING:
        y.fill(0)
    elif random[0] == 0:
        kernels("activation", source).activation(source, kind, values, y)
    elif source.size:
        kernels("activation_dropout", source).activation_dropout(source, kind, values, *random, y)
    return finish(out, y)


def activation_dropout_backward(
    dy: Array,
    x: Array,
    kind: str,
    p: float,
    seed: int,
    offset: int = 0,
    *,
    out: Array | None = None,
    bias_grad: Array | None = None,
    **params: float,
) -> Array:
    """Return the gradient of `activation_dropout`, dx = f'(x) dy / (1 - p) where the entry was kept, else 0.

    To the bit `activation_backward(dropout_backward(dy, p, seed, offset), x, kind, **params)`, in one pass: a NaN in x
    gives NaN also where the entry was dropped. With p = 1 everything is 0.

    Args:
        dy: gradient of y, the shape and dtype of x.
        x: what `activation_dropout` was applied to.
        kind, params: as in `activation`.
        p, seed, offset: those of the forward pass.
        out: array of the shape and dtype of x that receives dx. It may be dy or x, and may not overlap them otherwise.
        bias_grad: as in `activation_backward`: overwritten with the sum of dx over all axes but the last.

    Returns:
        dx, the shape and dtype of x; `out` itself where it is given.

    Raises:
        TypeError, ValueError: as in `activation_backward` and `dropout`.
    """
    source = float_array("x", x)
    values = parameters_of(kind, params, source)
    upstream = float_array_like("dy", dy, "x", source)
    random = _random(p, seed, offset)
    dx = output("out", out, "x", x, aliases=(("dy", dy), ("x", x)))
    total = None
    if bias_grad is not None:
        if x.ndim == 0:
            raise ValueError("bias_grad: x has no axes, so there is no last one to keep; leave bias_grad out")
        apart = [("dy", dy), ("x", x)] if out is None else [("dy", dy), ("x", x), ("out", out)]
        total = output("bias_grad", bias_grad, "x", x, shape=x.shape[-1:], apart=apart)
    if random[0] == EVERYTHING:
        dx.fill(0)
        if total is not None:
            total.fill(0)
    elif random[0] == 0:
        kernels("activation", source).activation_backward(upstream, source, kind, values, dx, total)
    elif source.size or total is not None:
        module = kernels("activation_dropout", source)
        module.activation_dropout_backward(upstream, source, kind, values, *random, dx, total)
    if total is not None:
        finish(bias_grad, total)
    return finish(out, dx)
