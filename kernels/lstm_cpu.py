"""LSTM over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), gates i, f, g, o.

    i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same)
    c' = f c + i g,   h' = o tanh(c')

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x.

The input products of all steps are one matrix product, and so is each weight gradient. The recurrent part is split by
sequences of the batch, not by columns: a thread takes its sequences through all steps, so that threads never wait for
each other, and W_hh is packed once for all steps. What is computed for a sequence is the same on whichever thread.
A single step of whole length goes by hidden units instead, see cell_cpu.py. What may come between the steps
(between_steps_ref.py) makes another variant of the kernels; without it they are the plain ones.

Flops: 8 T B H (I + H) forward, twice that backward. Saved for backward: gates, c and y, 6 H numbers for each step of
each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime, vecmath
from .between_steps_cpu import (
    BOUND,
    MASK,
    SCRATCH,
    SCRATCH_BYTES,
    ZONES,
    Noise,
    Parts,
    Table,
    clamped,
    mask_h,
    mask_x,
    masked_steps,
)
from .cell_cpu import (
    UNITS,
    Scratch,
    add_product,
    batch_vectors,
    column_panels,
    fill_rows,
    input_gradients,
    padded_batch,
    padded_columns,
    row_panels,
    step_tasks,
    sum_batch,
    turn,
    weight_rows,
)
from .linear_cpu import column_sums
from .matmul_cpu import BY_ROWS, VECTORS, lanes, pack, panel_columns, product, rows_by_panels, zeros
from .recurrent_cpu import (
    GATE_BYTES,
    Array,
    copy_row,
    input_products,
    tasks_for,
    weight_gradients,
    zero_row,
    zeroed_padding,
)
from .simd import Machine, Value, traced


def _gates_forward(
    m: Machine, gates: Value, c: Value, c_next: Value, h_next: Value, hidden: Value, units: Value
) -> None:
    """One step of one sequence, for `units` of its hidden units, to the first of which all addresses point.

    gates (4H,) in/out: sums, then i, f, g, o
    c (H,); c_next, h_next (H,) out
    """
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        cells = [gates + stride * k + at for k in range(4)]
        sums = [m.load(cell, mask) for cell in cells]
        i, f, o = (vecmath.sigmoid(m, sums[k]) for k in (0, 1, 3))
        g = vecmath.tanh(m, sums[2])
        state = m.fma(f, m.load(c + at, mask), i * g)
        for cell, gate in zip(cells, (i, f, g, o), strict=True):
            m.store(cell, gate, mask)
        m.store(c_next + at, state, mask)
        m.store(h_next + at, o * vecmath.tanh(m, state), mask)

    m.over(0, units, body)


def _gates_backward(
    m: Machine, gates: Value, c: Value, dy: Value, dh: Value, dc: Value, dgates: Value, hidden: Value, units: Value
) -> None:
    """One step of one sequence, for some units as above. c' is computed again: that takes less than reading it.

    gates (4H,), c (H,): what forward left
    dy (H,)
    dh (H,) in/out: gradient of h' from the next step, then 0, for the product to add to
    dc (H,) in/out: gradient of c', then of c;  dgates (4H,) out
    """
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        i, f, g, o = (m.load(gates + stride * k + at, mask) for k in range(4))
        c_before = m.load(c + at, mask)
        tanh_c = vecmath.tanh(m, m.fma(f, c_before, i * g))
        dh_all = m.load(dh + at, mask) + m.load(dy + at, mask)
        dc_all = m.fma(dh_all * o, m.fma(-tanh_c, tanh_c, m.full(1.0)), m.load(dc + at, mask))
        outputs = (
            dc_all * g * (i * (1.0 - i)),
            dc_all * c_before * (f * (1.0 - f)),
            dc_all * i * m.fma(-g, g, m.full(1.0)),
            dh_all * tanh_c * (o * (1.0 - o)),
        )
        for k, value in enumerate(outputs):
            m.store(dgates + stride * k + at, value, mask)
        m.store(dc + at, dc_all * f, mask)
        m.store(dh + at, m.zero(), mask)

    m.over(0, units, body)


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
    gates_forward = traced(_gates_forward, dtype, GATE_BYTES // item)
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
    gates_backward = traced(_gates_backward, dtype, GATE_BYTES // item)
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


# --- one step


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _step_forward(dtype: np.dtype, vectors: int) -> Any:
    """Take all sequences through a single step, for some of the hidden units.

    pointers: B, I, H, x (B, I), h, c (B, H), W_ih, W_hh, bias_ih, bias_hh (4H,), gates (B, 4H), h_next, c_next (B, H),
    scratch, scratch bytes per task, tasks
    """
    item, width = dtype.itemsize, vectors * lanes(dtype)
    pack, turn_block, add = column_panels(dtype, vectors), turn(dtype), add_product(dtype, vectors, BY_ROWS)
    fill = traced(fill_rows, dtype, lanes(dtype))
    gates_forward = traced(_gates_forward, dtype, GATE_BYTES // item)

    def kernel(block, pointers):
        batch, inputs, hidden, x, h, c = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        weight_ih, weight_hh, bias_ih, bias_hh = pointers[6], pointers[7], pointers[8], pointers[9]
        gates, h_next, c_next, tasks = pointers[10], pointers[11], pointers[12], pointers[15]
        panels = (batch + width - 1) // width
        columns = panels * width
        x_panels = pointers[13] + block * pointers[14]
        h_panels = x_panels + columns * inputs * item
        sums = h_panels + columns * hidden * item
        pack(x, batch, inputs, x_panels)
        pack(h, batch, hidden, h_panels)
        chunks = (hidden + UNITS - 1) // UNITS
        for chunk in range(chunks * block // tasks, chunks * (block + 1) // tasks):
            unit = chunk * UNITS
            units = min(UNITS, hidden - unit)
            for gate in range(4):
                row = gate * hidden + unit
                fill(sums, columns * item, bias_ih + row * item, bias_hh + row * item, units, columns)
                a, stride = weight_ih + row * inputs * item, inputs * item
                add(a, stride, units, x_panels, inputs, panels, sums, columns * item, inputs)
                a, stride = weight_hh + row * hidden * item, hidden * item
                add(a, stride, units, h_panels, hidden, panels, sums, columns * item, hidden)
                turn_block(sums, columns * item, units, batch, gates + row * item, 4 * hidden * item)
            for b in range(batch):
                at = (b * hidden + unit) * item
                gates_forward(gates + (b * 4 * hidden + unit) * item, c + at, c_next + at, h_next + at, hidden, units)

    return kernel


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _step_backward(dtype: np.dtype, vectors: int) -> Any:
    """Take all sequences back through the gates of a single step and to the weights, for some of the hidden units.

    pointers: B, I, H, x (B, I), h, c (B, H), gates (B, 4H), dh_next or 0, dh (B, H) of zeros, dc (B, H) in/out, zeros
    (I or H,), dgates (B, 4H) out, panels of dgates^T out, dweight_ih, dweight_hh, dbias (4H,) or 0, scratch, scratch
    bytes per task, tasks
    """
    item, width, strip = dtype.itemsize, vectors * lanes(dtype), panel_columns(dtype)
    pack, turn_block, write = row_panels(dtype), turn(dtype, vectors), weight_rows(dtype, vectors)
    gates_backward = traced(_gates_backward, dtype, GATE_BYTES // item)
    add_up = traced(sum_batch, dtype, lanes(dtype))

    def kernel(block, pointers):
        batch, inputs, hidden, x, h, c = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        gates, dy, dh, dc, zeros = pointers[6], pointers[7], pointers[8], pointers[9], pointers[10]
        dgates, panels, dbias, tasks = pointers[11], pointers[12], pointers[15], pointers[18]
        rows = 4 * hidden
        x_panels = pointers[16] + block * pointers[17]
        h_panels = x_panels + (inputs + strip - 1) // strip * strip * batch * item
        pack(x, batch, inputs, x_panels)
        pack(h, batch, hidden, h_panels)
        chunks = (hidden + UNITS - 1) // UNITS
        for chunk in range(chunks * block // tasks, chunks * (block + 1) // tasks):
            unit = chunk * UNITS
            units = min(UNITS, hidden - unit)
            for b in range(batch):
                at = (b * hidden + unit) * item
                at4 = (b * 4 * hidden + unit) * item
                upstream = dy + at if dy != 0 else zeros
                gates_backward(gates + at4, c + at, upstream, dh + at, dc + at, dgates + at4, hidden, units)
            for gate in range(4):
                row = gate * hidden + unit
                for first in range(0, batch, width):
                    turn_block(
                        dgates + (first * rows + row) * item, rows * item, min(width, batch - first), units,
                        panels + (first * rows + row * width) * item, width * item,
                    )  # fmt: skip
                write(panels, rows, row, units, x_panels, batch, inputs, pointers[13] + row * inputs * item, zeros)
                write(panels, rows, row, units, h_panels, batch, hidden, pointers[14] + row * hidden * item, zeros)
                if dbias != 0:
                    add_up(dgates + row * item, rows * item, batch, dbias + row * item, units)

    return kernel


@dataclass
class Step:
    """What backward needs of a single step; x and the weights are the caller's own arrays."""

    x: Array  # (B, I)
    h: Array  # (B, H)
    c: Array  # (B, H)
    weight_ih: Array
    weight_hh: Array
    has_bias: bool
    gates: Array  # (B, 4H): i, f, g, o


