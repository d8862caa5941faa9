"""LSTM over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), gates i, f, g, o.

    i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same)
    c' = f c + i g,   h' = o tanh(c')

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x.

The input products of all steps are one matrix product, and so is each weight gradient. The recurrent part is split by
sequences of the batch, not by columns: a thread takes its sequences through all steps, so that threads never wait for
each other, and W_hh is packed once for all steps. What is computed for a sequence is the same on whichever thread.
A single step of whole length goes by hidden units instead, see lstm_cell_cpu.py, and so do few sequences with a large
W_hh, see lstm_units_cpu.py. What may come between the steps (between_steps_ref.py) makes another variant of the
kernels; without it they are the plain ones.

Flops: 8 T B H (I + H) forward, twice that backward. Saved for backward: gates, c and y, 6 H numbers for each step of
each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import lstm_cell_cpu, lstm_units_cpu, runtime
from .between_steps_cpu import (
    BOUND,
    MASK,
    SCRATCH,
    SCRATCH_BYTES,
    ZONES,
    Noise,
    Parts,
    clamped,
    mask_h,
    mask_x,
    masked_steps,
    table_of,
)
from .linear_cpu import column_sums, small_products, small_sum
from .lstm_cell_cpu import Step, gate_gradients, gate_values
from .matmul_cpu import pack, panel_columns, product, rows_by_panels, zeros
from .meeting import flags
from .recurrent_cpu import (
    GATE_BYTES,
    Array,
    copy_row,
    input_products,
    parts_of_units,
    small_gradients,
    tasks_for,
    weight_gradients,
    zero_row,
    zeroed_padding,
)
from .simd import traced


@runtime.kernel
def _forward(dtype: np.dtype, between: bool) -> Any:
    """Take some sequences through all steps.

    pointers: T, B, H, gates (T, B, 4H), h (T + 1, B, H), c (T + 1, B, H), packed W_hh^T, lengths or 0, y (T, B, H)
    where there are lengths, reverse, tasks, table of what is `between` steps. Slot t of h and c holds the state before
    step t, or after it in reverse.
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_forward = traced(gate_values, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, mask, mix = parts.start_zones, parts.draw_zones, parts.mask, parts.mix

    def kernel(block, pointers):
        steps, batch, hidden, gates, h, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]
        packed, lengths, y, reverse, tasks = pointers[6], pointers[7], pointers[8], pointers[9], pointers[10]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        row, row4 = hidden * item, 4 * hidden * item
        panels = (4 * hidden + width - 1) // width
        if between:
            table = pointers[11]
            z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
            z_c = z_h + (last - first) * row
            masked = z_c + (last - first) * row
            masks, zones = runtime.peek(table, MASK), runtime.peek(table, ZONES)
            start_zones(table, z_h, z_c, (last - first) * hidden)
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = ((t + 1 if reverse else t) * batch + first) * row
            after = ((t if reverse else t + 1) * batch + first) * row
            step = gates + (t * batch + first) * row4
            source = h + before
            if between:
                draw_zones(table, z_h, z_c, (t * batch + first) * hidden, (last - first) * hidden)
                if masks != 0:
                    mask(source, masks + first * row, masked, (last - first) * hidden)
                    source = masked
            multiply(
                source, row, last - first, packed, hidden, 0, panels, 4 * hidden, step, row4, step, row4, 0, hidden
            )
            for b in range(last - first):
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    copy(h + before + b * row, h + after + b * row, hidden)
                    copy(c + before + b * row, c + after + b * row, hidden)
                    zero(y + (t * batch + first + b) * row, hidden)
                    continue
                gates_forward(
                    step + b * row4, c + before + b * row, c + after + b * row, h + after + b * row, hidden, hidden
                )
                if between and zones != 0:
                    mix(z_h + b * row, h + before + b * row, h + after + b * row, hidden)
                    mix(z_c + b * row, c + before + b * row, c + after + b * row, hidden)
                if lengths != 0:
                    copy(h + after + b * row, y + (t * batch + first + b) * row, hidden)

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype, between: bool) -> Any:
    """Take some sequences back through all steps.

    pointers: T, B, H, gates, c, dy or 0, dh (B, H) in/out, dc (B, H) in/out, dgates (T, B, 4H) out, packed W_hh,
    lengths or 0, zeros (H,), reverse, tasks, table of what is `between` steps
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_backward = traced(gate_gradients, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, split = parts.start_zones, parts.draw_zones, parts.split
    add, add_masked, clamp = parts.add, parts.add_masked, parts.clamp

    def kernel(block, pointers):
        steps, batch, hidden, gates, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4]
        dy = pointers[5]
        packed, lengths, zeros, reverse, tasks = pointers[9], pointers[10], pointers[11], pointers[12], pointers[13]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        row, row4 = hidden * item, 4 * hidden * item
        panels = (hidden + width - 1) // width
        dh, dc = pointers[6] + first * row, pointers[7] + first * row
        if between:
            table = pointers[14]
            z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
            z_c = z_h + (last - first) * row
            product = z_c + (last - first) * row
            kept_h = product + (last - first) * row
            kept_c = kept_h + (last - first) * row
            masks, zones, bound = (
                runtime.peek(table, MASK), runtime.peek(table, ZONES), runtime.peek(table, BOUND),
            )  # fmt: skip
            start_zones(table, z_h, z_c, (last - first) * hidden)
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            before = ((t + 1 if reverse else t) * batch + first) * row
            step = gates + (t * batch + first) * row4
            dstep = pointers[8] + (t * batch + first) * row4
            if between:
                draw_zones(table, z_h, z_c, (t * batch + first) * hidden, (last - first) * hidden)
            for b in range(last - first):
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    zero(dstep + b * row4, 4 * hidden)
                    continue
                above = dy + (t * batch + first + b) * row if dy != 0 else zeros
                if between and zones != 0:
                    split(z_h + b * row, dh + b * row, above, kept_h, hidden)
                    split(z_c + b * row, dc + b * row, zeros, kept_c, hidden)
                    above = zeros
                gates_backward(
                    step + b * row4,
                    c + before + b * row,
                    above,
                    dh + b * row,
                    dc + b * row,
                    dstep + b * row4,
                    hidden,
                    hidden,
                )
                if between and zones != 0:
                    copy(kept_h, dh + b * row, hidden)
                    add(kept_c, dc + b * row, hidden)
            into, start, start_row = dh, dh, row
            if between and masks != 0:
                into, start, start_row = product, zeros, 0
            multiply(
                dstep, row4, last - first, packed, 4 * hidden, 0, panels, hidden, into, row, start, start_row,
                0, 4 * hidden,
            )  # fmt: skip
            if between:
                if masks != 0:
                    add_masked(product, masks + first * row, dh, (last - first) * hidden)
                if bound != 0:
                    for b in range(last - first):
                        if lengths == 0 or t < runtime.peek(lengths, first + b):
                            clamp(dh + b * row, hidden, bound)
                            clamp(dc + b * row, hidden, bound)

    return kernel


# --- a sequence


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
) -> tuple[Array, Array, Array, Saved | Step]:
    """Return y (T, B, H), hn (B, H), cn (B, H) and what backward needs."""
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    if steps == 1 and lengths is None and batch and hidden and noise is None:
        hn, cn, step = lstm_cell_cpu.forward(x[0], h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
        return hn[None].copy(), hn, cn, step
    x = zeroed_padding(x, lengths)
    bias = bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh
    queue = runtime.Queue()
    gates = input_products(queue, x if noise is None else masked_steps(x, mask_x(noise, x)), weight_ih, bias)
    size = steps + 1, batch, hidden
    h, c = empty(size, dtype), empty(size, dtype)
    initial = steps if reverse else 0
    h[initial], c[initial] = h0, c0
    states = h[:-1] if reverse else h[1:]
    y = states if lengths is None else empty(states.shape, dtype)
    parts = 0 if noise is not None else parts_of_units(batch, 4, hidden, dtype)
    if parts:
        packed_gates = [pack(queue, weight_hh[gate * hidden : (gate + 1) * hidden].T) for gate in range(4)]
        pointers: runtime.Pointers = (
            steps, batch, hidden, gates, h, c, *packed_gates, lengths, y, reverse, parts, flags(parts),
        )  # fmt: skip
        queue.launches.append((lstm_units_cpu.forward(dtype), parts, pointers, runtime.TOGETHER))
    elif hidden:
        packed = pack(queue, weight_hh.T)
        tasks = tasks_for(batch)
        table = None if noise is None else table_of(noise, h, tasks)
        pointers = (
            steps, batch, hidden, gates, h, c, packed, lengths, y, reverse, tasks,
            table,
        )  # fmt: skip
        queue.launches.append((_forward(dtype, table is not None), tasks, pointers, True))
    queue.run()
    final = 0 if reverse else steps
    saved = Saved(x, weight_ih, weight_hh, bias is not None, lengths, reverse, gates, h, c, noise)
    return y, h[final].copy(), c[final].copy(), saved


def backward(
    dy: Array | None,
    dhn: Array | None,
    dcn: Array | None,
    saved: Saved | Step,
    state_grad_clip: float | None = None,
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    if isinstance(saved, Step):
        if dy is not None:
            dhn = dy[0] if dhn is None else dy[0] + dhn
        dx, *others = backward_step(dhn, dcn, saved, state_grad_clip)
        return (dx[None], *others)  # type: ignore[return-value]
    x, gates, noise = saved.x, saved.gates, saved.noise
    steps, batch, inputs = x.shape
    hidden, dtype = saved.weight_hh.shape[1], x.dtype
    dh, dc = (np.zeros((batch, hidden), dtype) if d is None else d.copy() for d in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    nothing = zeros(hidden, dtype)
    queue = runtime.Queue()
    packed = pack(queue, saved.weight_hh)
    common = steps, batch, hidden, gates, saved.c, dy, dh, dc, dgates, packed, saved.lengths, nothing, saved.reverse
    plain = noise is None and state_grad_clip is None
    parts = parts_of_units(batch, 4, hidden, dtype) if plain else 0
    if parts:
        kernel = lstm_units_cpu.backward(dtype)
        queue.launches.append((kernel, parts, (*common, parts, flags(parts)), runtime.TOGETHER))
    elif hidden:
        tasks = tasks_for(batch)
        table = None if plain else table_of(noise, dh, tasks, state_grad_clip)
        pointers = *common, tasks, table
        queue.launches.append((_backward(dtype, table is not None), tasks, pointers, True))
    dx = empty(x.shape, dtype)
    if noise is None and small_gradients(steps, batch, 4 * hidden, inputs, hidden, dtype):
        dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
        dbias = np.empty(4 * hidden, dtype) if saved.has_bias else None
        before = saved.h[1:] if saved.reverse else saved.h[:-1]
        rows, sums, nothing = steps * batch, 4 * hidden, zeros(max(inputs, hidden), dtype)
        stride = sums * dtype.itemsize
        small: list[runtime.Pointers] = [
            (dgates, False, stride, saved.weight_ih, False, nothing, dx, rows, sums, inputs),
            (dgates, True, stride, x, False, nothing, dweight_ih, sums, rows, inputs),
            (dgates, True, stride, before, False, nothing, dweight_hh, sums, rows, hidden),
        ]
        if dbias is not None:
            small.append(small_sum(dgates, rows, sums, dbias))
        queue.launches.append(small_products(*small))
        queue.run()
        return dx, dh, dc, dweight_ih, dweight_hh, dbias
    flat = dgates.reshape(steps * batch, 4 * hidden)
    product(queue, flat, saved.weight_ih, dx.reshape(steps * batch, inputs))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    m_x, m_h = mask_x(noise, x), mask_h(noise, batch, hidden, dtype)
    if m_x is not None:
        queue.run()
        masked_steps(dx, m_x, out=dx)
    before = masked_steps(saved.h[1:] if saved.reverse else saved.h[:-1], m_h)
    weight_gradients(queue, flat, [masked_steps(x, m_x), before], [dweight_ih, dweight_hh])
    dbias = None
    if saved.has_bias:
        dbias = np.empty(4 * hidden, dtype)
        column_sums(queue, flat, dbias)
    queue.run()
    return dx, dh, dc, dweight_ih, dweight_hh, dbias


# --- a single step


def forward_step(
    x: Array, h: Array, c: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None
) -> tuple[Array, Array, Saved | Step]:
    """Return h_next, c_next (B, H) and what `backward_step` needs; x is (B, I)."""
    if h.size:
        return lstm_cell_cpu.forward(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh)
    _, h_next, c_next, saved = forward(x[None], h, c, weight_ih, weight_hh, bias_ih, bias_hh, None, False)
    return h_next, c_next, saved


def backward_step(
    dh_next: Array | None, dc_next: Array | None, saved: Saved | Step, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return what `backward` does, of a single step: dx (B, I)."""
    if isinstance(saved, Step):
        dx, dh, dc, *others = lstm_cell_cpu.backward(dh_next, dc_next, saved)
        return dx, clamped(dh, state_grad_clip), clamped(dc, state_grad_clip), *others  # type: ignore[return-value]
    dx, *others = backward(None, dh_next, dc_next, saved, state_grad_clip)
    return (dx[0], *others)
