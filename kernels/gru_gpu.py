"""Launch a GRU over a sequence on a device; see gru.cu and gru_reset_before.cu.

The input products of all steps are one matrix product, and so is each weight gradient, but for reset_after=False, where
that of W_hh takes two. Flops: 6 T B H (I + H) forward, twice that backward. Saved for backward: gates, y and `inner`, 5
H numbers for each step of each sequence.
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

_STEP = "lengths: i64*?, t: i64, batch: i64, hidden: i64, reverse: i32, vectors: i32"
_BIASES = "bias_ih: T*?, bias_hh: T*?"


_FORWARD = cuda.Kernel("gru", "fg_gru_forward", f"gates: T*, products: T*, {_BIASES}, inner: T*, h: T*, y: T*, {_STEP}")
_BACKWARD = cuda.Kernel(
    "gru",
    "fg_gru_backward",
    f"gates: T*, inner: T*, h: T*, dy: T*?, dh: T*, dgates: T*, dproducts: T*, {_STEP}",
)


def _reset_before(name: str, parameters: str) -> cuda.Kernel:
    return cuda.Kernel("gru_reset_before", name, f"{parameters}, {_STEP}")


_RESET = _reset_before("fg_gru_reset", f"gates: T*, {_BIASES}, inner: T*, h: T*")
_CANDIDATE = _reset_before("fg_gru_candidate", f"gates: T*, {_BIASES}, h: T*, y: T*")
_CANDIDATE_BACKWARD = _reset_before("fg_gru_candidate_backward", "gates: T*, h: T*, dy: T*?, dh: T*, dgates: T*")
_RESET_BACKWARD = _reset_before("fg_gru_reset_backward", "gates: T*, h: T*, dinner: T*, dh: T*, dgates: T*")
_PERSISTENT_FORWARD = cuda.Kernel(
    "gru_persistent",
    "fg_gru_persistent_forward",
    f"weight_hh: T*, gates: T*, {_BIASES}, inner: T*, h: T*, y: T*, lengths: i64*?, counters: u32*, steps: i64, "
    "batch: i64, hidden: i64, reverse: i32, groups: i32, pass: i32",
    ["units", "depth"],
)
_PERSISTENT_BACKWARD = cuda.Kernel(
    "gru_persistent",
    "fg_gru_persistent_backward",
    "weight_hh: T*, gates: T*, inner: T*, h: T*, dy: T*?, dh: T*, dgates: T*, dproducts: T*, partial: T*, "
    "lengths: i64*?, counters: u32*, steps: i64, batch: i64, hidden: i64, reverse: i32, groups: i32, most: i32, "
    "bound: A",
    ["units", "depth"],
)


@dataclass
class Saved:
    """What backward needs. x, the weights and y are the caller's own arrays."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    has_bias_ih: bool
    has_bias_hh: bool
    lengths: Array | None
    reverse: bool
    reset_after: bool
    gates: Array  # (T, B, 3H): r, z, n
    inner: Array  # (T, B, H): W_hn h + b_hn with reset_after, r h (times its mask) without
    h: Array  # (T + 1, B, H), initial state first, or last in reverse
    noise: Noise | None


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
    device = cuda.device_of(x)
    empty, dtype = device.xp.empty, x.dtype
    steps, batch, _ = x.shape
    hidden = weight_hh.shape[1]
    x = zeroed_padding(x, lengths)
    has_bias_ih, has_bias_hh = bias_ih is not None, bias_hh is not None
    gates = input_products(masked_steps(x, mask_x(noise, x)), weight_ih)
    inner, h = empty((steps, batch, hidden), dtype), states(h0, steps, reverse)
    saved = Saved(
        x, weight_ih, weight_hh, has_bias_ih, has_bias_hh, lengths, reverse, reset_after, gates, inner, h, noise
    )  # fmt: skip
    after = h[:-1] if reverse else h[1:]
    y = after if lengths is None else empty(after.shape, dtype)
    plan = persistent_plan(device, 3, steps, h, (weight_hh, h)) if reset_after and undisturbed(noise) else None
    arrivals = counters(device, plan)
    if plan is not None:
        _PERSISTENT_FORWARD(
            device, dtype, plan.blocks, plan.forward, weight_hh, gates, bias_ih, bias_hh, inner, h, y, lengths,
            arrivals, steps, batch, hidden, reverse, plan.groups, plan.at_a_time,
            shared=plan.shared_forward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        _stepwise_forward(device, bias_ih, bias_hh, y, saved)
    hn = cuda.copy(h[0 if reverse else steps])
    return y, hn, saved


def _stepwise_forward(
    device: cuda.Device, bias_ih: Array | None, bias_hh: Array | None, y: Array, saved: Saved
) -> None:
    gates, inner, h, weight_hh, reverse = saved.gates, saved.inner, saved.h, saved.weight_hh, saved.reverse
    steps, batch, hidden = inner.shape
    rz, n = slice(None, 2 * hidden), slice(2 * hidden, None)
    products = device.xp.empty((batch, 3 * hidden), h.dtype) if saved.reset_after else None
    shape = StepShape(device, h, (gates, products, bias_ih, bias_hh, inner, h, y))
    between = Between(saved.noise, h, 1, saved.lengths, reverse)

    def launch(kernel: cuda.Kernel, t: int, *arrays: Array | None) -> None:
        step = saved.lengths, t, batch, hidden, reverse, shape.vectors
        kernel(device, h.dtype, shape.grid, shape.block, *arrays, *step)

    for t in reversed(range(steps)) if reverse else range(steps):
        before = between.entering(h[t + 1 if reverse else t])
        if saved.reset_after:
            matmul(before, weight_hh, products, transpose_b=True)
            launch(_FORWARD, t, gates, products, bias_ih, bias_hh, inner, h, y)
        else:
            matmul(before, weight_hh[rz], gates[t, :, rz], transpose_b=True, accumulate=True)
            launch(_RESET, t, gates, bias_ih, bias_hh, inner, h)
            masked_steps(inner[t : t + 1], between.mask_h, out=inner[t : t + 1])
            matmul(inner[t], weight_hh[n], gates[t, :, n], transpose_b=True, accumulate=True)
            launch(_CANDIDATE, t, gates, bias_ih, bias_hh, h, y)
        between.after(t, h, None, y)


def backward(
    dy: Array | None, dhn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return dx (T, B, I), dh0 (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,) or None."""
    x, inner, h, weight_hh, noise = saved.x, saved.inner, saved.h, saved.weight_hh, saved.noise
    device = cuda.device_of(x)
    empty, dtype = device.xp.empty, x.dtype
    steps, batch, hidden = inner.shape
    reset_after = saved.reset_after
    dh = own_or_zeros(dhn, h[0])
    dgates = empty(saved.gates.shape, dtype)
    # Gradients of W_hh h, in the order of W_hh's rows; of reset_after=False one of r h, (B, H).
    dproducts = empty(dgates.shape if reset_after else (batch, hidden), dtype)
    plan = persistent_plan(device, 3, steps, h, (weight_hh,)) if reset_after and undisturbed(noise) else None
    between = Between(noise, h, 1, saved.lengths, bound=state_grad_clip)
    arrivals, partial = counters(device, plan), partial_sums(device, plan, hidden)
    if plan is not None:
        _PERSISTENT_BACKWARD(
            device, dtype, plan.blocks, plan.backward, weight_hh, saved.gates, inner, h, dy, dh, dgates, dproducts,
            partial, saved.lengths, arrivals, steps, batch, hidden, saved.reverse, plan.groups, plan.most,
            math.inf if state_grad_clip is None else state_grad_clip,
            shared=plan.shared_backward, cooperative=True, **plan.variant,
        )  # fmt: skip
    else:
        _stepwise_backward(device, dy, dh, dgates, dproducts, saved, between)
    dx = empty(x.shape, dtype)
    flat_gates = flat(dgates)
    matmul(flat_gates, saved.weight_ih, flat(dx))
    m_x = mask_x(noise, x)
    masked_steps(dx, m_x, out=dx)
    x = masked_steps(x, m_x)
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(weight_hh.shape, dtype)
    matmul(flat_gates, flat(x), dweight_ih, transpose_a=True)
    before = flat(masked_steps(h[1:] if saved.reverse else h[:-1], between.mask_h))
    if reset_after:
        matmul(flat(dproducts), before, dweight_hh, transpose_a=True)
    else:
        rz, n = slice(None, 2 * hidden), slice(2 * hidden, None)
        matmul(flat_gates[:, rz], before, dweight_hh[rz], transpose_a=True)
        matmul(flat_gates[:, n], flat(inner), dweight_hh[n], transpose_a=True)
    dbias_ih = bias_gradient(dgates) if saved.has_bias_ih else None
    dbias_hh = bias_gradient(dproducts if reset_after else dgates) if saved.has_bias_hh else None
    return dx, dh, dweight_ih, dweight_hh, dbias_ih, dbias_hh


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


def _stepwise_backward(
    device: cuda.Device,
    dy: Array | None,
    dh: Array,
    dgates: Array,
    dproducts: Array,
    saved: Saved,
    between: Between,
) -> None:
    gates, inner, h, weight_hh, reverse = saved.gates, saved.inner, saved.h, saved.weight_hh, saved.reverse
    steps, batch, hidden = inner.shape
    rz, n = slice(None, 2 * hidden), slice(2 * hidden, None)
    shape = StepShape(device, h, (gates, inner, h, dy, dh, dgates, dproducts))

    def launch(kernel: cuda.Kernel, t: int, *arrays: Array | None) -> None:
        step = saved.lengths, t, batch, hidden, reverse, shape.vectors
        kernel(device, h.dtype, shape.grid, shape.block, *arrays, *step)

    product = between.leaving(dh)
    for t in range(steps) if reverse else reversed(range(steps)):
        above = between.before_backward(t, dh, None, dy)
        if saved.reset_after:
            launch(_BACKWARD, t, gates, inner, h, above, dh, dgates, dproducts)
            matmul(dproducts[t], weight_hh, product, accumulate=product is dh)
        else:
            launch(_CANDIDATE_BACKWARD, t, gates, h, above, dh, dgates)
            matmul(dgates[t, :, n], weight_hh[n], dproducts)
            masked_steps(dproducts[None], between.mask_h, out=dproducts[None])
            launch(_RESET_BACKWARD, t, gates, h, dproducts, dh, dgates)
            matmul(dgates[t, :, rz], weight_hh[rz], product, accumulate=product is dh)
        between.after_backward(t, dh, None, overwrite=False)
