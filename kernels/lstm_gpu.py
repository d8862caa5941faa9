"""Launch an LSTM over a sequence on a device; see lstm.cu.

The input products of all steps are one matrix product, and so is each weight gradient. Flops: 8 T B H (I + H) forward,
twice that backward. Saved for backward: gates, c and y, 6 H numbers for each step of each sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import cuda
from .between_steps_gpu import Between, Noise, mask_x, masked_steps
from .matmul_gpu import matmul
from .recurrent_gpu import (
    StepShape,
    bias_gradient,
    counters,
    flat,
    input_products,
    own_or_zeros,
    partial_sums,
    persistent_plan,
    states,
    undisturbed,
    zeroed_padding,
)

Array = Any

_FORWARD = cuda.Kernel(
    "lstm",
    "fg_lstm_forward",
    "gates: T*, bias_ih: T*?, bias_hh: T*?, h: T*, c: T*, y: T*, lengths: i64*?, t: i64, batch: i64, hidden: i64, "
    "reverse: i32, vectors: i32",
)
_BACKWARD = cuda.Kernel(
    "lstm",
    "fg_lstm_backward",
    "gates: T*, c: T*, dy: T*?, dh: T*, dc: T*, dgates: T*, lengths: i64*?, t: i64, batch: i64, hidden: i64, "
    "reverse: i32, vectors: i32",
)
_PERSISTENT_FORWARD = cuda.Kernel(
    "lstm_persistent",
    "fg_lstm_persistent_forward",
    "weight_hh: T*, gates: T*, bias_ih: T*?, bias_hh: T*?, h: T*, c: T*, y: T*, lengths: i64*?, counters: u32*, "
    "steps: i64, batch: i64, hidden: i64, reverse: i32, groups: i32, pass: i32",
    ["units", "depth"],
)
_PERSISTENT_BACKWARD = cuda.Kernel(
    "lstm_persistent",
    "fg_lstm_persistent_backward",
    "weight_hh: T*, gates: T*, c: T*, dy: T*?, dh: T*, dc: T*, dgates: T*, partial: T*, lengths: i64*?, "
    "counters: u32*, steps: i64, batch: i64, hidden: i64, reverse: i32, groups: i32, most: i32, "
    "bound: A",
    ["units", "depth"],
)


@dataclass
class Saved:
    """What backward needs. x, the weights and y are the caller's own arrays."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    has_bias: bool
    lengths: Array | None
    reverse: bool
    gates: Array  # (T, B, 4H): i, f, g, o
    h: Array  # (T + 1, B, H), initial state first, or last in reverse
    c: Array  # (T + 1, B, H)
    noise: Noise | None


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
    device = cuda.device_of(x)
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    x = zeroed_padding(x, lengths)
    gates = input_products(masked_steps(x, mask_x(noise, x)), weight_ih)
    h, c = (states(initial, steps, reverse) for initial in (h0, c0))
    after = h[:-1] if reverse else h[1:]
    y = after if lengths is None else device.xp.empty(after.shape, dtype)
    plan = persistent_plan(device, 4, steps, h, (weight_hh, h)) if undisturbed(noise) else None
    between = Between(noise, h, 2, lengths, reverse)
    arrivals = counters(device, plan)
    if plan is not None:
        _PERSISTENT_FORWARD(
            device, dtype, plan.blocks, plan.forward, weight_hh, gates, bias_ih, bias_hh, h, c, y, lengths,
            arrivals, steps, batch, hidden, reverse, plan.groups, plan.at_a_time,
            shared=plan.shared_forward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        shape = StepShape(device, h, (gates, bias_ih, bias_hh, h, c, y))
        for t in reversed(range(steps)) if reverse else range(steps):
            entering = between.entering(h[t + 1 if reverse else t])
            matmul(entering, weight_hh, gates[t], transpose_b=True, accumulate=True)
            _FORWARD(
                device, dtype, shape.grid, shape.block, gates, bias_ih, bias_hh, h, c, y, lengths, t, batch, hidden,
                reverse, shape.vectors,
            )  # fmt: skip
            between.after(t, h, c, y)
    final = 0 if reverse else steps
    has_bias = bias_ih is not None or bias_hh is not None
    saved = Saved(x, weight_ih, weight_hh, has_bias, lengths, reverse, gates, h, c, noise)
    hn, cn = cuda.copy(h[final]), cuda.copy(c[final])
    return y, hn, cn, saved


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    x, gates, c, lengths, reverse, noise = saved.x, saved.gates, saved.c, saved.lengths, saved.reverse, saved.noise
    device = cuda.device_of(x)
    empty, dtype = device.xp.empty, x.dtype
    steps, batch, _ = x.shape
    hidden = saved.weight_hh.shape[1]
    dh, dc = (own_or_zeros(gradient, c[0]) for gradient in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    plan = persistent_plan(device, 4, steps, c, (saved.weight_hh,)) if undisturbed(noise) else None
    between = Between(noise, c, 2, lengths, bound=state_grad_clip)
    arrivals, partial = counters(device, plan), partial_sums(device, plan, hidden)
    if plan is not None:
        _PERSISTENT_BACKWARD(
            device, dtype, plan.blocks, plan.backward, saved.weight_hh, gates, c, dy, dh, dc, dgates, partial, lengths,
            arrivals, steps, batch, hidden, reverse, plan.groups, plan.most,
            math.inf if state_grad_clip is None else state_grad_clip,
            shared=plan.shared_backward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        shape = StepShape(device, c, (gates, c, dy, dh, dc, dgates))
        for t in range(steps) if reverse else reversed(range(steps)):
            above = between.before_backward(t, dh, dc, dy)
            _BACKWARD(
                device, dtype, shape.grid, shape.block, gates, c, above, dh, dc, dgates, lengths, t, batch, hidden,
                reverse, shape.vectors,
            )  # fmt: skip
            product = between.leaving(dh)
            matmul(dgates[t], saved.weight_hh, product, accumulate=lengths is not None and product is dh)
            between.after_backward(t, dh, dc, overwrite=True)
    dx = empty(x.shape, dtype)
    matmul(flat(dgates), saved.weight_ih, flat(dx))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    m_x = mask_x(noise, x)
    masked_steps(dx, m_x, out=dx)
    x, before = masked_steps(x, m_x), masked_steps(saved.h[1:] if reverse else saved.h[:-1], between.mask_h)
    matmul(flat(dgates), flat(x), dweight_ih, transpose_a=True)
    matmul(flat(dgates), flat(before), dweight_hh, transpose_a=True)
    dbias = bias_gradient(dgates) if saved.has_bias else None
    return dx, dh, dc, dweight_ih, dweight_hh, dbias


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
