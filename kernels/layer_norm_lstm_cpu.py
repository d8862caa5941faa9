"""LSTM with layer normalisation over a sequence: see layer_norm_lstm_ref.py for the equations.

The products of x of all steps are one matrix product and one pass of layer_norm_cpu.py, and so are the gradients behind
them. The recurrent part is split by sequences as in lstm_cpu.py, and a row of a step is in the cache while it is
normalised. What is summed along a row is summed in double.

Back through a step the gradient of W_hh h is needed at once, for the step before; the gradients of the gains are sums
over all steps and sequences in a fixed order, and for those the pass of layer_norm_cpu.py goes over what the steps have
left, and finds the gradient of W_hh h of all steps again.

Flops: 8 T B H (I + H) forward, twice that backward. Saved for backward: gates, both products, c and y, 14 H numbers for
each step of each sequence.
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
    mask_h,
    mask_x,
    masked_steps,
    table_of,
)
from .layer_norm_cpu import Normalised, layer_norm, layer_norm_backward, means, statistics
from .layer_norm_lstm import Weights
from .matmul_cpu import matmul, pack, panel_columns, product, rows_by_panels, zeros
from .recurrent_cpu import GATE_BYTES, Array, copy_row, input_products, tasks_for, zero_row, zeroed_padding
from .simd import Machine, Value, traced

# Doubles kept of each step and sequence: mean and rstd of W_hh h, then of c'.
MEAN_H, RSTD_H, MEAN_C, RSTD_C = range(4)


# --- one step of one sequence


def _statistics(m: Machine, x: Value, columns: Value, eps: Value, mean_at: Value, rstd_at: Value) -> None:
    mean, rstd = statistics(m, x, columns, m.load_double(eps))
    m.store_double(mean_at, mean)
    m.store_double(rstd_at, rstd)


def _row(m: Machine, mean_at: Value, rstd_at: Value) -> Normalised:
    return Normalised(m, m.load_double(mean_at), m.load_double(rstd_at))


def _gates_forward(
    m: Machine,
    gates: Value,
    from_h: Value,
    gain_h: Value,
    mean_at: Value,
    rstd_at: Value,
    c: Value,
    c_next: Value,
    hidden: Value,
) -> None:
    """All gates, and c'.

    gates (4H,) in/out: LN of x with both biases, then i, f, g, o
    from_h (4H,): W_hh h, with its gain (4H,), mean and rstd;  c (H,);  c_next (H,) out
    """
    stride = hidden * m.dtype.itemsize
    xhat = _row(m, mean_at, rstd_at)

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        sums = [
            m.fma(xhat.of(m.load(from_h + place, mask)), m.load(gain_h + place, mask), m.load(gates + place, mask))
            for place in (stride * k + at for k in range(4))
        ]
        i, f, o = (vecmath.sigmoid(m, sums[k]) for k in (0, 1, 3))
        g = vecmath.tanh(m, sums[2])
        for k, gate in enumerate((i, f, g, o)):
            m.store(gates + stride * k + at, gate, mask)
        m.store(c_next + at, m.fma(f, m.load(c + at, mask), i * g), mask)

    m.over(0, hidden, body)


def _output(
    m: Machine,
    gates: Value,
    c: Value,
    gain: Value,
    bias: Value,
    mean_at: Value,
    rstd_at: Value,
    h_next: Value,
    hidden: Value,
) -> None:
    """h' of c' and o; h_next (H,) out."""
    output_gate = gates + hidden * (3 * m.dtype.itemsize)
    xhat = _row(m, mean_at, rstd_at)

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        scaled = m.fma(xhat.of(m.load(c + at, mask)), m.load(gain + at, mask), m.load(bias + at, mask))
        m.store(h_next + at, m.load(output_gate + at, mask) * vecmath.tanh(m, scaled), mask)

    m.over(0, hidden, body)


def _output_backward(
    m: Machine,
    gates: Value,
    c: Value,
    cells: Value,
    gain: Value,
    bias: Value,
    mean_at: Value,
    rstd_at: Value,
    dy: Value,
    dh: Value,
    dscaled: Value,
    dgates: Value,
    hidden: Value,
) -> None:
    """Back through h': the gradients of o's sum, and of LN(c').

    gates (4H,), c (H,): what forward left;  dh (H,) in/out: gradient of h' but for dy, then 0
    cells (H,) out: c';  dscaled (H,) out;  dgates (4H,) out: o
    """
    stride = hidden * m.dtype.itemsize
    xhat = _row(m, mean_at, rstd_at)

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        i, f, g, o = (m.load(gates + stride * k + at, mask) for k in range(4))
        cell = m.fma(f, m.load(c + at, mask), i * g)
        tanh_c = vecmath.tanh(m, m.fma(xhat.of(cell), m.load(gain + at, mask), m.load(bias + at, mask)))
        dh_all = m.load(dh + at, mask) + m.load(dy + at, mask)
        m.store(cells + at, cell, mask)
        m.store(dscaled + at, dh_all * o * m.fma(-tanh_c, tanh_c, m.full(1.0)), mask)
        m.store(dgates + stride * 3 + at, dh_all * tanh_c * (o * (1.0 - o)), mask)
        m.store(dh + at, m.zero(), mask)

    m.over(0, hidden, body)


def _cell_backward(
    m: Machine,
    gates: Value,
    c: Value,
    cells: Value,
    gain: Value,
    mean_at: Value,
    rstd_at: Value,
    dscaled: Value,
    dc: Value,
    dgates: Value,
    hidden: Value,
) -> None:
    """Back through LN(c') and c': dc (H,) in/out, gradient of c', then of c; dgates (4H,) out: i, f, g."""
    stride = hidden * m.dtype.itemsize
    xhat = _row(m, mean_at, rstd_at)

    def terms(index: Value, mask: Value | None) -> list[Value]:
        at = index * m.dtype.itemsize
        d = m.load(dscaled + at, mask) * m.load(gain + at, mask)
        return [d, d * xhat.of(m.load(cells + at, mask))]

    mean, along = means(m, hidden, terms)

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        i, f, g = (m.load(gates + stride * k + at, mask) for k in range(3))
        d = m.load(dscaled + at, mask) * m.load(gain + at, mask)
        through = m.fma(xhat.of(m.load(cells + at, mask)), -along, d - mean)
        dc_all = m.fma(through, xhat.rstd, m.load(dc + at, mask))
        m.store(dgates + at, dc_all * g * (i * (1.0 - i)), mask)
        m.store(dgates + stride + at, dc_all * m.load(c + at, mask) * (f * (1.0 - f)), mask)
        m.store(dgates + stride * 2 + at, dc_all * i * m.fma(-g, g, m.full(1.0)), mask)
        m.store(dc + at, dc_all * f, mask)

    m.over(0, hidden, body)


def _product_backward(
    m: Machine,
    dgates: Value,
    from_h: Value,
    gain: Value,
    mean_at: Value,
    rstd_at: Value,
    out: Value,
    columns: Value,
) -> None:
    """Back through LN(W_hh h): out (4H,)."""
    xhat = _row(m, mean_at, rstd_at)

    def terms(index: Value, mask: Value | None) -> list[Value]:
        at = index * m.dtype.itemsize
        d = m.load(dgates + at, mask) * m.load(gain + at, mask)
        return [d, d * xhat.of(m.load(from_h + at, mask))]

    mean, along = means(m, columns, terms)

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        d = m.load(dgates + at, mask) * m.load(gain + at, mask)
        m.store(out + at, m.fma(xhat.of(m.load(from_h + at, mask)), -along, d - mean) * xhat.rstd, mask)

    m.over(0, columns, body)


# --- kernels


@runtime.kernel
def _forward(dtype: np.dtype) -> Any:
    """Take some sequences through all steps.

    pointers: T, B, H, gates (T, B, 4H), h, c (T + 1, B, H), packed W_hh^T, lengths or 0, y (T, B, H) where there are
    lengths, reverse, tasks, table of what comes between steps, W_hh h (T, B, 4H) out, zeros (H or more,), statistics
    (4, T, B) out, eps, gain_hh, gain_c, bias_c. Slot t of h and c holds the state before step t, or after it in
    reverse.
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    normalise = traced(_statistics, dtype)
    gates_forward = traced(_gates_forward, dtype, GATE_BYTES // item)
    output = traced(_output, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, mask, mix = parts.start_zones, parts.draw_zones, parts.mask, parts.mix

    def kernel(block, pointers):
        steps, batch, hidden, gates, h, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]
        packed, lengths, y, reverse, tasks = pointers[6], pointers[7], pointers[8], pointers[9], pointers[10]
        table, products, zeros, stats = pointers[11], pointers[12], pointers[13], pointers[14]
        eps, gain_hh, gain_c, bias_c = pointers[15], pointers[16], pointers[17], pointers[18]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        rows = last - first
        row, row4, kind = hidden * item, 4 * hidden * item, steps * batch * 8
        panels = (4 * hidden + width - 1) // width
        z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
        z_c = z_h + rows * row
        masked = z_c + rows * row
        masks, zones = runtime.peek(table, MASK), runtime.peek(table, ZONES)
        start_zones(table, z_h, z_c, rows * hidden)
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = ((t + 1 if reverse else t) * batch + first) * row
            after = ((t if reverse else t + 1) * batch + first) * row
            at = t * batch + first
            step, product = gates + at * row4, products + at * row4
            draw_zones(table, z_h, z_c, at * hidden, rows * hidden)
            source = h + before
            if masks != 0:
                mask(source, masks + first * row, masked, rows * hidden)
                source = masked
            multiply(source, row, rows, packed, hidden, 0, panels, 4 * hidden, product, row4, zeros, 0, 0, hidden)
            for b in range(rows):
                own = stats + (at + b) * 8
                h_before, h_after = h + before + b * row, h + after + b * row
                c_before, c_after = c + before + b * row, c + after + b * row
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    copy(h_before, h_after, hidden)
                    copy(c_before, c_after, hidden)
                    zero(y + (at + b) * row, hidden)
                    continue
                mean_h, rstd_h = own + MEAN_H * kind, own + RSTD_H * kind
                mean_c, rstd_c = own + MEAN_C * kind, own + RSTD_C * kind
                normalise(product + b * row4, 4 * hidden, eps, mean_h, rstd_h)
                gates_forward(step + b * row4, product + b * row4, gain_hh, mean_h, rstd_h, c_before, c_after, hidden)
                normalise(c_after, hidden, eps, mean_c, rstd_c)
                output(step + b * row4, c_after, gain_c, bias_c, mean_c, rstd_c, h_after, hidden)
                if zones != 0:
                    mix(z_h + b * row, h_before, h_after, hidden)
                    mix(z_c + b * row, c_before, c_after, hidden)
                if lengths != 0:
                    copy(h_after, y + (at + b) * row, hidden)

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype) -> Any:
    """Take some sequences back through all steps.

    pointers: T, B, H, gates, c, dy or 0, dh, dc (B, H) in/out, dgates (T, B, 4H) out, packed W_hh, lengths or 0, zeros
    (H,), reverse, tasks, table of what comes between steps, W_hh h (T, B, 4H), c' (T, B, H) out, gradient of LN(c')
    (T, B, H) out, statistics (4, T, B), gain_hh, gain_c, bias_c, scratch for the gradient of W_hh h (B, 4H)
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    output_backward = traced(_output_backward, dtype, GATE_BYTES // item)
    cell_backward, product_backward = traced(_cell_backward, dtype), traced(_product_backward, dtype)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)
    parts = Parts(dtype)
    start_zones, draw_zones, split = parts.start_zones, parts.draw_zones, parts.split
    add, add_masked, clamp = parts.add, parts.add_masked, parts.clamp

    def kernel(block, pointers):
        steps, batch, hidden, gates, c, dy = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        packed, lengths, zeros, reverse, tasks = pointers[9], pointers[10], pointers[11], pointers[12], pointers[13]
        table, products, cells, dscaled, stats = (
            pointers[14], pointers[15], pointers[16], pointers[17], pointers[18],
        )  # fmt: skip
        gain_hh, gain_c, bias_c = pointers[19], pointers[20], pointers[21]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        rows = last - first
        row, row4, kind = hidden * item, 4 * hidden * item, steps * batch * 8
        panels = (hidden + width - 1) // width
        dh, dc, dproduct = pointers[6] + first * row, pointers[7] + first * row, pointers[22] + first * row4
        z_h = runtime.peek(table, SCRATCH) + block * runtime.peek(table, SCRATCH_BYTES)
        z_c = z_h + rows * row
        masked = z_c + rows * row
        kept_h = masked + rows * row
        kept_c = kept_h + rows * row
        masks, zones, bound = runtime.peek(table, MASK), runtime.peek(table, ZONES), runtime.peek(table, BOUND)
        start_zones(table, z_h, z_c, rows * hidden)
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            before = ((t + 1 if reverse else t) * batch + first) * row
            at = t * batch + first
            draw_zones(table, z_h, z_c, at * hidden, rows * hidden)
            for b in range(rows):
                own = stats + (at + b) * 8
                dstep, cell, scaled = pointers[8] + (at + b) * row4, cells + (at + b) * row, dscaled + (at + b) * row
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    zero(dstep, 4 * hidden)
                    zero(dproduct + b * row4, 4 * hidden)
                    zero(cell, hidden)
                    zero(scaled, hidden)
                    continue
                step, c_before = gates + (at + b) * row4, c + before + b * row
                dh_own, dc_own = dh + b * row, dc + b * row
                mean_h, rstd_h = own + MEAN_H * kind, own + RSTD_H * kind
                mean_c, rstd_c = own + MEAN_C * kind, own + RSTD_C * kind
                above = dy + (at + b) * row if dy != 0 else zeros
                if zones != 0:
                    split(z_h + b * row, dh_own, above, kept_h, hidden)
                    split(z_c + b * row, dc_own, zeros, kept_c, hidden)
                    above = zeros
                output_backward(
                    step, c_before, cell, gain_c, bias_c, mean_c, rstd_c, above, dh_own, scaled, dstep, hidden
                )
                cell_backward(step, c_before, cell, gain_c, mean_c, rstd_c, scaled, dc_own, dstep, hidden)
                product_backward(
                    dstep, products + (at + b) * row4, gain_hh, mean_h, rstd_h, dproduct + b * row4, 4 * hidden
                )
                if zones != 0:
                    copy(kept_h, dh_own, hidden)
                    add(kept_c, dc_own, hidden)
            into, start, start_row = dh, dh, row
            if masks != 0:
                into, start, start_row = masked, zeros, 0
            multiply(
                dproduct, row4, rows, packed, 4 * hidden, 0, panels, hidden, into, row, start, start_row, 0, 4 * hidden
            )
            if masks != 0:
                add_masked(masked, masks + first * row, dh, rows * hidden)
            if bound != 0:
                for b in range(rows):
                    if lengths == 0 or t < runtime.peek(lengths, first + b):
                        clamp(dh + b * row, hidden, bound)
                        clamp(dc + b * row, hidden, bound)

    return kernel


# --- a sequence


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
    stats: Array  # (4, T, B), float64
    gates: Array  # (T, B, 4H): i, f, g, o
    h: Array  # (T + 1, B, H), initial state first, or last in reverse
    c: Array  # (T + 1, B, H)


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
    steps, batch, _ = x.shape
    hidden, dtype = w.weight_hh.shape[1], x.dtype
    x = zeroed_padding(x, lengths)
    queue = runtime.Queue()
    from_x = input_products(queue, masked_steps(x, mask_x(noise, x)), w.weight_ih, None)
    queue.run()
    packed = pack(queue, w.weight_hh.T)
    gates, from_h = empty(from_x.shape, dtype), empty(from_x.shape, dtype)
    stats_x, stats = np.empty((2, steps * batch)), np.zeros((4, steps, batch))
    flat = steps * batch, 4 * hidden
    layer_norm(from_x.reshape(flat), w.gain_ih, w.bias_ih + w.bias_hh, eps, gates.reshape(flat), *stats_x)
    h, c = (empty((steps + 1, batch, hidden), dtype) for _ in range(2))
    initial = steps if reverse else 0
    h[initial], c[initial] = h0, c0
    states = h[:-1] if reverse else h[1:]
    y = states if lengths is None else empty(states.shape, dtype)
    tasks = tasks_for(batch)
    table = table_of(noise, h, tasks)
    pointers = (
        steps, batch, hidden, gates, h, c, packed, lengths, y, reverse, tasks, table, from_h,
        zeros(4 * hidden, dtype), stats, (eps,), w.gain_hh, w.gain_c, w.bias_c,
    )  # fmt: skip
    if hidden:
        queue.launches.append((_forward(dtype), tasks, pointers, True))
    queue.run()
    final = 0 if reverse else steps
    saved = Saved(x, w, lengths, reverse, noise, from_x, stats_x, from_h, stats, gates, h, c)
    return y, h[final].copy(), c[final].copy(), saved


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved, state_grad_clip: float | None = None
) -> tuple[Array, Array, Array, Weights]:
    """Return dx (T, B, I), dh0, dc0 (B, H) and the gradients of the weights."""
    x, w, noise, gates = saved.x, saved.weights, saved.noise, saved.gates
    steps, batch, inputs = x.shape
    hidden, dtype = w.weight_hh.shape[1], x.dtype
    dh, dc = (np.zeros((batch, hidden), dtype) if d is None else d.copy() for d in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    cells, dscaled = (empty((steps, batch, hidden), dtype) for _ in range(2))
    dproduct = empty((batch, 4 * hidden), dtype)
    queue = runtime.Queue()
    packed = pack(queue, w.weight_hh)
    tasks = tasks_for(batch)
    table = table_of(noise, dh, tasks, state_grad_clip)
    pointers = (
        steps, batch, hidden, gates, saved.c, dy, dh, dc, dgates, packed, saved.lengths, zeros(hidden, dtype),
        saved.reverse, tasks, table, saved.from_h, cells, dscaled, saved.stats, w.gain_hh, w.gain_c, w.bias_c,
        dproduct,
    )  # fmt: skip
    if hidden:
        queue.launches.append((_backward(dtype), tasks, pointers, True))
    queue.run()
    d = Weights(*(empty(a.shape, dtype) for a in w))
    rows, flat = (steps * batch, hidden), dgates.reshape(steps * batch, 4 * hidden)
    mean_h, rstd_h, mean_c, rstd_c = saved.stats.reshape(4, steps * batch)
    dscaled, cells = dscaled.reshape(rows), cells.reshape(rows)
    layer_norm_backward(dscaled, cells, w.gain_c, mean_c, rstd_c, dscaled, d.gain_c, d.bias_c)
    behind = empty(flat.shape, dtype)
    layer_norm_backward(flat, saved.from_h.reshape(flat.shape), w.gain_hh, mean_h, rstd_h, behind, d.gain_hh, d.bias_hh)
    before = masked_steps(saved.h[1:] if saved.reverse else saved.h[:-1], mask_h(noise, batch, hidden, dtype))
    matmul(behind.T, before.reshape(rows), d.weight_hh)
    from_x = saved.from_x.reshape(flat.shape)
    mean_x, rstd_x = saved.stats_x
    layer_norm_backward(flat, from_x, w.gain_ih, mean_x, rstd_x, behind, d.gain_ih, d.bias_ih)
    m_x, dx = mask_x(noise, x), empty(x.shape, dtype)
    product(queue, behind, w.weight_ih, dx.reshape(steps * batch, inputs))
    product(queue, behind.T, masked_steps(x, m_x).reshape(steps * batch, inputs), d.weight_ih)
    queue.run()
    masked_steps(dx, m_x, out=dx)
    return dx, dh, dc, d
