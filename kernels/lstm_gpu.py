"""Launch an LSTM over a sequence on a device; see lstm.cu.

The input products of all steps are one matrix product, and so is each weight gradient. Flops: 8 T B H (I + H) forward,
twice that backward. Saved for backward: gates, c and y, 6 H numbers for each step of each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import cuda
from .matmul_gpu import matmul
from .recurrent_gpu import (
    StepShape,
    counters,
    flat,
    input_products,
    own_or_zeros,
    persistent_plan,
    states,
    sum_rows,
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
    "counters: u32*, steps: i64, batch: i64, hidden: i64, reverse: i32, groups: i32, most: i32",
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
    device = cuda.device_of(x)
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    x = zeroed_padding(x, lengths)
    gates = input_products(x, weight_ih)
    h, c = (states(initial, steps, reverse) for initial in (h0, c0))
    after = h[:-1] if reverse else h[1:]
    y = after if lengths is None else device.xp.empty(after.shape, dtype)
    plan = persistent_plan(device, 4, steps, h, (weight_hh, h))
    if plan is not None:
        _PERSISTENT_FORWARD(
            device, dtype, plan.blocks, plan.forward, weight_hh, gates, bias_ih, bias_hh, h, c, y, lengths,
            counters(device, plan), steps, batch, hidden, reverse, plan.groups, plan.at_a_time,
            shared=plan.shared_forward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        shape = StepShape(device, h, (gates, bias_ih, bias_hh, h, c, y))
        for t in reversed(range(steps)) if reverse else range(steps):
            matmul(h[t + 1 if reverse else t], weight_hh, gates[t], transpose_b=True, accumulate=True)
            _FORWARD(
                device, dtype, shape.grid, shape.block, gates, bias_ih, bias_hh, h, c, y, lengths, t, batch, hidden,
                reverse, shape.vectors,
            )  # fmt: skip
    final = 0 if reverse else steps
    has_bias = bias_ih is not None or bias_hh is not None
    saved = Saved(x, weight_ih, weight_hh, has_bias, lengths, reverse, gates, h, c)
    return y, h[final].copy(), c[final].copy(), saved


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    x, gates, c, lengths, reverse = saved.x, saved.gates, saved.c, saved.lengths, saved.reverse
    device = cuda.device_of(x)
    empty, dtype = device.xp.empty, x.dtype
    steps, batch, _ = x.shape
    hidden = saved.weight_hh.shape[1]
    dh, dc = (own_or_zeros(gradient, c[0]) for gradient in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    plan = persistent_plan(device, 4, steps, c, (saved.weight_hh,))
    if plan is not None:
        partial = empty((2, plan.blocks, plan.most, hidden), dtype)
        _PERSISTENT_BACKWARD(
            device, dtype, plan.blocks, plan.backward, saved.weight_hh, gates, c, dy, dh, dc, dgates, partial, lengths,
            counters(device, plan), steps, batch, hidden, reverse, plan.groups, plan.most,
            shared=plan.shared_backward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        shape = StepShape(device, c, (gates, c, dy, dh, dc, dgates))
        for t in range(steps) if reverse else reversed(range(steps)):
            _BACKWARD(
                device, dtype, shape.grid, shape.block, gates, c, dy, dh, dc, dgates, lengths, t, batch, hidden,
                reverse, shape.vectors,
            )  # fmt: skip
            matmul(dgates[t], saved.weight_hh, dh, accumulate=lengths is not None)
    dx = empty(x.shape, dtype)
    matmul(flat(dgates), saved.weight_ih, flat(dx))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    before = saved.h[1:] if reverse else saved.h[:-1]
    matmul(flat(dgates), flat(x), dweight_ih, transpose_a=True)
    matmul(flat(dgates), flat(before), dweight_hh, transpose_a=True)
    return dx, dh, dc, dweight_ih, dweight_hh, sum_rows(flat(dgates)) if saved.has_bias else None
