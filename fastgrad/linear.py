"""Affine map and table look-up for the layers: contracts and checks. Not part of the public names."""

from __future__ import annotations

import math

from fastgrad._arrays import empty, is_array
from fastgrad._checks import Array, integer, integers, sized_array
from fastgrad._dispatch import kernels
from fastgrad._shapes import Shapes

_FORWARD, _BACKWARD = Shapes("* K", "N K", "N?"), Shapes("* N", "* K", "N K")


def _rows(name: str, x: Array, size: int, weight: Array) -> Array:
    # x (..., size) as (M, size), contiguous.
    rows = _matrix(x) if is_array(x) and x.ndim > 0 and x.shape[-1] == size else x
    return sized_array(name, rows, "M K", {"K": size}, "weight", weight)


def _matrix(a: Array) -> Array:
    return a if a.ndim == 2 else a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return y = x W^T + b.

    Args:
        x: (..., K), float32 or float64.
        weight: (N, K), the dtype of x.
        bias: (N,) or None, the dtype of x.

    Returns:
        y (..., N).

    Raises:
        TypeError: not arrays of one dtype, float32 or float64.
        ValueError: a shape does not fit.
    """
    if _FORWARD.fit(x, weight, bias):
        rows = _matrix(x)
    else:
        sizes: dict[str, int] = {}
        weight = sized_array("weight", weight, "N K", sizes)
        rows = _rows("x", x, sizes["K"], weight)
        if bias is not None:
            bias = sized_array("bias", bias, "N", sizes, "weight", weight)
    shape = rows.shape[0], weight.shape[0]
    y = empty(shape, rows.dtype, rows)
    kernels("linear", rows).forward(rows, weight, bias, y)
    return y if rows is x else y.reshape(*x.shape[:-1], shape[1])


def linear_backward(
    dy: Array, x: Array, weight: Array, *, with_bias: bool = True, with_dx: bool = True
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients of `linear`: dx = dy W, dweight = dy^T x, dbias = the sum of dy over its rows.

    Args:
        dy: (..., N), the dtype of x.
        x, weight: as in `linear`.
        with_bias, with_dx: whether dbias and dx are wanted.

    Returns:
        dx (the shape of x) or None, dweight (N, K), dbias (N,) or None.

    Raises:
        TypeError, ValueError: as in `linear`.
    """
    if _BACKWARD.fit(dy, x, weight):
        rows, gradient = _matrix(x), _matrix(dy)
    else:
        sizes: dict[str, int] = {}
        weight = sized_array("weight", weight, "N K", sizes)
        rows = _rows("x", x, sizes["K"], weight)
        if is_array(dy) and dy.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"dy: expected shape {(*x.shape[:-1], sizes['N'])}, got {dy.shape}")
        gradient = _rows("dy", dy, sizes["N"], weight)
    dtype, shape = weight.dtype, weight.shape
    dx = empty(rows.shape, dtype, rows) if with_dx else None
    dweight = empty(shape, dtype, rows)
    dbias = empty(shape[0], dtype, rows) if with_bias else None
    kernels("linear", rows).backward(gradient, rows, weight, dx, dweight, dbias)
    if dx is not None and dx.shape != x.shape:
        dx = dx.reshape(x.shape)
    return dx, dweight, dbias


def embedding(weight: Array, indices: Array) -> Array:
    """Return the rows of a table: y[...] = weight[indices[...]].

    Args:
        weight: (V, E), float32 or float64.
        indices: integers of any dtype and shape, from 0 to V - 1. On a device nobody looks at them beforehand: one out
            of range gives a row of NaN.

    Returns:
        y, the shape of indices and one more axis E.

    Raises:
        TypeError: weight is no float array, or indices are no array of integers.
        ValueError: an index is out of range.
    """
    sizes: dict[str, int] = {}
    weight = sized_array("weight", weight, "V E", sizes)
    rows = integers("indices", indices, None, 0, sizes["V"], "the table has as many rows", "weight", weight)
    y = empty((rows.size, sizes["E"]), weight.dtype, weight)
    kernels("embedding", weight).forward(weight, rows.reshape(-1), y)
    return y.reshape(*indices.shape, sizes["E"])


def embedding_backward(dy: Array, indices: Array, num_embeddings: int) -> Array:
    """Return the gradient of the table of `embedding`: each row gets the sum of dy over its uses, 0 if it has none.

    Args:
        dy: the shape of indices and one more axis E, float32 or float64.
        indices: as in `embedding`. On a device the row of dy of one out of range is left out.
        num_embeddings: V, 0 or more.

    Returns:
        dweight (V, E), summed in the order of the indices.

    Raises:
        TypeError, ValueError: as in `embedding`.
    """
    if type(num_embeddings) is not int or num_embeddings < 0:
        num_embeddings = integer("num_embeddings", num_embeddings, 0)
    rows = integers("indices", indices, None, 0, num_embeddings, "the table has as many rows", "dy", dy)
    flat = dy
    if is_array(dy):
        if dy.shape[:-1] != rows.shape:
            raise ValueError(f"dy: expected shape {rows.shape} and one more axis, got {dy.shape}")
        flat = dy.reshape(rows.size, dy.shape[-1])
    gradient = sized_array("dy", flat, "n E", {})
    dweight = empty((num_embeddings, gradient.shape[1]), gradient.dtype, gradient)
    kernels("embedding", gradient).backward(gradient, rows.reshape(-1), dweight)
    return dweight
