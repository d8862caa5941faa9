"""Scaled dot-product attention (Vaswani et al., Attention Is All You Need, 2017).

    s_ij = scale q_i . k_j,    P_ij = exp(s_ij - max_j s_ij) / sum_j exp(...),    y_i = sum_j P_ij v_j

over the keys j that query i sees. What it does not see takes no part, whatever it is: a NaN there stays there.
"""

from __future__ import annotations

import numpy as np

from . import dropout_ref

Array = np.ndarray


def _seen(q: Array, k: Array, causal: bool, lengths: Array | None) -> Array:
    """Return which key (last axis) each query sees, (B or 1, 1, T, S)."""
    queries, keys = np.arange(q.shape[2]), np.arange(k.shape[2])
    seen = (keys <= queries[:, None]) if causal else np.ones((len(queries), len(keys)), bool)
    seen = seen[None, None]
    return seen if lengths is None else seen & (keys < lengths[:, None, None, None])


def _product(weights: Array, seen: Array, b: Array) -> Array:
    """Return weights @ b without the products that are not seen, whose weight is 0: 0 times NaN would be NaN."""
    bad = ~np.isfinite(b).all(axis=-1)
    if not bad.any():
        return weights @ b
    result = weights @ np.where(bad[..., None], 0, b)
    for j in np.flatnonzero(bad.any(axis=(0, 1))):
        takes_part = (seen[..., j] & bad[..., None, j])[..., None]
        result += np.where(takes_part, weights[..., j, None] * b[..., None, j, :], 0)
    return result


def _kept(q: Array, k: Array, threshold: int, factor: float, seed: int, offset: int) -> Array:
    """Return what dropout multiplies the weights by, (B, H, T, S): rows of whole groups of 64 of `dropout_ref`."""
    keys = k.shape[2]
    ones = np.ones((*q.shape[:3], -(-keys // 64) * 64), q.dtype)
    flat = ones.reshape(-1)
    dropout_ref.dropout(flat, threshold, factor, seed, offset, flat)
    return ones[..., :keys]


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool,
    lengths: Array | None,
    dropped: tuple[int, float, int, int] | None,
    y: Array,
    largest: Array,
    total: Array,
) -> None:
    """Write y (B, H, T, D), and of each row of scores the largest and the sum of the exponentials, (B, H, T).

    A row that sees no key has y = 0. dropped: threshold, factor, seed and offset of dropout's random numbers.
    """
    with np.errstate(all="ignore"):
        seen = _seen(q, k, causal, lengths)
        scores = np.where(seen, (q @ k.swapaxes(2, 3)) * q.dtype.type(scale), -np.inf)
        top = np.fmax.reduce(scores, axis=-1, initial=-np.inf)
        largest[...] = np.where(top == -np.inf, 0, top)
        weights = np.exp(scores - largest[..., None])
        total[...] = weights.sum(axis=-1)
        if dropped is not None:
            weights = weights * _kept(q, k, *dropped)
        result = _product(weights, seen, v) / total[..., None]
        y[...] = np.where(seen.any(axis=-1)[..., None], result, 0)


def attention_backward(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    largest: Array,
    total: Array,
    scale: float,
    causal: bool,
    lengths: Array | None,
    dropped: tuple[int, float, int, int] | None,
    dq: Array,
    dk: Array,
    dv: Array,
) -> None:
    """Write dq (B, H, T, D), dk and dv (B, H, S, D).

    dP = dy v^T,  dS = P (dP - sum_d dy y),  dq = scale dS k,  dk = scale dS^T q,  dv = P^T dy
    """
    with np.errstate(all="ignore"):
        seen = _seen(q, k, causal, lengths)
        scores = (q @ k.swapaxes(2, 3)) * q.dtype.type(scale)
        weights = np.where(seen, np.exp(scores - largest[..., None]) / total[..., None], 0)
        upstream = dy @ v.swapaxes(2, 3)
        used = weights
        if dropped is not None:
            kept = _kept(q, k, *dropped)
            upstream, used = upstream * kept, weights * kept
        slopes = np.where(seen, weights * (upstream - (dy * y).sum(axis=-1, keepdims=True)), 0) * q.dtype.type(scale)
        seen_by = seen.swapaxes(2, 3)
        dq[...] = _product(slopes, seen, k)
        dk[...] = _product(slopes.swapaxes(2, 3), seen_by, q)
        dv[...] = _product(used.swapaxes(2, 3), seen_by, dy)
