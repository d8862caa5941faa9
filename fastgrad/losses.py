"""Losses with their gradients: contracts and checks."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from fastgrad._arrays import device_module, kept_for_graphs
from fastgrad._checks import Array, finish, float_array, float_array_like, integers, number, output
from fastgrad._dispatch import kernels

_LARGEST = float(np.finfo(np.float32).max)


def _scalar(loss: Any, like: Array) -> Array:
    module = device_module(like)
    if module is not None:
        return kept_for_graphs(module.full((), loss, like.dtype)) if type(loss) is float else loss
    if abs(loss) <= _LARGEST:
        return np.array(loss, dtype=like.dtype)
    # Kernels sum in double; what leaves the range of float32 is inf, without a warning, which takes 0.7 us.
    with np.errstate(over="ignore"):
        return np.array(loss, dtype=like.dtype)


def _class_number(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"ignore_index: expected an integer or None, got {type(value).__qualname__}") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"ignore_index: expected an integer of 64 bits, got {number}")
    return number


def softmax_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Return the mean cross-entropy of softmax(logits) against class numbers, in nats, and its gradient.

        loss = mean over rows of  log(sum_j exp(z_j)) - z_target,    dz_j = (softmax(z)_j - [j = target]) / M

    With label smoothing e the target's share of 1 becomes 1 - e, and e is spread over all classes (Szegedy et al.,
    Rethinking the Inception Architecture, 2016):  q_j = (1 - e) [j = target] + e / V  in place of  [j = target],
    sum_j q_j z_j  in place of  z_target.

    The largest logit of a row is taken off first, so large logits do not overflow. NaN in a row gives a NaN loss.
    No rows give a NaN loss and an empty gradient, as in torch.

    Args:
        logits: (..., V), V classes, float32 or float64; M is the number of rows that are not ignored.
        targets: integers of any dtype, the shape of logits without its last axis, from 0 to V - 1. On a device nobody
            looks at them beforehand: one out of range gives a NaN gradient of its row, and a NaN loss.
        label_smoothing: e, from 0 to 1.
        ignore_index: rows with this target, which need not be a class, have no part in the mean, and their gradient is
            0. None: every row counts; torch's default is -100.
        out: array of the shape and dtype of logits that receives the gradient. It may be logits, and may not overlap it
            otherwise.

    Returns:
        The loss, 0-d array of the dtype of logits, and the gradient, the shape of logits (`out` itself where given). On
        a device both stay there, and nothing waits for them.

    Raises:
        TypeError: logits are no array, or not float32 or float64; targets are no array of integers; ignore_index is no
            integer.
        ValueError: a shape does not fit, a target or label_smoothing is out of range, out is read-only or overlaps.
    """
    z = float_array("logits", logits)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with at least one class, got {z.shape}")
    V = z.shape[-1]
    meaning = "the number of classes is the last axis of logits"
    smoothing = number("label_smoothing", label_smoothing, 0.0, 1.0)
    if ignore_index is not None:
        ignore_index = _class_number(ignore_index)
    classes = integers("targets", targets, z.shape[:-1], 0, V, meaning, "logits", z, ignore_index)
    gradient = output("out", out, "logits", logits, aliases=(("logits", logits),), apart=(("targets", targets),))
    M = classes.size
    loss = math.nan
    if M:
        rows = z, classes, gradient
        if z.ndim != 2:
            rows = z.reshape(M, V), classes.reshape(M), gradient.reshape(M, V)
        loss = kernels("cross_entropy", z).cross_entropy(*rows, smoothing, ignore_index)
    return _scalar(loss, z), finish(out, gradient)


def mse(pred: Array, target: Array, *, out: Array | None = None) -> tuple[Array, Array]:
    """Return the mean squared error and its gradient: loss = mean of (p - t)^2, dp = 2 (p - t) / n.

    NaN in either array gives a NaN loss. Empty arrays give a NaN loss and an empty gradient, as in torch.

    Args:
        pred: any shape, float32 or float64; n is its size.
        target: the shape and dtype of pred.
        out: array of the shape and dtype of pred that receives the gradient. It may be pred or target, and may not
            overlap them otherwise.

    Returns:
        The loss, 0-d array of the dtype of pred, and the gradient, the shape of pred (`out` itself where given). On a
        device both stay there, and nothing waits for them.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of pred.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    p = float_array("pred", pred)
    t = float_array_like("target", target, "pred", p)
    gradient = output("out", out, "pred", pred, aliases=(("pred", pred), ("target", target)))
    loss = kernels("mse", p).mse(p, t, gradient) if p.size else math.nan
    return _scalar(loss, p), finish(out, gradient)


def binary_cross_entropy_with_logits(logits: Array, targets: Array, *, out: Array | None = None) -> tuple[Array, Array]:
    """Return the mean binary cross-entropy of sigmoid(logits) against targets, in nats, and its gradient.

        loss = mean of  -t log s(z) - (1 - t) log s(-z),    dz = (s(z) - t) / n,    s the sigmoid

    Computed from exp(-|z|), so that both are right to a few units in the last place out to where they underflow: at
    t = 1 and z = 50 in float32 the loss is 2e-22, and not 0. NaN in either array gives a NaN loss. Empty arrays give a
    NaN loss and an empty gradient, as in torch.

    Args:
        logits: any shape, float32 or float64; n is its size.
        targets: the shape and dtype of logits, from 0 to 1, which nobody looks at; 0 and 1 are the classes.
        out: array of the shape and dtype of logits that receives the gradient. It may be logits or targets, and may
            not overlap them otherwise.

    Returns:
        The loss, 0-d array of the dtype of logits, and the gradient, the shape of logits (`out` itself where given). On
        a device both stay there, and nothing waits for them.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of logits.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    z = float_array("logits", logits)
    t = float_array_like("targets", targets, "logits", z)
    gradient = output("out", out, "logits", logits, aliases=(("logits", logits), ("targets", targets)))
    loss = math.nan
    if z.size:
        loss = kernels("binary_cross_entropy", z).binary_cross_entropy(z, t, gradient)
    return _scalar(loss, z), finish(out, gradient)
