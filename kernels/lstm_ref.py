"""LSTM over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), gates i, f, g, o.

    i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same)
    c' = f c + i g,   h' = o tanh(c')

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activation_ref import sigmoid

Array = np.ndarray


@dataclass
class Saved:
    """What backward needs; `steps` holds (t, valid, x_t, h, c, i, f, g, o, tanh(c')) in the order of forward."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    has_bias: bool
    steps: list[tuple]


def forward(
    x: Array,
    h0: Array,
    c0: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    lengths: Array | None,
    reverse: bool,
) -> tuple[Array, Array, Array, Saved]:
    """Return y (T, B, H), hn (B, H), cn (B, H) and what backward needs."""
    T, B, _ = x.shape
    y = np.zeros((T, B, h0.shape[1]), dtype=x.dtype)
    h, c = h0.copy(), c0.copy()
    steps = []
    with np.errstate(all="ignore"):
        for t in reversed(range(T)) if reverse else range(T):
            valid = None if lengths is None else (t < lengths)[:, None]
            x_t = x[t] if valid is None else np.where(valid, x[t], 0)
            gates = x_t @ weight_ih.T + h @ weight_hh.T
            if bias_ih is not None:
                gates += bias_ih
            if bias_hh is not None:
                gates += bias_hh
            a_i, a_f, a_g, a_o = np.split(gates, 4, axis=1)
            i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
            c_next = f * c + i * g
            tanh_c = np.tanh(c_next)
            h_next = o * tanh_c
            steps.append((t, valid, x_t, h, c, i, f, g, o, tanh_c))
            if valid is None:
                y[t], h, c = h_next, h_next, c_next
            else:
                y[t] = np.where(valid, h_next, 0)
                h, c = np.where(valid, h_next, h), np.where(valid, c_next, c)
    has_bias = bias_ih is not None or bias_hh is not None
    return y, h, c, Saved(x, weight_ih, weight_hh, has_bias, steps)


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    weight_ih, weight_hh = saved.weight_ih, saved.weight_hh
    B, H = saved.x.shape[1], weight_hh.shape[1]
    dx = np.zeros_like(saved.x)
    dweight_ih, dweight_hh = np.zeros_like(weight_ih), np.zeros_like(weight_hh)
    dbias = np.zeros(4 * H, dtype=dx.dtype)
    dh = np.zeros((B, H), dtype=dx.dtype) if dhn is None else dhn.copy()
    dc = np.zeros((B, H), dtype=dx.dtype) if dcn is None else dcn.copy()
    with np.errstate(all="ignore"):
        for t, valid, x_t, h, c, i, f, g, o, tanh_c in reversed(saved.steps):
            dh_next = dh if dy is None else dh + dy[t]
            dc_next = dc + dh_next * o * (1 - tanh_c * tanh_c)
            da_i = dc_next * g * i * (1 - i)
            da_f = dc_next * c * f * (1 - f)
            da_g = dc_next * i * (1 - g * g)
            da_o = dh_next * tanh_c * o * (1 - o)
            dgates = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
            if valid is not None:
                dgates = np.where(valid, dgates, 0)
            dx[t] = dgates @ weight_ih
            dweight_ih += dgates.T @ x_t
            dweight_hh += dgates.T @ h
            dbias += dgates.sum(axis=0)
            if valid is None:
                dh, dc = dgates @ weight_hh, dc_next * f
            else:
                dh, dc = np.where(valid, dgates @ weight_hh, dh), np.where(valid, dc_next * f, dc)
    return dx, dh, dc, dweight_ih, dweight_hh, dbias if saved.has_bias else None
