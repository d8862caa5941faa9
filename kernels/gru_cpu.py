"""GRU over a sequence (Cho et al., 2014), gates r, z, n.

    r, z = sigmoid(W_i x_t + b_i + W_h h + b_h)
    n = tanh(W_in x_t + b_in + r (W_hn h + b_hn))    reset_after, the form of torch and cuDNN
    n = tanh(W_in x_t + b_in + W_hn (r h) + b_hn)    otherwise, the paper's
    h' = (1 - z) n + z h

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x.

Split over threads as in lstm_cpu.py, as is what may come between the steps. A single step and few sequences go another
way with reset_after, as there: see gru_cell_cpu.py and gru_units_cpu.py. Flops: 6 T B H (I + H) forward, twice that
backward. Saved for backward: gates, y and `inner`, which is W_hn h + b_hn with reset_after and r h without: 5 H numbers
a step and sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import gru_cell_cpu, gru_units_cpu, runtime, vecmath
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
from .gru_cell_cpu import Step, candidate_gradients, gate_gradients, gate_values
from .linear_cpu import column_sums, small_products, small_sum
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
    zero_row,
    zeroed_padding,
)
from .simd import Machine, Value, traced

# --- one step of one sequence in the paper's form: gates (3H,) in/out, sums, then r, z, n;  inner (H,), h (H,),
#     h_next (H,) out


def _gates_before(m: Machine, gates: Value, inner: Value, h: Value, hidden: Value) -> None:
    """r and z, and inner = r h, before the product of the paper's form."""
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        r, z = (vecmath.sigmoid(m, m.load(gates + stride * k + at, mask)) for k in (0, 1))
        m.store(gates + at, r, mask)
        m.store(gates + stride + at, z, mask)
        m.store(inner + at, r * m.load(h + at, mask), mask)

    m.over(0, hidden, body)


def _candidate(m: Machine, gates: Value, h: Value, h_next: Value, hidden: Value) -> None:
    """n and h' after that product."""
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        cell = gates + stride * 2 + at
        n, z = vecmath.tanh(m, m.load(cell, mask)), m.load(gates + stride + at, mask)
        m.store(cell, n, mask)
        m.store(h_next + at, m.fma(z, m.load(h + at, mask), (1.0 - z) * n), mask)

    m.over(0, hidden, body)


# --- back through one step of one sequence: dh (H,) in/out, gradient of h', then the part of h's that no product gives
#     dgates (3H,) out: gradients of the sums of x;  dinner (H,)


def _candidate_backward(
    m: Machine, gates: Value, h: Value, dy: Value, dh: Value, dgates: Value, dinner: Value, hidden: Value
) -> None:
    """z and n of the paper's form; dinner out: 0, for the product to add the gradient of r h to."""
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        kept, dz, dn = candidate_gradients(m, gates, h, dy, dh, at, stride, mask)
        m.store(dh + at, kept, mask)
        m.store(dgates + stride + at, dz, mask)
        m.store(dgates + stride * 2 + at, dn, mask)
        m.store(dinner + at, m.zero(), mask)

    m.over(0, hidden, body)


def _reset_backward(m: Machine, gates: Value, h: Value, dh: Value, dgates: Value, dinner: Value, hidden: Value) -> None:
    """r of the paper's form; dinner: gradient of r h."""

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        r, d = m.load(gates + at, mask), m.load(dinner + at, mask)
        m.store(dgates + at, d * m.load(h + at, mask) * (r * (1.0 - r)), mask)
        m.store(dh + at, m.fma(d, r, m.load(dh + at, mask)), mask)

    m.over(0, hidden, body)


# --- kernels


