"""Launch an LSTM with layer normalisation on a device; see layer_norm_lstm.cu.

Before the steps the products of x and their normalisation are one call each, and so is what lies behind the sums of the
gates afterwards, as in layer_norm_lstm_cpu.py; a step is a product and a kernel. Flops: 8 T B H (I + H) forward, twice
that backward. Saved for backward: gates, both products, c and y, 14 H numbers for each step of each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import cuda
from .between_steps_gpu import Between, Noise, mask_x, masked_steps
from .layer_norm_gpu import layer_norm, layer_norm_backward
from .layer_norm_lstm import Weights
from .matmul_gpu import matmul
from .recurrent_gpu import flat, input_products, own_or_zeros, states, zeroed_padding

Array = Any

_STEP = "t: i64, steps: i64, batch: i64, hidden: i64, reverse: i32"
_FORWARD = cuda.Kernel(
    "layer_norm_lstm",
    "fg_layer_norm_lstm",
    "gates: T*, from_h: T*, gain_hh: T*, gain_c: T*, bias_c: T*, h: T*, c: T*, y: T*, stats: f64*, lengths: i64*?, "
    f"eps: f64, {_STEP}",
)
_BACKWARD = cuda.Kernel(
    "layer_norm_lstm",
    "fg_layer_norm_lstm_backward",
    "gates: T*, from_h: T*, gain_hh: T*, gain_c: T*, bias_c: T*, c: T*, stats: f64*, dy: T*?, dh: T*, dc: T*, "
    f"dgates: T*, dproducts: T*, cells: T*, dscaled: T*, lengths: i64*?, {_STEP}",
)


@dataclass
class Saved:
    """What backward needs. x, the weights and y are the caller's own arrays."""

    x: Array
    weights: Weights
    lengths: Array | None
    reverse: bool
    noise: Noise | None
    from_x: Array  # (T, B, 4H): W_ih x
    stats_x: Array  # (2, T B): mean and rstd of that, float64
    from_h: Array  # (T, B, 4H): W_hh h
    stats: Array  # (4, T B): of that and of c', float64
    gates: Array  # (T, B, 4H): i, f, g, o
    h: Array  # (T + 1, B, H), initial state first, or last in reverse
    c: Array  # (T + 1, B, H)


def _block(device: cuda.Device, hidden: int) -> int:
    """Return the threads of a sequence: one for each unit where there are not too many."""
    return cuda.threads(device, min(cuda.LARGEST_BLOCK // 2, 1 << (max(hidden, 1) - 1).bit_length()))


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
    w, device, dtype = weights, cuda.device_of(x), x.dtype
    empty = device.xp.empty
    steps, batch, _ = x.shape
    hidden = w.weight_hh.shape[1]
    x = zeroed_padding(x, lengths)
    entering_x = masked_steps(x, mask_x(noise, x))
    from_x = input_products(entering_x, w.weight_ih)
    gates, from_h = empty(from_x.shape, dtype), empty(from_x.shape, dtype)
    stats_x, stats = empty((2, steps * batch), np.float64), empty((4, steps * batch), np.float64)
    both = w.bias_ih + w.bias_hh
    layer_norm(flat(from_x), w.gain_ih, both, eps, flat(gates), stats_x[0], stats_x[1])
    h, c = (states(initial, steps, reverse) for initial in (h0, c0))
    after = h[:-1] if reverse else h[1:]
    y = after if lengths is None else empty(after.shape, dtype)
    between = Between(noise, h, 2, lengths, reverse)
    for t in reversed(range(steps)) if reverse else range(steps):
        matmul(between.entering(h[t + 1 if reverse else t]), w.weight_hh, from_h[t], transpose_b=True)
        _FORWARD(
            device, dtype, batch if hidden else 0, _block(device, hidden), gates, from_h, w.gain_hh, w.gain_c, w.bias_c,
            h, c, y, stats, lengths, eps, t, steps, batch, hidden, reverse,
        )  # fmt: skip
        between.after(t, h, c, y)
    final = 0 if reverse else steps
    saved = Saved(x, w, lengths, reverse, noise, from_x, stats_x, from_h, stats, gates, h, c)
    hn, cn = cuda.copy(h[final]), cuda.copy(c[final])
    return y, hn, cn, saved


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Weights]:
    """Return dx (T, B, I), dh0, dc0 (B, H) and the gradients of the weights."""
    x, w, noise, gates, lengths, reverse = (
        saved.x, saved.weights, saved.noise, saved.gates, saved.lengths, saved.reverse,
    )  # fmt: skip
    device, dtype = cuda.device_of(x), x.dtype
    empty = device.xp.empty
    steps, batch, _ = x.shape
    hidden = w.weight_hh.shape[1]
    dh, dc = (own_or_zeros(gradient, saved.c[0]) for gradient in (dhn, dcn))
    dgates, dproducts = empty(gates.shape, dtype), empty((batch, 4 * hidden), dtype)
    cells, dscaled = (empty((steps, batch, hidden), dtype) for _ in range(2))
    between = Between(noise, saved.c, 2, lengths, bound=state_grad_clip)
    product = between.leaving(dh)
    for t in range(steps) if reverse else reversed(range(steps)):
        above = between.before_backward(t, dh, dc, dy)
        _BACKWARD(
            device, dtype, batch if hidden else 0, _block(device, hidden), gates, saved.from_h, w.gain_hh, w.gain_c,
            w.bias_c, saved.c, saved.stats, above, dh, dc, dgates, dproducts, cells, dscaled, lengths, t, steps, batch,
            hidden, reverse,
        )  # fmt: skip
        matmul(dproducts, w.weight_hh, product, accumulate=lengths is not None and product is dh)
        between.after_backward(t, dh, dc, overwrite=True)
    d = Weights(*(empty(a.shape, dtype) for a in w))
    mean_h, rstd_h, mean_c, rstd_c = (saved.stats[k] for k in range(4))
    layer_norm_backward(flat(dscaled), flat(cells), w.gain_c, mean_c, rstd_c, flat(dscaled), d.gain_c, d.bias_c)
    behind, sums = empty((steps * batch, 4 * hidden), dtype), flat(dgates)
    layer_norm_backward(sums, flat(saved.from_h), w.gain_hh, mean_h, rstd_h, behind, d.gain_hh, d.bias_hh)
    before = masked_steps(saved.h[1:] if reverse else saved.h[:-1], between.mask_h)
    matmul(behind, flat(before), d.weight_hh, transpose_a=True)
    layer_norm_backward(
        sums, flat(saved.from_x), w.gain_ih, saved.stats_x[0], saved.stats_x[1], behind, d.gain_ih, d.bias_ih
    )
    m_x, dx = mask_x(noise, x), empty(x.shape, dtype)
    matmul(behind, w.weight_ih, flat(dx))
    masked_steps(dx, m_x, out=dx)
    entering_x = masked_steps(x, m_x)
    matmul(behind, flat(entering_x), d.weight_ih, transpose_a=True)
    return dx, dh, dc, d
