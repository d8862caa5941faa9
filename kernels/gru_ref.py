"""GRU over a sequence (Cho et al., 2014), gates r, z, n.

    r, z = sigmoid(W_i x_t + b_i + W_h h + b_h)
    n = tanh(W_in x_t + b_in + r (W_hn h + b_hn))    reset_after, the form of torch and cuDNN
    n = tanh(W_in x_t + b_in + W_hn (r h) + b_hn)    otherwise, the paper's
    h' = (1 - z) n + z h

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x. What may come between the steps, `noise` and `state_grad_clip`, is defined in between_steps_ref.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activation_ref import sigmoid
from .between_steps_ref import DROPOUT_H, DROPOUT_X, ZONEOUT_H, Noise, clamped, mask, masked, mixed, split, zone

Array = np.ndarray


@dataclass
class Saved:
    """What backward needs; `steps` holds (t, valid, x_t, h, m_h h, r, z, n, W_hn h + b_hn) in the order of forward."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    has_bias_ih: bool
    has_bias_hh: bool
    reset_after: bool
    steps: list[tuple]
    zone: Array  # (T, B, H)
    masks: tuple[Array, Array]  # of h (B, H) and x (B, I)


def forward(
    x: Array,
    h0: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    lengths: Array | None,
    reverse: bool,
    reset_after: bool,
    noise: Noise | None = None,
) -> tuple[Array, Array, Saved]:
    """Return y (T, B, H), hn (B, H) and what backward needs."""
    T, B, _ = x.shape
    H = h0.shape[1]
    y = np.zeros((T, B, H), dtype=x.dtype)
    b_ih = np.zeros(3 * H, dtype=x.dtype) if bias_ih is None else bias_ih
    b_hh = np.zeros(3 * H, dtype=x.dtype) if bias_hh is None else bias_hh
    h = h0.copy()
    z_h = zone(noise, ZONEOUT_H, y.shape, x.dtype)
    m_h, m_x = mask(noise, DROPOUT_H, (B, H), x.dtype), mask(noise, DROPOUT_X, x.shape[1:], x.dtype)
    steps = []
    with np.errstate(all="ignore"):
        for t in reversed(range(T)) if reverse else range(T):
            valid = None if lengths is None else (t < lengths)[:, None]
            x_t = x[t] if valid is None else np.where(valid, x[t], 0)
            x_t, h_in = masked(x_t, m_x), masked(h, m_h)
            from_x = x_t @ weight_ih.T + b_ih
            from_h = h_in @ weight_hh[: 2 * H].T + b_hh[: 2 * H]
            r = sigmoid(from_x[:, :H] + from_h[:, :H])
            z = sigmoid(from_x[:, H : 2 * H] + from_h[:, H:])
            if reset_after:
                from_h_n = h_in @ weight_hh[2 * H :].T + b_hh[2 * H :]
                n = np.tanh(from_x[:, 2 * H :] + r * from_h_n)
            else:
                from_h_n = (r * h_in) @ weight_hh[2 * H :].T + b_hh[2 * H :]
                n = np.tanh(from_x[:, 2 * H :] + from_h_n)
            h_next = mixed(z_h[t], h, (1 - z) * n + z * h)
            steps.append((t, valid, x_t, h, h_in, r, z, n, from_h_n))
            if valid is None:
                y[t], h = h_next, h_next
            else:
                y[t] = np.where(valid, h_next, 0)
                h = np.where(valid, h_next, h)
    has_bias = bias_ih is not None, bias_hh is not None
    return y, h, Saved(x, weight_ih, weight_hh, *has_bias, reset_after, steps, z_h, (m_h, m_x))


def backward(
    dy: Array | None, dhn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return dx (T, B, I), dh0 (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,) or None."""
    weight_ih, weight_hh = saved.weight_ih, saved.weight_hh
    B, H = saved.x.shape[1], weight_hh.shape[1]
    dx = np.zeros_like(saved.x)
    dweight_ih, dweight_hh = np.zeros_like(weight_ih), np.zeros_like(weight_hh)
    dbias_ih, dbias_hh = np.zeros(3 * H, dtype=dx.dtype), np.zeros(3 * H, dtype=dx.dtype)
    dh = np.zeros((B, H), dtype=dx.dtype) if dhn is None else dhn.copy()
    with np.errstate(all="ignore"):
        m_h, m_x = saved.masks
        for t, valid, x_t, h, h_in, r, z, n, from_h_n in reversed(saved.steps):
            dh_kept, dh_next = split(saved.zone[t], dh if dy is None else dh + dy[t])
            if valid is not None:
                dh_next = np.where(valid, dh_next, 0)
            da_n = dh_next * (1 - z) * (1 - n * n)
            da_z = dh_next * (h - n) * z * (1 - z)
            if saved.reset_after:
                da_r = da_n * from_h_n * r * (1 - r)
                dfrom_h_n = da_n * r
                dh_prev = dh_next * z + masked(dfrom_h_n @ weight_hh[2 * H :], m_h)
                dweight_hh[2 * H :] += dfrom_h_n.T @ h_in
            else:
                drh = masked(da_n @ weight_hh[2 * H :], m_h)
                da_r = drh * h * r * (1 - r)
                dfrom_h_n = da_n
                dh_prev = dh_next * z + drh * r
                dweight_hh[2 * H :] += dfrom_h_n.T @ (r * h_in)
            da_rz = np.concatenate([da_r, da_z], axis=1)
            dfrom_x = np.concatenate([da_rz, da_n], axis=1)
            dh_prev = clamped(dh_prev + masked(da_rz @ weight_hh[: 2 * H], m_h) + dh_kept, state_grad_clip)
            dx[t] = masked(dfrom_x @ weight_ih, m_x)
            dweight_ih += dfrom_x.T @ x_t
            dweight_hh[: 2 * H] += da_rz.T @ h_in
            dbias_ih += dfrom_x.sum(axis=0)
            dbias_hh[: 2 * H] += da_rz.sum(axis=0)
            dbias_hh[2 * H :] += dfrom_h_n.sum(axis=0)
            dh = dh_prev if valid is None else np.where(valid, dh_prev, dh)
    return (
        dx,
        dh,
        dweight_ih,
        dweight_hh,
        dbias_ih if saved.has_bias_ih else None,
        dbias_hh if saved.has_bias_hh else None,
    )


def forward_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    reset_after: bool,
) -> tuple[Array, Saved]:
    """Return h_next (B, H) of a single step and what `backward_step` needs; x is (B, I)."""
    _, h_next, saved = forward(x[None], h, weight_ih, weight_hh, bias_ih, bias_hh, None, False, reset_after)
    return h_next, saved


def backward_step(
    dh_next: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return what `backward` does, of a single step: dx (B, I)."""
    dx, *others = backward(None, dh_next, saved, state_grad_clip)
    return (dx[0], *others)
