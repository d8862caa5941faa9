"""LSTM over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), gates i, f, g, o.

    i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same)
    c' = f c + i g,   h' = o tanh(c')

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x. What may come between the steps, `noise` and `state_grad_clip`, is defined in between_steps_ref.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activation_ref import sigmoid
from .between_steps_ref import (
    DROPOUT_H,
    DROPOUT_X,
    ZONEOUT_C,
    ZONEOUT_H,
    Noise,
    clamped,
    mask,
    masked,
    mixed,
    split,
    zone,
)

Array = np.ndarray


@dataclass
class Saved:
    """What backward needs; `steps` holds (t, valid, x_t, m_h h, c, i, f, g, o, tanh(c')) in the order of forward."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    has_bias: bool
    steps: list[tuple]
    zones: tuple[Array, Array]  # of h and c, (T, B, H)
    masks: tuple[Array, Array]  # of h (B, H) and x (B, I)


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
    noise: Noise | None = None,
) -> tuple[Array, Array, Array, Saved]:
    """Return y (T, B, H), hn (B, H), cn (B, H) and what backward needs."""
    T, B, _ = x.shape
    H = h0.shape[1]
    y = np.zeros((T, B, H), dtype=x.dtype)
    h, c = h0.copy(), c0.copy()
    z_h, z_c = (zone(noise, stream, y.shape, x.dtype) for stream in (ZONEOUT_H, ZONEOUT_C))
    m_h, m_x = mask(noise, DROPOUT_H, (B, H), x.dtype), mask(noise, DROPOUT_X, x.shape[1:], x.dtype)
    steps = []
    with np.errstate(all="ignore"):
        for t in reversed(range(T)) if reverse else range(T):
            valid = None if lengths is None else (t < lengths)[:, None]
            x_t = x[t] if valid is None else np.where(valid, x[t], 0)
            x_t, h_in = masked(x_t, m_x), masked(h, m_h)
            gates = x_t @ weight_ih.T + h_in @ weight_hh.T
            if bias_ih is not None:
                gates += bias_ih
            if bias_hh is not None:
                gates += bias_hh
            a_i, a_f, a_g, a_o = np.split(gates, 4, axis=1)
            i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
            c_next = f * c + i * g
            tanh_c = np.tanh(c_next)
            steps.append((t, valid, x_t, h_in, c, i, f, g, o, tanh_c))
            h_next, c_next = mixed(z_h[t], h, o * tanh_c), mixed(z_c[t], c, c_next)
            if valid is None:
                y[t], h, c = h_next, h_next, c_next
            else:
                y[t] = np.where(valid, h_next, 0)
                h, c = np.where(valid, h_next, h), np.where(valid, c_next, c)
    has_bias = bias_ih is not None or bias_hh is not None
    return y, h, c, Saved(x, weight_ih, weight_hh, has_bias, steps, (z_h, z_c), (m_h, m_x))


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    weight_ih, weight_hh = saved.weight_ih, saved.weight_hh
    B, H = saved.x.shape[1], weight_hh.shape[1]
    dx = np.zeros_like(saved.x)
    dweight_ih, dweight_hh = np.zeros_like(weight_ih), np.zeros_like(weight_hh)
    dbias = np.zeros(4 * H, dtype=dx.dtype)
    dh = np.zeros((B, H), dtype=dx.dtype) if dhn is None else dhn.copy()
    dc = np.zeros((B, H), dtype=dx.dtype) if dcn is None else dcn.copy()
    (z_h, z_c), (m_h, m_x) = saved.zones, saved.masks
    with np.errstate(all="ignore"):
        for t, valid, x_t, h, c, i, f, g, o, tanh_c in reversed(saved.steps):
            dh_kept, dh_next = split(z_h[t], dh if dy is None else dh + dy[t])
            dc_kept, dc_next = split(z_c[t], dc)
            dc_next = dc_next + dh_next * o * (1 - tanh_c * tanh_c)
            da_i = dc_next * g * i * (1 - i)
            da_f = dc_next * c * f * (1 - f)
            da_g = dc_next * i * (1 - g * g)
            da_o = dh_next * tanh_c * o * (1 - o)
            dgates = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
            if valid is not None:
                dgates = np.where(valid, dgates, 0)
            dx[t] = masked(dgates @ weight_ih, m_x)
            dweight_ih += dgates.T @ x_t
            dweight_hh += dgates.T @ h
            dbias += dgates.sum(axis=0)
            dh_before = clamped(dh_kept + masked(dgates @ weight_hh, m_h), state_grad_clip)
            dc_before = clamped(dc_kept + dc_next * f, state_grad_clip)
            if valid is None:
                dh, dc = dh_before, dc_before
            else:
                dh, dc = np.where(valid, dh_before, dh), np.where(valid, dc_before, dc)
    return dx, dh, dc, dweight_ih, dweight_hh, dbias if saved.has_bias else None


def forward_step(
    x: Array, h: Array, c: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None
) -> tuple[Array, Array, Saved]:
    """Return h_next, c_next (B, H) of a single step and what `backward_step` needs; x is (B, I)."""
    _, h_next, c_next, saved = forward(x[None], h, c, weight_ih, weight_hh, bias_ih, bias_hh, None, False)
    return h_next, c_next, saved


def backward_step(
    dh_next: Array | None, dc_next: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return what `backward` does, of a single step: dx (B, I)."""
    dx, *others = backward(None, dh_next, dc_next, saved, state_grad_clip)
    return (dx[0], *others)
