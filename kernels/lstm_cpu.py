"""LSTM over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000), gates i, f, g, o.

    i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same)
    c' = f c + i g,   h' = o tanh(c')

Dimensions: T time, B batch, I input, H hidden. A step at t >= length leaves the state as it is, gives y = 0 and does
not read x.

The input products of all steps are one matrix product, and so is each weight gradient. The recurrent part is split by
sequences of the batch, not by columns: a thread takes its sequences through all steps, so that threads never wait for
each other, and W_hh is packed once for all steps. What is computed for a sequence is the same on whichever thread.

Flops: 8 T B H (I + H) forward, twice that backward. Saved for backward: gates, c and y, 6 H numbers for each step of
each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime, vecmath
from .linear_cpu import column_sums
from .matmul_cpu import matmul, pack, panel_columns, rows_by_panels
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


def _gates_forward(m: Machine, gates: Value, c: Value, c_next: Value, h_next: Value, hidden: Value) -> None:
    """One step of one sequence.

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

    m.over(0, hidden, body)


def _gates_backward(
    m: Machine, gates: Value, c: Value, c_next: Value, dy: Value, dh: Value, dc: Value, dgates: Value, hidden: Value
) -> None:
    """One step of one sequence.

    gates (4H,), c, c_next (H,): what forward left
    dy (H,)
    dh (H,) in/out: gradient of h' from the next step, then 0, for the product to add to
    dc (H,) in/out: gradient of c', then of c;  dgates (4H,) out
    """
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        i, f, g, o = (m.load(gates + stride * k + at, mask) for k in range(4))
        tanh_c = vecmath.tanh(m, m.load(c_next + at, mask))
        dh_all = m.load(dh + at, mask) + m.load(dy + at, mask)
        dc_all = m.fma(dh_all * o, m.fma(-tanh_c, tanh_c, m.full(1.0)), m.load(dc + at, mask))
        outputs = (
            dc_all * g * (i * (1.0 - i)),
            dc_all * m.load(c + at, mask) * (f * (1.0 - f)),
            dc_all * i * m.fma(-g, g, m.full(1.0)),
            dh_all * tanh_c * (o * (1.0 - o)),
        )
        for k, value in enumerate(outputs):
            m.store(dgates + stride * k + at, value, mask)
        m.store(dc + at, dc_all * f, mask)
        m.store(dh + at, m.zero(), mask)

    m.over(0, hidden, body)


