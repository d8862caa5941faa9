"""LSTM with layer normalisation (Ba, Kiros & Hinton, Layer Normalization, 2016), gates i, f, g, o.

    sums = LN(W_ih x_t; gain_ih, bias_ih) + LN(W_hh h; gain_hh, bias_hh)
    i, f, o = sigmoid(sums),   g = tanh(sums)
    c' = f c + i g,   h' = o tanh(LN(c'; gain_c, bias_c))
    LN(a; gain, bias) = gain (a - mean) / sqrt(var + eps) + bias,   over all 4H numbers of a product, the H of c'

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x. What may come between the steps, `noise` and `state_grad_clip`, is defined in between_steps_ref.py; there c~
and h~ are the c' and h' from above.
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
from .layer_norm_lstm import Weights

Array = np.ndarray


@dataclass
class Saved:
    """What backward needs.

    `steps` holds (t, valid, x_t, m_h h, c, i, f, g, o, and xhat and rstd of W_ih x_t, W_hh h and c') in the order of
    forward.
    """

    x: Array
    weights: Weights
    steps: list[tuple]
    zones: tuple[Array, Array]  # of h and c, (T, B, H)
    masks: tuple[Array, Array]  # of h (B, H) and x (B, I)


def _normalised(a: Array, eps: float) -> tuple[Array, Array]:
    """Return xhat and rstd of each row."""
    centred = a - a.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(centred * centred, axis=1, keepdims=True) + eps)
    return centred * rstd, rstd


def _normalised_backward(g: Array, xhat: Array, rstd: Array) -> Array:
    """Return the gradient of what was normalised, given that of xhat."""
    return rstd * (g - g.mean(axis=1, keepdims=True) - xhat * np.mean(g * xhat, axis=1, keepdims=True))


def forward(
    x: Array,
    h0: Array,
    c0: Array,
    weights: Weights,
    eps: float,
    lengths: Array | None,
    reverse: bool,
    noise: Noise | None,
) -> tuple[Array, Array, Array, Saved]:
    """Return y (T, B, H), hn (B, H), cn (B, H) and what backward needs."""
    w = weights
    T, B, _ = x.shape
    H = h0.shape[1]
    y = np.zeros((T, B, H), dtype=x.dtype)
    h, c = h0.copy(), c0.copy()
    z_h, z_c = (zone(noise, stream, y.shape, x.dtype) for stream in (ZONEOUT_H, ZONEOUT_C))
    m_h, m_x = mask(noise, DROPOUT_H, (B, H), x.dtype), mask(noise, DROPOUT_X, x.shape[1:], x.dtype)
    steps = []
    with np.errstate(all="ignore"):
        for t in reversed(range(T)) if reverse else range(T):
            valid = np.ones((B, 1), bool) if lengths is None else (t < lengths)[:, None]
            x_t, h_in = masked(np.where(valid, x[t], 0), m_x), masked(h, m_h)
            of_x, of_h = _normalised(x_t @ w.weight_ih.T, eps), _normalised(h_in @ w.weight_hh.T, eps)
            sums = w.gain_ih * of_x[0] + w.bias_ih + w.gain_hh * of_h[0] + w.bias_hh
            a_i, a_f, a_g, a_o = np.split(sums, 4, axis=1)
            i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
            c_next = f * c + i * g
            of_c = _normalised(c_next, eps)
            steps.append((t, valid, x_t, h_in, c, i, f, g, o, of_x, of_h, of_c))
            h_next = mixed(z_h[t], h, o * np.tanh(w.gain_c * of_c[0] + w.bias_c))
            y[t] = np.where(valid, h_next, 0)
            h, c = np.where(valid, h_next, h), np.where(valid, mixed(z_c[t], c, c_next), c)
    return y, h, c, Saved(x, weights, steps, (z_h, z_c), (m_h, m_x))


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Weights]:
    """Return dx (T, B, I), dh0, dc0 (B, H) and the gradients of the weights."""
    w = saved.weights
    B, H = saved.x.shape[1], w.weight_hh.shape[1]
    dx = np.zeros_like(saved.x)
    d = Weights(*map(np.zeros_like, w))
    dh = np.zeros((B, H), dtype=dx.dtype) if dhn is None else dhn.copy()
    dc = np.zeros((B, H), dtype=dx.dtype) if dcn is None else dcn.copy()
    (z_h, z_c), (m_h, m_x) = saved.zones, saved.masks
    with np.errstate(all="ignore"):
        for t, valid, x_t, h_in, c, i, f, g, o, of_x, of_h, of_c in reversed(saved.steps):
            dh_kept, dh_next = split(z_h[t], dh if dy is None else dh + np.where(valid, dy[t], 0))
            dc_kept, dc_next = split(z_c[t], dc)
            dh_next, dc_next = np.where(valid, dh_next, 0), np.where(valid, dc_next, 0)
            tanh_c = np.tanh(w.gain_c * of_c[0] + w.bias_c)
            dscaled = dh_next * o * (1 - tanh_c * tanh_c)
            dc_next = dc_next + _normalised_backward(w.gain_c * dscaled, *of_c)
            dc_next = np.where(valid, dc_next, 0)
            da_i = dc_next * g * i * (1 - i)
            da_f = dc_next * c * f * (1 - f)
            da_g = dc_next * i * (1 - g * g)
            da_o = dh_next * tanh_c * o * (1 - o)
            dsums = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
            from_x = _normalised_backward(w.gain_ih * dsums, *of_x)
            from_h = _normalised_backward(w.gain_hh * dsums, *of_h)
            dx[t] = masked(from_x @ w.weight_ih, m_x)
            np.add(d.weight_ih, from_x.T @ x_t, out=d.weight_ih)
            np.add(d.weight_hh, from_h.T @ h_in, out=d.weight_hh)
            for total, term in (
                (d.gain_ih, dsums * of_x[0]), (d.gain_hh, dsums * of_h[0]), (d.gain_c, dscaled * of_c[0]),
                (d.bias_ih, dsums), (d.bias_hh, dsums), (d.bias_c, dscaled),
            ):  # fmt: skip
                np.add(total, term.sum(axis=0), out=total)
            dh_before = clamped(dh_kept + masked(from_h @ w.weight_hh, m_h), state_grad_clip)
            dc_before = clamped(dc_kept + dc_next * f, state_grad_clip)
            dh, dc = np.where(valid, dh_before, dh), np.where(valid, dc_before, dc)
    return dx, dh, dc, d