@runtime.kernel
def _forward(dtype: np.dtype, reset_after: bool, between: bool) -> Any:
    """Take some sequences through all steps.

    pointers: T, B, H, gates (T, B, 3H), inner (T, B, H), h (T + 1, B, H), packed W_hh^T of r and z, of n, bias of
    W_hn h (H,), lengths or 0, y (T, B, H) where there are lengths, reverse, tasks, table of what is `between` steps.
    Slot t of h holds the state before step t, or after it in reverse.
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    vector = GATE_BYTES // item
    gates_after, gates_before = traced(gate_values, dtype, vector), traced(_gates_before, dtype, vector)
    candidate = traced(_candidate, dtype, vector)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, mask, mix = parts.start_zones, parts.draw_zones, parts.mask, parts.mix

    def kernel(block, pointers):
        steps, batch, hidden, gates, inner, h = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        packed_rz, packed_n, bias, lengths, y = pointers[6], pointers[7], pointers[8], pointers[9], pointers[10]
        reverse, tasks = pointers[11], pointers[12]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        rows = last - first
        row, row3 = hidden * item, 3 * hidden * item
        panels_rz, panels_n = (2 * hidden + width - 1) // width, (hidden + width - 1) // width
        if between:
            table = pointers[13]
            z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
            z_c = z_h + rows * row
            masked = z_c + rows * row
            masks, zones = runtime.peek(table, MASK), runtime.peek(table, ZONES)
            start_zones(table, z_h, z_c, rows * hidden)
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = h + ((t + 1 if reverse else t) * batch + first) * row
            after = h + ((t if reverse else t + 1) * batch + first) * row
            g = gates + (t * batch + first) * row3
            w = inner + (t * batch + first) * row
            source = before
            if between:
                draw_zones(table, z_h, z_c, (t * batch + first) * hidden, rows * hidden)
                if masks != 0:
                    mask(source, masks + first * row, masked, rows * hidden)
                    source = masked
            multiply(source, row, rows, packed_rz, hidden, 0, panels_rz, 2 * hidden, g, row3, g, row3, 0, hidden)
            if reset_after:
                multiply(source, row, rows, packed_n, hidden, 0, panels_n, hidden, w, row, bias, 0, 0, hidden)
            else:
                for b in range(rows):
                    gates_before(g + b * row3, w + b * row, before + b * row, hidden)
                if between and masks != 0:
                    mask(w, masks + first * row, w, rows * hidden)
                n = g + 2 * row
                multiply(w, row, rows, packed_n, hidden, 0, panels_n, hidden, n, row3, n, row3, 0, hidden)
            for b in range(rows):
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    copy(before + b * row, after + b * row, hidden)
                    zero(y + (t * batch + first + b) * row, hidden)
                    continue
                if reset_after:
                    gates_after(g + b * row3, w + b * row, before + b * row, after + b * row, hidden, hidden)
                else:
                    candidate(g + b * row3, before + b * row, after + b * row, hidden)
                if between and zones != 0:
                    mix(z_h + b * row, before + b * row, after + b * row, hidden)
                if lengths != 0:
                    copy(after + b * row, y + (t * batch + first + b) * row, hidden)

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype, reset_after: bool, between: bool) -> Any:
    """Take some sequences back through all steps.

    pointers: T, B, H, gates, inner, h, dy or 0, dh (B, H) in/out, dgates (T, B, 3H) out, dinner out, packed W_hh of r
    and z, of n, lengths or 0, zeros (H,), reverse, tasks, table of what is `between` steps. dinner is (T, B, H) with
    reset_after, else (B, H) of scratch.
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    vector = GATE_BYTES // item
    gates_after_backward = traced(gate_gradients, dtype, vector)
    candidate_backward = traced(_candidate_backward, dtype, vector)
    reset_backward = traced(_reset_backward, dtype, vector)
    zero = traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, split, mask = parts.start_zones, parts.draw_zones, parts.split, parts.mask
    add, add_masked, clamp = parts.add, parts.add_masked, parts.clamp

    def kernel(block, pointers):
        steps, batch, hidden, gates, inner, h = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        dy, packed_rz, packed_n, lengths, zeros = pointers[6], pointers[10], pointers[11], pointers[12], pointers[13]
        reverse, tasks = pointers[14], pointers[15]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        rows = last - first
        row, row3 = hidden * item, 3 * hidden * item
        panels = (hidden + width - 1) // width
        dh = pointers[7] + first * row
        if between:
            table = pointers[16]
            z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
            z_c = z_h + rows * row
            product = z_c + rows * row
            kept = product + rows * row
            masks, zones, bound = (
                runtime.peek(table, MASK), runtime.peek(table, ZONES), runtime.peek(table, BOUND),
            )  # fmt: skip
            start_zones(table, z_h, z_c, rows * hidden)
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            at = t * batch + first
            before = h + ((t + 1 if reverse else t) * batch + first) * row
            g, dg = gates + at * row3, pointers[8] + at * row3
            w = inner + at * row
            dw = pointers[9] + (at if reset_after else first) * row
            if between:
                draw_zones(table, z_h, z_c, at * hidden, rows * hidden)
            for b in range(rows):
                upstream = dy + (at + b) * row if dy != 0 else zeros
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    zero(dg + b * row3, 3 * hidden)
                    zero(dw + b * row, hidden)
                    continue
                if between and zones != 0:
                    split(z_h + b * row, dh + b * row, upstream, kept, hidden)
                    upstream = zeros
                if reset_after:
                    gates_after_backward(
                        g + b * row3, w + b * row, before + b * row, upstream, dh + b * row,
                        dg + b * row3, dw + b * row, hidden, hidden,
                    )  # fmt: skip
                else:
                    candidate_backward(
                        g + b * row3, before + b * row, upstream, dh + b * row, dg + b * row3, dw + b * row, hidden
                    )
                if between and zones != 0:
                    add(kept, dh + b * row, hidden)
            into, start, start_row = dh, dh, row
            if between and masks != 0:
                into, start, start_row = product, zeros, 0
            if reset_after:
                multiply(dw, row, rows, packed_n, hidden, 0, panels, hidden, into, row, start, start_row, 0, hidden)
                start, start_row = into, row
            else:
                dn = dg + 2 * row
                multiply(dn, row3, rows, packed_n, hidden, 0, panels, hidden, dw, row, dw, row, 0, hidden)
                if between and masks != 0:
                    mask(dw, masks + first * row, dw, rows * hidden)
                for b in range(rows):
                    if lengths == 0 or t < runtime.peek(lengths, first + b):
                        reset_backward(
                            g + b * row3, before + b * row, dh + b * row, dg + b * row3, dw + b * row, hidden
                        )
            multiply(
                dg, row3, rows, packed_rz, 2 * hidden, 0, panels, hidden, into, row, start, start_row, 0, 2 * hidden
            )
            if between:
                if masks != 0:
                    add_masked(product, masks + first * row, dh, rows * hidden)
                if bound != 0:
                    for b in range(rows):
                        if lengths == 0 or t < runtime.peek(lengths, first + b):
                            clamp(dh + b * row, hidden, bound)

    return kernel


