"""Normalisation with its gradients: contracts and checks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastgrad._arrays import Array, empty, zeros
from fastgrad._checks import finish, flag, float_array, float_array_like, number, output, overlap, saved_by
from fastgrad._dispatch import kernels
from fastgrad._shapes import Shapes

__all__ = [
    "BatchNormGradients",
    "BatchNormSaved",
    "LayerNormGradients",
    "LayerNormSaved",
    "batch_norm",
    "batch_norm_backward",
    "layer_norm",
    "layer_norm_backward",
]


class LayerNormSaved(NamedTuple):
    """What `layer_norm_backward` needs: x as (M, N), its shape, mean and rstd (M,) in float64, what was given."""

    x: Array
    weight: Array
    mean: Array
    rstd: Array
    shape: tuple[int, ...]
    affine: tuple[bool, bool]


class LayerNormGradients(NamedTuple):
    """Gradients of `layer_norm`; dweight and dbias are None where there was no weight or no bias."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


def _per_channel(name: str, value: Any, x: Array, size: int, missing: float) -> Array:
    """Return a checked array (size,), or one of the number that leaves things as they are."""
    if value is None:
        array = zeros((size,), x.dtype, x)
        if missing:
            array.fill(missing)
        return array
    return float_array_like(name, value, "x", x, shape=(size,))


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5, *, out: Array | None = None
) -> tuple[Array, LayerNormSaved]:
    """Normalise over the last axis, y = weight (x - mean) / sqrt(var + eps) + bias.

    mean and var (of divisor N) are those of the N numbers that share all other indices, computed in float64 around the
    mean: nothing cancels where the mean is large beside the spread, and no float32 input overflows. NaN or Inf in a
    row make all of its y NaN.

    Args:
        x: (..., N), float32 or float64. A strided array is copied first.
        weight: (N,), the dtype of x; None stands for ones.
        bias: (N,), the dtype of x; None stands for zeros.
        eps: added to the variance, at least 0.
        out: array of the shape and dtype of x that receives y. It may not overlap the other arrays: backward reads x.

    Returns:
        y, the shape and dtype of x (`out` itself where it is given), and what `layer_norm_backward` needs, which holds
        x itself: do not overwrite x before.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x.
        ValueError: x has no axes, a shape does not fit, out is read-only or overlaps, eps is negative.

    Source: Ba, Kiros & Hinton, Layer Normalization, 2016.
    """
    source = float_array("x", x)
    if source.ndim == 0:
        raise ValueError("x: expected at least one axis to normalise over, got shape ()")
    eps = number("eps", eps, 0.0)
    size = source.shape[-1]
    w = _per_channel("weight", weight, source, size, 1.0)
    b = _per_channel("bias", bias, source, size, 0.0)
    if out is None:
        y = empty(source.shape, source.dtype, source)
    else:
        apart = [(name, a) for name, a in (("x", x), ("weight", weight), ("bias", bias)) if a is not None]
        y = output("out", out, "x", source, apart=apart)
    matrix = source.reshape(source.size // size if size else 0, size)
    mean, rstd = empty((2, matrix.shape[0]), np.float64, source)
    kernels("layer_norm", source).layer_norm(matrix, w, b, eps, y.reshape(matrix.shape), mean, rstd)
    saved = LayerNormSaved(matrix, w, mean, rstd, source.shape, (weight is not None, bias is not None))
    return finish(out, y), saved


def layer_norm_backward(dy: Array, saved: LayerNormSaved, *, out: Array | None = None) -> LayerNormGradients:
    """Return the gradients of `layer_norm`, in one pass over dy and x.

    With g = weight dy and xhat = (x - mean) rstd:  dx = rstd (g - mean of g - xhat mean of (g xhat)), means over the
    last axis; dweight = sum of dy xhat and dbias = sum of dy over all other axes, with the same bits for any number of
    threads.

    Args:
        dy: gradient of y, the shape and dtype of x.
        saved: what `layer_norm` returned.
        out: array of the shape and dtype of x that receives dx. It may be dy, and may not overlap it otherwise.

    Returns:
        A named tuple dx, dweight, dbias; the last two are None where `layer_norm` had no weight or no bias.

    Raises:
        TypeError: saved is something else; dy or out is no array, or not of the dtype of x.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    saved_by(LayerNormSaved, saved, "layer_norm")
    gradient, dx, dweight, dbias = _for_backward(dy, saved, out)
    shape = saved.x.shape
    kernels("layer_norm", saved.x).layer_norm_backward(
        gradient.reshape(shape), saved.x, saved.weight, saved.mean, saved.rstd, dx.reshape(shape), dweight, dbias
    )
    with_weight, with_bias = saved.affine
    return LayerNormGradients(finish(out, dx), dweight if with_weight else None, dbias if with_bias else None)


def _for_backward(dy: Any, saved: Any, out: Any) -> tuple[Array, Array, Array, Array]:
    """Return the checked dy, and the arrays for dx, dweight and dbias."""
    gradient = float_array_like("dy", dy, "x", saved.x, shape=saved.shape)
    if out is None:
        dx = empty(saved.shape, saved.x.dtype, saved.x)
    else:
        apart = (("x", saved.x), ("weight", saved.weight))
        dx = output("out", out, "x", saved.x, shape=saved.shape, aliases=(("dy", dy),), apart=apart)
    dweight, dbias = empty((2, *saved.weight.shape), saved.x.dtype, saved.x)
    return gradient, dx, dweight, dbias


_BATCH_NORM = Shapes("B C *", "C?", "C?", "C?!", "C?!")


class BatchNormSaved(NamedTuple):
    """What `batch_norm_backward` needs: x as (outer, C, inner), its shape, mean and rstd (C,) in float64, the mode."""

    x: Array
    weight: Array
    mean: Array
    rstd: Array
    training: bool
    shape: tuple[int, ...]
    affine: tuple[bool, bool]


class BatchNormGradients(NamedTuple):
    """Gradients of `batch_norm`; dweight and dbias are None where there was no weight or no bias."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


def _apart(a: Array, b: Array) -> bool:
    return a is not b and a.base is None and b.base is None


def _refuse_shared(running_mean: Array, running_var: Array, x: Array, weight: Any, bias: Any) -> None:
    """Raise ValueError where running statistics share memory with each other or with an input."""
    if running_mean is not running_var and running_mean.flags.owndata and running_var.flags.owndata:
        return  # only a view of them can be among the inputs then, which costs a microsecond to rule out
    given = (("running_var", running_var), ("x", x), ("weight", weight), ("bias", bias))
    pairs = [("running_mean", running_mean, *other) for other in given]
    pairs += [("running_var", running_var, *other) for other in given[1:]]
    for name, array, other_name, other in pairs:
        if other is not None and overlap(array, other):
            raise ValueError(
                f"{name} and {other_name} overlap in memory, but {name} is updated in place; pass an array of its own"
            )


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, BatchNormSaved]:
    """Normalise each channel, axis 1 of x, over all other axes: y = weight (x - mean) / sqrt(var + eps) + bias.

    In training mean and var (of divisor n) are those of the n numbers of a channel, summed in float64 around one of
    them, in a fixed order: the same bits for any number of threads. In evaluation they are running_mean and
    running_var. NaN or Inf in a channel make all of its y NaN in training.

    Args:
        x: (B, C) or (B, C, ...), float32 or float64. A strided array is copied first.
        weight, bias: (C,), the dtype of x; None stands for ones, and for zeros.
        running_mean, running_var: (C,), the dtype of x, C-contiguous; both or none. In training they are updated in
            place, running += momentum (new - running), with the unbiased variance, as in torch, and may not overlap
            each other or an input.
        training: use the statistics of the batch, and update the running ones.
        momentum: weight of the new statistics, 0 to 1.
        eps: added to the variance, at least 0.
        out: array of the shape and dtype of x that receives y. It may not overlap the other arrays.

    Returns:
        y, the shape and dtype of x (`out` itself where it is given), and what `batch_norm_backward` needs, which holds
        x itself: do not overwrite x before.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x.
        ValueError: a shape does not fit, an output is read-only or overlaps, a number is out of its range; in training
            fewer than 2 numbers a channel; in evaluation no running statistics.

    Source: Ioffe & Szegedy, Batch Normalization, 2015.
    """
    fits = _BATCH_NORM.fit(x, weight, bias, running_mean, running_var)
    source = x if fits else float_array("x", x)
    size = source.shape
    if len(size) < 2:
        raise ValueError(f"x: expected shape (B, C) or (B, C, ...), got {size}")
    eps, momentum = number("eps", eps, 0.0), number("momentum", momentum, 0.0, 1.0)
    batch, count = size[:2]
    inner = math.prod(size[2:])
    training = flag("training", training)
    if training and batch * inner < 2:
        raise ValueError(f"x: expected at least 2 numbers for each channel in training, got shape {size}")
    if (running_mean is None) != (running_var is None):
        there, none = ("running_mean", "running_var") if running_var is None else ("running_var", "running_mean")
        raise ValueError(f"{none}: expected an array as {there} is one, got None; pass both or neither")
    w = weight if fits and weight is not None else _per_channel("weight", weight, source, count, 1.0)
    b = bias if fits and bias is not None else _per_channel("bias", bias, source, count, 0.0)
    running: tuple[Any, ...] | None = None if running_mean is None else (running_mean, running_var)
    if running is not None and not fits:
        names: tuple[tuple[str, Any], ...] = (("running_mean", running_mean), ("running_var", running_var))
        running = tuple(
            output(name, float_array_like(name, a, "x", source, shape=(count,)), "x", source, shape=(count,))
            for name, a in names
        )
        for kept, (name, a) in zip(running, names, strict=True):
            if kept is not a:
                raise ValueError(
                    f"{name}: expected a C-contiguous, aligned array, which is updated in place, got strides "
                    f"{a.strides} of {a.dtype}; pass {name}.copy() and keep that"
                )
    if running is not None and training and not (fits and _apart(*running)):
        _refuse_shared(running[0], running[1], x, weight, bias)
    if running is None and not training:
        raise ValueError("running_mean: expected the statistics to evaluate with, got None; pass training=True")
    if out is None:
        y = empty(size, source.dtype, source)
    else:
        given = {"x": x, "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        y = output("out", out, "x", source, apart=[(name, a) for name, a in given.items() if a is not None])
    x3 = source.reshape(batch, count, inner)
    kernel = kernels("batch_norm", source).batch_norm
    mean, rstd = kernel(x3, w, b, running, training, momentum, eps, y.reshape(x3.shape))
    affine = (weight is not None, bias is not None)
    return finish(out, y), BatchNormSaved(x3, w, mean, rstd, training, size, affine)


def batch_norm_backward(dy: Array, saved: BatchNormSaved, *, out: Array | None = None) -> BatchNormGradients:
    """Return the gradients of `batch_norm`, through the statistics of the batch where it was training.

    dx = weight rstd (dy - mean of dy - xhat mean of (dy xhat)) in training, means over all axes but 1; in evaluation
    dx = weight rstd dy. dweight = sum of dy xhat and dbias = sum of dy, with the same bits for any number of threads.

    Args:
        dy: gradient of y, the shape and dtype of x.
        saved: what `batch_norm` returned.
        out: array of the shape and dtype of x that receives dx. It may be dy, and may not overlap it otherwise.

    Returns:
        A named tuple dx, dweight, dbias; the last two are None where `batch_norm` had no weight or no bias.

    Raises:
        TypeError: saved is something else; dy or out is no array, or not of the dtype of x.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    saved_by(BatchNormSaved, saved, "batch_norm")
    gradient, dx, dweight, dbias = _for_backward(dy, saved, out)
    shape = saved.x.shape
    kernels("batch_norm", saved.x).batch_norm_backward(
        gradient.reshape(shape), saved.x, saved.weight, saved.mean, saved.rstd, saved.training, dx.reshape(shape),
        dweight, dbias,
    )  # fmt: skip
    with_weight, with_bias = saved.affine
    return BatchNormGradients(finish(out, dx), dweight if with_weight else None, dbias if with_bias else None)