def _forward_step(
    x: Array, h: Array, c: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None
) -> tuple[Array, Array, Step]:
    """Return h_next, c_next (B, H) and what backward needs; x is (B, I)."""
    (batch, inputs), hidden, dtype = x.shape, weight_hh.shape[1], x.dtype
    tasks = step_tasks(batch, inputs, hidden)
    vectors = batch_vectors(batch, dtype)
    columns = padded_batch(batch, dtype)
    scratch = Scratch(tasks, columns * (inputs + hidden + UNITS), dtype)
    gates, h_next, c_next = empty((batch, 4 * hidden), dtype), empty(h.shape, dtype), empty(h.shape, dtype)
    h, c = h.copy(), c.copy()
    has_bias = bias_ih is not None or bias_hh is not None
    if bias_ih is None or bias_hh is None:
        without = zeros(4 * hidden, dtype)
        bias_ih, bias_hh = without if bias_ih is None else bias_ih, without if bias_hh is None else bias_hh
    pointers = (
        batch, inputs, hidden, x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, gates, h_next, c_next, scratch.array,
        scratch.bytes, tasks,
    )  # fmt: skip
    runtime.run(_step_forward(dtype, vectors), tasks, pointers)
    return h_next, c_next, Step(x, h, c, weight_ih, weight_hh, has_bias, gates)


