"""Launch a GRU over a sequence on a device; see gru.cu and gru_reset_before.cu.

The input products of all steps are one matrix product, and so is each weight gradient, but for reset_after=False, where
that of W_hh takes two. Flops: 6 T B H (I + H) forward, twice that backward. Saved for backward: gates, y and `inner`, 5
H numbers for each step of each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import cuda
from .matmul_gpu import matmul
from .recurrent_gpu import StepShape, flat, input_products, own_or_zeros, states, sum_rows, zeroed_padding

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
    inner: Array  # (T, B, H): W_hn h + b_hn with reset_after, r h without
    h: Array  # (T + 1, B, H), initial state first, or last in reverse


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
) -> tuple[Array, Array, Saved]:
    """Return y (T, B, H), hn (B, H) and what backward needs."""
    device = cuda.device_of(x)
    empty = device.xp.empty
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    x = zeroed_padding(x, lengths)
    gates = input_products(x, weight_ih)
    h, inner = states(h0, steps, reverse), empty((steps, batch, hidden), dtype)
    after = h[:-1] if reverse else h[1:]
    y = after if lengths is None else empty(after.shape, dtype)
    products = empty((batch, 3 * hidden), dtype) if reset_after else None
    shape = StepShape(device, h, (gates, products, bias_ih, bias_hh, inner, h, y))
    weight_rz, weight_n = weight_hh[: 2 * hidden], weight_hh[2 * hidden :]

    def launch(kernel: cuda.Kernel, t: int, *arrays: Array | None) -> None:
        kernel(device, dtype, shape.grid, shape.block, *arrays, lengths, t, batch, hidden, reverse, shape.vectors)

    for t in reversed(range(steps)) if reverse else range(steps):
        before = h[t + 1 if reverse else t]
        if reset_after:
            matmul(before, weight_hh, products, transpose_b=True)
            launch(_FORWARD, t, gates, products, bias_ih, bias_hh, inner, h, y)
        else:
            matmul(before, weight_rz, gates[t, :, : 2 * hidden], transpose_b=True, accumulate=True)
            launch(_RESET, t, gates, bias_ih, bias_hh, inner, h)
            matmul(inner[t], weight_n, gates[t, :, 2 * hidden :], transpose_b=True, accumulate=True)
            launch(_CANDIDATE, t, gates, bias_ih, bias_hh, h, y)
    saved = Saved(
        x,
        weight_ih,
        weight_hh,
        bias_ih is not None,
        bias_hh is not None,
        lengths,
        reverse,
        reset_after,
        gates,
        inner,
        h,
    )
    return y, h[0 if reverse else steps].copy(), saved


def backward(
    dy: Array | None, dhn: Array | None, saved: Saved
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return dx (T, B, I), dh0 (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,) or None."""
    x, gates, inner, h = saved.x, saved.gates, saved.inner, saved.h
    device = cuda.device_of(x)
    empty, dtype = device.xp.empty, x.dtype
    steps, batch, _ = x.shape
    hidden = saved.weight_hh.shape[1]
    reset_after, reverse = saved.reset_after, saved.reverse
    dh = own_or_zeros(dhn, h[0])
    dgates = empty(gates.shape, dtype)
    # Gradients of W_hh h, in the order of W_hh's rows; of reset_after=False one of r h, (B, H).
    dproducts = empty(gates.shape if reset_after else (batch, hidden), dtype)
    shape = StepShape(device, h, (gates, inner, h, dy, dh, dgates, dproducts))
    rz, n = slice(None, 2 * hidden), slice(2 * hidden, None)

    def launch(kernel: cuda.Kernel, t: int, *arrays: Array | None) -> None:
        kernel(device, dtype, shape.grid, shape.block, *arrays, saved.lengths, t, batch, hidden, reverse, shape.vectors)

    for t in range(steps) if reverse else reversed(range(steps)):
        if reset_after:
            launch(_BACKWARD, t, gates, inner, h, dy, dh, dgates, dproducts)
            matmul(dproducts[t], saved.weight_hh, dh, accumulate=True)
        else:
            launch(_CANDIDATE_BACKWARD, t, gates, h, dy, dh, dgates)
            matmul(dgates[t, :, n], saved.weight_hh[n], dproducts)
            launch(_RESET_BACKWARD, t, gates, h, dproducts, dh, dgates)
            matmul(dgates[t, :, rz], saved.weight_hh[rz], dh, accumulate=True)
    dx = empty(x.shape, dtype)
    flat_gates = flat(dgates)
    matmul(flat_gates, saved.weight_ih, flat(dx))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    matmul(flat_gates, flat(x), dweight_ih, transpose_a=True)
    before = flat(h[1:] if reverse else h[:-1])
    if reset_after:
        matmul(flat(dproducts), before, dweight_hh, transpose_a=True)
    else:
        matmul(flat_gates[:, rz], before, dweight_hh[rz], transpose_a=True)
        matmul(flat_gates[:, n], flat(inner), dweight_hh[n], transpose_a=True)
    dbias_ih = sum_rows(flat_gates) if saved.has_bias_ih else None
    dbias_hh = sum_rows(flat(dproducts) if reset_after else flat_gates) if saved.has_bias_hh else None
    return dx, dh, dweight_ih, dweight_hh, dbias_ih, dbias_hh
