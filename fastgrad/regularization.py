"""Dropout: contracts and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._arrays import Array
from fastgrad._checks import finish, float_array, number, output
from fastgrad._dispatch import kernels

__all__ = ["dropout", "dropout_backward"]


def counted(name: str, value: Any) -> int:
    """Return a seed or an offset of counted random numbers as an int, inside 64 bits."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__qualname__}")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name}: expected 0 to 2^64 - 1, got {value}")
    return int(value)


def _dropped(name: str, value: Any, p: float, seed: int, offset: int, out: Array | None) -> Array:
    source = float_array(name, value)
    p, seed, offset = number("p", p, 0.0, 1.0), counted("seed", seed), counted("offset", offset)
    result = output("out", out, name, value, aliases=((name, value),))
    threshold = round(p * 2**32)
    if threshold == 1 << 32:
        result.fill(0)
    elif source.size:
        kernel = kernels("dropout", source).dropout
        kernel(source.reshape(-1), threshold, 1.0 / (1.0 - p), seed, offset, result.reshape(-1))
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