# --- a sequence


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
) -> tuple[Array, Array, Saved | Step]:
    """Return y (T, B, H), hn (B, H) and what backward needs."""
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    if steps == 1 and lengths is None and reset_after and batch and hidden and noise is None:
        hn, step = gru_cell_cpu.forward(x[0], h0, weight_ih, weight_hh, bias_ih, bias_hh)
        return hn[None].copy(), hn, step
    x = zeroed_padding(x, lengths)
    inner_bias = zeros(hidden, dtype)
    if not reset_after or bias_hh is None:
        outer = bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh
    else:
        # The recurrent bias of n belongs inside the product with r; all others join those of x.
        inner_bias = bias_hh[2 * hidden :]
        outer = bias_hh.copy() if bias_ih is None else bias_ih + bias_hh
        outer[2 * hidden :] = 0 if bias_ih is None else bias_ih[2 * hidden :]
    queue = runtime.Queue()
    gates = input_products(queue, x if noise is None else masked_steps(x, mask_x(noise, x)), weight_ih, outer)
    h = empty((steps + 1, batch, hidden), dtype)
    inner = empty((steps, batch, hidden), dtype)
    h[steps if reverse else 0] = h0
    states = h[:-1] if reverse else h[1:]
    y = states if lengths is None else empty(states.shape, dtype)
    parts = parts_of_units(batch, 3, hidden, dtype) if noise is None and reset_after else 0
    if parts:
        packed_gates = [pack(queue, weight_hh[gate * hidden : (gate + 1) * hidden].T) for gate in range(3)]
        pointers: runtime.Pointers = (
            steps, batch, hidden, gates, inner, h, *packed_gates, inner_bias, lengths, y, reverse, parts, flags(parts),
        )  # fmt: skip
        queue.launches.append((gru_units_cpu.forward(dtype), parts, pointers, runtime.TOGETHER))
    elif hidden:
        packed_rz, packed_n = (pack(queue, part.T) for part in (weight_hh[: 2 * hidden], weight_hh[2 * hidden :]))
        tasks = tasks_for(batch)
        table = None if noise is None else table_of(noise, h, tasks)
        pointers = (
            steps, batch, hidden, gates, inner, h, packed_rz, packed_n, inner_bias, lengths, y, reverse, tasks,
            table,
        )  # fmt: skip
        queue.launches.append((_forward(dtype, reset_after, table is not None), tasks, pointers, True))
    queue.run()
    saved = Saved(
        x, weight_ih, weight_hh, bias_ih is not None, bias_hh is not None,
        lengths, reverse, reset_after, gates, inner, h, noise,
    )  # fmt: skip
    return y, h[0 if reverse else steps].copy(), saved