@runtime.kernel
def _forward(dtype: np.dtype) -> Any:
    """Take some sequences through all steps.

    pointers: T, B, H, gates (T, B, 4H), h (T + 1, B, H), c (T + 1, B, H), packed W_hh^T, lengths or 0, y (T, B, H)
    where there are lengths, reverse, tasks. Slot t of h and c holds the state before step t, or after it in reverse.
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_forward = traced(_gates_forward, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)

    def kernel(block, pointers):
        steps, batch, hidden, gates, h, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]
        packed, lengths, y, reverse, tasks = pointers[6], pointers[7], pointers[8], pointers[9], pointers[10]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        row, row4 = hidden * item, 4 * hidden * item
        panels = (4 * hidden + width - 1) // width
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = ((t + 1 if reverse else t) * batch + first) * row
            after = ((t if reverse else t + 1) * batch + first) * row
            step = gates + (t * batch + first) * row4
            multiply(
                h + before, row, last - first, packed, hidden, 0, panels, 4 * hidden, step, row4, step, row4, 0, hidden
            )
            for b in range(last - first):
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    copy(h + before + b * row, h + after + b * row, hidden)
                    copy(c + before + b * row, c + after + b * row, hidden)
                    zero(y + (t * batch + first + b) * row, hidden)
                    continue
                gates_forward(step + b * row4, c + before + b * row, c + after + b * row, h + after + b * row, hidden)
                if lengths != 0:
                    copy(h + after + b * row, y + (t * batch + first + b) * row, hidden)

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype) -> Any:
    """Take some sequences back through all steps.

    pointers: T, B, H, gates, c, dy or 0, dh (B, H) in/out, dc (B, H) in/out, dgates (T, B, 4H) out, packed W_hh,
    lengths or 0, zeros (H,), reverse, tasks
    """
    item = dtype.itemsize
    width = panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_backward = traced(_gates_backward, dtype, GATE_BYTES // item)
    zero = traced(zero_row, dtype)

    def kernel(block, pointers):
        steps, batch, hidden, gates, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4]
        dy = pointers[5]
        packed, lengths, zeros, reverse, tasks = pointers[9], pointers[10], pointers[11], pointers[12], pointers[13]
        first, last = batch * block // tasks, batch * (block + 1) // tasks
        row, row4 = hidden * item, 4 * hidden * item
        panels = (hidden + width - 1) // width
        dh, dc = pointers[6] + first * row, pointers[7] + first * row
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            before = ((t + 1 if reverse else t) * batch + first) * row
            after = ((t if reverse else t + 1) * batch + first) * row
            step = gates + (t * batch + first) * row4
            dstep = pointers[8] + (t * batch + first) * row4
            for b in range(last - first):
                if lengths != 0 and t >= runtime.peek(lengths, first + b):
                    zero(dstep + b * row4, 4 * hidden)
                    continue
                gates_backward(
                    step + b * row4,
                    c + before + b * row,
                    c + after + b * row,
                    dy + (t * batch + first + b) * row if dy != 0 else zeros,
                    dh + b * row,
                    dc + b * row,
                    dstep + b * row4,
                    hidden,
                )
            multiply(dstep, row4, last - first, packed, 4 * hidden, 0, panels, hidden, dh, row, dh, row, 0, 4 * hidden)

    return kernel


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
    steps, batch, _ = x.shape
    hidden, dtype = weight_hh.shape[1], x.dtype
    x = zeroed_padding(x, lengths)
    biases = [b for b in (bias_ih, bias_hh) if b is not None]
    gates = input_products(x, weight_ih, sum(biases[1:], biases[0]) if biases else None)
    h, c = (empty((steps + 1, batch, hidden), dtype) for _ in range(2))
    initial = steps if reverse else 0
    h[initial], c[initial] = h0, c0
    states = h[:-1] if reverse else h[1:]
    y = states if lengths is None else empty(states.shape, dtype)
    packed = pack(weight_hh.T)
    tasks = tasks_for(batch)
    pointers = np.array(
        [
            steps, batch, hidden, *map(runtime.address, (gates, h, c, packed)),
            0 if lengths is None else runtime.address(lengths), runtime.address(y), reverse, tasks,
        ],
        np.int64,
    )  # fmt: skip
    if hidden:
        runtime.run(_forward(dtype), tasks, pointers)
    final = 0 if reverse else steps
    saved = Saved(x, weight_ih, weight_hh, bool(biases), lengths, reverse, gates, h, c)
    return y, h[final].copy(), c[final].copy(), saved


def backward(
    dy: Array | None, dhn: Array | None, dcn: Array | None, saved: Saved
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    x, gates = saved.x, saved.gates
    steps, batch, inputs = x.shape
    hidden, dtype = saved.weight_hh.shape[1], x.dtype
    dh, dc = (np.zeros((batch, hidden), dtype) if d is None else d.copy() for d in (dhn, dcn))
    dgates = empty(gates.shape, dtype)
    zeros = np.zeros(hidden, dtype)
    packed = pack(saved.weight_hh)
    tasks = tasks_for(batch)
    pointers = np.array(
        [
            steps, batch, hidden, runtime.address(gates), runtime.address(saved.c),
            0 if dy is None else runtime.address(dy), *map(runtime.address, (dh, dc, dgates, packed)),
            0 if saved.lengths is None else runtime.address(saved.lengths), runtime.address(zeros),
            saved.reverse, tasks,
        ],
        np.int64,
    )  # fmt: skip
    if hidden:
        runtime.run(_backward(dtype), tasks, pointers)
    flat = dgates.reshape(steps * batch, 4 * hidden)
    dx = empty(x.shape, dtype)
    matmul(flat, saved.weight_ih, dx.reshape(steps * batch, inputs))
    dweight_ih, dweight_hh = empty(saved.weight_ih.shape, dtype), empty(saved.weight_hh.shape, dtype)
    weight_gradients(flat, [x, saved.h[1:] if saved.reverse else saved.h[:-1]], [dweight_ih, dweight_hh])
    dbias = None
    if saved.has_bias:
        dbias = np.empty(4 * hidden, dtype)
        column_sums(flat, dbias)
    return dx, dh, dc, dweight_ih, dweight_hh, dbias
