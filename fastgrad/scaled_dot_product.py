"""Scaled dot-product attention with its gradients: contracts and checks."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastgrad._arrays import Array, empty, is_array
from fastgrad._checks import distinct, finish, flag, float_array, number, output, same_array, saved_by, sequence_lengths
from fastgrad._dispatch import kernels
from fastgrad._shapes import Shapes
from fastgrad.regularization import counted

__all__ = ["AttentionGradients", "AttentionSaved", "attention", "attention_backward"]


_SHAPES, _GRADIENT = Shapes("B H T D", "B H S D", "B H S D"), Shapes("B H T D", "B H T D")


class AttentionSaved(NamedTuple):
    """What `attention_backward` needs: the arguments, y, and of each row of scores the largest and their sum."""

    q: Array
    k: Array
    v: Array
    y: Array
    largest: Array
    total: Array
    scale: float
    causal: bool
    lengths: Array | None
    dropped: tuple[int, float, int, int] | None
    module: ModuleType


class AttentionGradients(NamedTuple):
    """Gradients of `attention`."""

    dq: Array
    dk: Array
    dv: Array


def _takes_as_it_lies(a: Array) -> bool:
    """Say whether the kernels can walk an array: adjacent features, other axes any number of elements apart."""
    item, address = a.itemsize, a.data.ptr if type(a) is not np.ndarray else a.__array_interface__["data"][0]
    near = a.shape[-1] <= 1 or a.strides[-1] == item
    return near and address % item == 0 and all(stride >= 0 and stride % item == 0 for stride in a.strides[:-1])


def _read(name: str, value: Any, like: Array | None, shape: tuple[int, ...] | None) -> Array:
    if not is_array(value) or value.ndim != 4 or value.size == 0 or not _takes_as_it_lies(value):
        array = float_array(name, value)
    else:
        float_array(name, value[:0])  # its type and dtype
        array = value
    if like is not None:
        same_array(name, array, "q", like)
    if array.ndim != 4 or (shape is not None and array.shape != shape):
        wanted = "(B, H, T, D)" if shape is None else shape
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    return array


def _written(name: str, value: Any, q: Array, shape: tuple[int, ...], apart: Sequence[tuple[str, Array]]) -> Array:
    """Return where a kernel writes what `value` is to have: `value` itself where it can be walked."""
    scratch = output(name, value, "q", q, shape=shape, apart=apart)
    walkable = value is not None and _takes_as_it_lies(value) and distinct(value)
    return value if walkable else scratch


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    lengths: Array | list[int] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    out: Array | None = None,
) -> tuple[Array, AttentionSaved]:
    """Attend to values by the likeness of queries and keys: y = softmax((scale q) k^T) v, for each batch and head.

    No (T, S) matrix is ever in memory: scores are made in tiles, and the sum of a row's exponentials is kept along
    with the largest score that it was taken against, and rescaled when a larger one turns up. Backward makes the
    weights again from both; a rounded log-sum-exp in their place would cost them digits. Flops: 4 B H T S D, half of
    that where causal. Sums have a fixed order: the same bits for any number of threads.

    A query sees all keys, or those that `causal` and `lengths` leave. What it does not see takes no part, NaN
    included; a row that sees nothing is 0. A NaN in what it sees makes its row NaN, and so do scores that are all
    -inf, or +inf; single scores of -inf have weight 0. Weights that underflow to 0 are multiplied like others: an
    infinite value times 0 is NaN.

    Args:
        q: (B, H, T, D), float32 or float64: batch, heads, queries, features, D of 1 or more.
        k, v: (B, H, S, D), the dtype of q: S keys and their values. Arrays whose features are adjacent are read as they
            lie, such as a view (B, H, T, D) of a projection (T, B, 3 H D); others are copied first.
        causal: query i sees the keys 0 to i only, as in torch, also where T and S differ.
        lengths: integers (B,) from 0 to S: keys of each sequence, those behind are padding and not read. With q on a
            GPU they may be a list or NumPy array, which is copied there, or lie there, where they are taken as 0 or S
            beyond those bounds.
        scale: of the scores; None is 1 / sqrt(D).
        dropout: probability that a weight is set to 0, the others are multiplied by 1 / (1 - dropout).
        seed, offset: of dropout's random numbers, see `fastgrad.dropout`; that of weight (b, h, i, j) is the one of its
            place in an array (B, H, T, S'), S' being S rounded up to a multiple of 64.
        out: array (B, H, T, D) that receives y, of any strides. It may not overlap the other arrays.

    Returns:
        y (B, H, T, D), `out` itself where it is given, and what `attention_backward` needs. The latter refers to q, k,
        v and y: leave them as they are until then.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of q; lengths are no
            integers, or causal is neither True nor False.
        ValueError: a shape does not fit, a number is out of range, out is read-only or overlaps.

    Sources: Vaswani et al., Attention Is All You Need, 2017; Milakov & Gimelshein, Online normalizer calculation for
    softmax, 2018; Dao et al., FlashAttention, 2022.
    """
    fits = _SHAPES.fit(q, k, v)
    a = q if fits else _read("q", q, None, None)
    B, H, T, D = a.shape
    if D == 0:
        raise ValueError(f"q: expected at least one feature, got shape {a.shape}")
    if fits:
        b, c = k, v
    else:
        keys: tuple[int, ...] = getattr(k, "shape", ())
        b = _read("k", k, a, (B, H, keys[2] if len(keys) == 4 else T, D))
        c = _read("v", v, a, b.shape)
    causal = flag("causal", causal)
    scale = D**-0.5 if scale is None else number("scale", scale)
    p = number("dropout", dropout, 0.0, 1.0)
    counts = counted("seed", seed), counted("offset", offset)
    dropped: tuple[int, float, int, int] | None = None
    if p:
        threshold = round(p * 2**32)
        dropped = (0, 0.0, *counts) if threshold == 1 << 32 else (threshold, 1.0 / (1.0 - p), *counts)
    limits = sequence_lengths(lengths, B, b.shape[2], "the number of keys S", "q", a)
    if out is None:
        y = empty(a.shape, a.dtype, a)
    else:
        y = _written("out", out, a, a.shape, (("q", q), ("k", k), ("v", v)))
    largest, total = empty((B, H, T), a.dtype, a), empty((B, H, T), a.dtype, a)
    module = kernels("attention", a)
    if y.size:
        module.attention(a, b, c, scale, causal, limits, dropped, y, largest, total)
    result = finish(out, y)
    return result, AttentionSaved(a, b, c, y, largest, total, scale, causal, limits, dropped, module)


def attention_backward(
    dy: Array, saved: AttentionSaved, *, out: tuple[Array | None, Array | None, Array | None] | None = None
) -> AttentionGradients:
    """Return the gradients of `attention`, from weights made once more.

        dP = dy v^T,  dS = P (dP - sum_d dy y),    dq = scale dS k,  dk = scale dS^T q,  dv = P^T dy

    Flops: 10 B H T S D, half of that where causal. Padding has the gradient 0, and so has a query that sees nothing.

    Args:
        dy: gradient of y, (B, H, T, D), of any strides.
        saved: what `attention` returned.
        out: arrays that receive dq (B, H, T, D), dk and dv (B, H, S, D), of any strides, such as three views of one
            array; None for a new one. They may not overlap each other or any other array.

    Returns:
        A named tuple dq, dk, dv; the arrays of `out` themselves where given.

    Raises:
        TypeError: dy is no array or not of the dtype of q; saved does not come from `attention`; out is no triple.
        ValueError: a shape does not fit, an array of out is read-only or overlaps.

    Source: Dao et al., FlashAttention, 2022.
    """
    saved_by(AttentionSaved, saved, "attention")
    q, k = saved.q, saved.k
    gradient = dy if _GRADIENT.fit(dy, q) else _read("dy", dy, q, q.shape)
    if out is None and q.size and k.size:
        dq, dk, dv = empty(q.shape, q.dtype, q), empty(k.shape, q.dtype, q), empty(k.shape, q.dtype, q)
        saved.module.attention_backward(gradient, *saved[:10], dq, dk, dv)
        return AttentionGradients(dq, dk, dv)
    given = (None,) * 3 if out is None else out
    if not isinstance(given, tuple | list) or len(given) != 3:
        found = f"{len(given)} entries" if isinstance(given, tuple | list) else type(given).__qualname__
        raise TypeError(f"out: expected three arrays (dq, dk, dv), got {found}")
    apart = [("dy", dy), ("q", q), ("k", k), ("v", saved.v), ("y", saved.y)]
    results = []
    for position, (value, like) in enumerate(zip(given, (q, k, k), strict=True)):
        results.append(_written(f"out[{position}]", value, q, like.shape, apart))
        if value is not None:
            apart.append((f"out[{position}]", value))
    if q.size == 0 or k.size == 0:
        for result in results:
            result.fill(0)
    else:
        saved.module.attention_backward(gradient, *saved[:10], *results)
    return AttentionGradients(*(finish(value, result) for value, result in zip(given, results, strict=True)))