def backward(
    dy: Array | None, dhn: Array | None, saved: Saved | Step, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return dx (T, B, I), dh0 (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,) or None."""
    if isinstance(saved, Step):
        if dy is not None:
            dhn = dy[0] if dhn is None else dy[0] + dhn
        dx, *others = backward_step(dhn, saved, state_grad_clip)
        return (dx[None], *others)  # type: ignore[return-value]
    x, weight_hh, noise = saved.x, saved.weight_hh, saved.noise
    steps, batch, inputs = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    dh = np.zeros((batch, hidden), dtype) if dhn is None else dhn.copy()
    dgates = empty(saved.gates.shape, dtype)
    dinner = empty((steps if saved.reset_after else 1, batch, hidden), dtype)
    nothing = zeros(hidden, dtype)
    queue = runtime.Queue()
    packed_rz, packed_n = pack(queue, weight_hh[: 2 * hidden]), pack(queue, weight_hh[2 * hidden :])
    common = (
        steps, batch, hidden, saved.gates, saved.inner, saved.h, dy, dh, dgates, dinner, packed_rz, packed_n,
        saved.lengths, nothing, saved.reverse,
    )  # fmt: skip
    plain = noise is None and state_grad_clip is None
    parts = parts_of_units(batch, 3, hidden, dtype) if plain and saved.reset_after else 0
    if parts:
        kernel = gru_units_cpu.backward(dtype)
        queue.launches.append((kernel, parts, (*common, parts, flags(parts)), runtime.TOGETHER))
    elif hidden:
        tasks = tasks_for(batch)
        table = None if plain else table_of(noise, dh, tasks, state_grad_clip)
        pointers = *common, tasks, table
        queue.launches.append((_backward(dtype, saved.reset_after, table is not None), tasks, pointers, True))
    dx = empty(x.shape, dtype)
    if noise is None and small_gradients(steps, batch, 3 * hidden, inputs, hidden, dtype):
        return dx, dh, *_small_gradients(queue, saved, dgates, dinner, dx)
    flat = dgates.reshape(steps * batch, 3 * hidden)
    product(queue, flat, saved.weight_ih, dx.reshape(steps * batch, inputs))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(weight_hh.shape, dtype)
    m_x, m_h = mask_x(noise, x), mask_h(noise, batch, hidden, dtype)
    if m_x is not None:
        queue.run()
        masked_steps(dx, m_x, out=dx)
    x, states = masked_steps(x, m_x), masked_steps(saved.h[1:] if saved.reverse else saved.h[:-1], m_h)
    both, candidate = slice(None, 2 * hidden), slice(2 * hidden, None)
    panels = [pack(queue, a.reshape(steps * batch, a.shape[2])) for a in (x, states)]
    product(queue, flat[:, both].T, panels, [dweight_ih[both], dweight_hh[both]])
    if saved.reset_after:
        candidates = dinner.reshape(steps * batch, hidden)
        product(queue, flat[:, candidate].T, panels[:1], [dweight_ih[candidate]])
        product(queue, candidates.T, panels[1:], [dweight_hh[candidate]])
    else:
        candidates = flat[:, candidate]
        factors = [panels[0], saved.inner.reshape(steps * batch, hidden)]
        product(queue, candidates.T, factors, [dweight_ih[candidate], dweight_hh[candidate]])
    dbias = np.empty((2, 3 * hidden), dtype)
    has_bias = saved.has_bias_ih or saved.has_bias_hh
    if has_bias:
        column_sums(queue, flat, dbias[0])
        column_sums(queue, candidates, dbias[1, 2 * hidden :])
    queue.run()
    if has_bias:
        dbias[1, : 2 * hidden] = dbias[0, : 2 * hidden]
    return (
        dx,
        dh,
        dweight_ih,
        dweight_hh,
        dbias[0] if saved.has_bias_ih else None,
        dbias[1] if saved.has_bias_hh else None,
    )


def _small_gradients(
    queue: runtime.Queue, saved: Saved, dgates: Array, dinner: Array, dx: Array
) -> tuple[Array, Array, Array | None, Array | None]:
    """Run the queue and write dx; return dweight_ih, dweight_hh, dbias_ih and dbias_hh."""
    x, dtype = saved.x, saved.x.dtype
    steps, batch, inputs = x.shape
    hidden = saved.weight_hh.shape[1]
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    states = saved.h[1:] if saved.reverse else saved.h[:-1]
    rows, gates, both, nothing = steps * batch, 3 * hidden, 2 * hidden, zeros(max(inputs, hidden), dtype)
    stride = gates * dtype.itemsize
    if saved.reset_after:
        candidates, candidates_stride, factor = dinner, hidden * dtype.itemsize, states
    else:
        candidates, candidates_stride, factor = dgates[:, :, both:], stride, saved.inner
    small: list[runtime.Pointers] = [
        (dgates, False, stride, saved.weight_ih, False, nothing, dx, rows, gates, inputs),
        (dgates, True, stride, x, False, nothing, dweight_ih, gates, rows, inputs),
        (dgates, True, stride, states, False, nothing, dweight_hh, both, rows, hidden),
        (candidates, True, candidates_stride, factor, False, nothing, dweight_hh[both:], hidden, rows, hidden),
    ]
    dbias = np.empty((2, gates), dtype)
    if saved.has_bias_ih or saved.has_bias_hh:
        small.append(small_sum(dgates, rows, gates, dbias[0]))
        small.append(small_sum(dgates, rows, gates, dbias[1]))
        if saved.reset_after:
            small.append(small_sum(dinner, rows, hidden, dbias[1, both:]))
    queue.launches.append(small_products(*small))
    queue.run()
    return dweight_ih, dweight_hh, dbias[0] if saved.has_bias_ih else None, dbias[1] if saved.has_bias_hh else None


# --- a single step


def forward_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    reset_after: bool,
) -> tuple[Array, Saved | Step]:
    """Return h_next (B, H) and what `backward_step` needs; x is (B, I)."""
    if reset_after and h.size:
        return gru_cell_cpu.forward(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    _, h_next, saved = forward(x[None], h, weight_ih, weight_hh, bias_ih, bias_hh, None, False, reset_after)
    return h_next, saved


def backward_step(
    dh_next: Array | None, saved: Saved | Step, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return what `backward` does, of a single step: dx (B, I)."""
    if isinstance(saved, Step):
        dx, dh, *others = gru_cell_cpu.backward(dh_next, saved)
        return dx, clamped(dh, state_grad_clip), *others  # type: ignore[return-value]
    dx, *others = backward(None, dh_next, saved, state_grad_clip)
    return (dx[0], *others)