def _backward_step(
    dh_next: Array | None, dc_next: Array | None, saved: Step
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (B, I), dh, dc (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    (batch, inputs), hidden, dtype = saved.x.shape, saved.h.shape[1], saved.x.dtype
    tasks = step_tasks(batch, inputs, hidden)
    vectors = batch_vectors(batch, dtype)
    scratch = Scratch(tasks, batch * (padded_columns(inputs, dtype) + padded_columns(hidden, dtype)), dtype)
    dh = np.zeros((batch, hidden), dtype)
    dc = np.zeros((batch, hidden), dtype) if dc_next is None else dc_next.copy()
    dx = empty(saved.x.shape, dtype)
    dweight_ih, dweight_hh = empty((4 * hidden, inputs), dtype), empty((4 * hidden, hidden), dtype)
    dbias = np.empty(4 * hidden, dtype) if saved.has_bias else None
    dgates, panels = empty(saved.gates.shape, dtype), empty(4 * hidden * padded_batch(batch, dtype), dtype)
    pointers = (
        batch, inputs, hidden, saved.x, saved.h, saved.c, saved.gates, dh_next, dh, dc,
        zeros(max(inputs, hidden), dtype), dgates, panels, dweight_ih, dweight_hh, dbias, scratch.array, scratch.bytes,
        tasks,
    )  # fmt: skip
    weights = saved.weight_ih, saved.weight_hh
    runtime.run_in_turn(
        (_step_backward(dtype, vectors), tasks, pointers, True),
        input_gradients(batch, panels, weights, (dx, dh), 4 * hidden, False, tasks),
    )
    return dx, dh, dc, dweight_ih, dweight_hh, dbias


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
        hn, cn, step = _forward_step(x[0], h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
        return hn[None].copy(), hn, cn, step
    x = zeroed_padding(x, lengths)
    biases = [b for b in (bias_ih, bias_hh) if b is not None]
    queue = runtime.Queue()
    gates = input_products(
        queue, masked_steps(x, mask_x(noise, x)), weight_ih, sum(biases[1:], biases[0]) if biases else None
    )
    h, c = (empty((steps + 1, batch, hidden), dtype) for _ in range(2))
    initial = steps if reverse else 0
    h[initial], c[initial] = h0, c0
    states = h[:-1] if reverse else h[1:]
    y = states if lengths is None else empty(states.shape, dtype)
    packed = pack(queue, weight_hh.T)
    tasks = tasks_for(batch)
    table = None if noise is None else Table(noise, h, tasks)
    pointers = (
        steps, batch, hidden, gates, h, c, packed, lengths, y, reverse, tasks, 0 if table is None else table.address,
    )  # fmt: skip
    if hidden:
        queue.launches.append((_forward(dtype, table is not None), tasks, pointers, True))
    queue.run()
    final = 0 if reverse else steps
    saved = Saved(x, weight_ih, weight_hh, bool(biases), lengths, reverse, gates, h, c, noise)
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
        dx, dh, dc, dweight_ih, dweight_hh, dbias = _backward_step(dhn, dcn, saved)
        dh, dc = clamped(dh, state_grad_clip), clamped(dc, state_grad_clip)
        return dx[None], dh, dc, dweight_ih, dweight_hh, dbias
    x, gates, noise = saved.x, saved.gates, saved.noise
    steps, batch, inputs = x.shape
    hidden, dtype = saved.weight_hh.shape[1], x.dtype
    dh, dc = (np.zeros((batch, hidden), dtype) if d is None else d.copy() for d in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    nothing = zeros(hidden, dtype)
    queue = runtime.Queue()
    packed = pack(queue, saved.weight_hh)
    tasks = tasks_for(batch)
    plain = noise is None and state_grad_clip is None
    table = None if plain else Table(noise, dh, tasks, state_grad_clip)
    pointers = (
        steps, batch, hidden, gates, saved.c, dy, dh, dc, dgates, packed, saved.lengths, nothing, saved.reverse, tasks,
        0 if table is None else table.address,
    )  # fmt: skip
    if hidden:
        queue.launches.append((_backward(dtype, table is not None), tasks, pointers, True))
    flat = dgates.reshape(steps * batch, 4 * hidden)
    dx = empty(x.shape, dtype)
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
