"""A single step of the LSTM, of whole length, and what the gates compute in every step: see lstm_cpu.py.

It goes by hidden units and not by sequences, see cell_cpu.py. Flops: 8 B H (I + H) forward, twice that backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime, vecmath
from .cell_cpu import (
    UNITS,
    add_product,
    column_panels,
    fill_rows,
    input_gradients,
    row_panels,
    step_plan,
    sum_batch,
    turn,
    weight_rows,
)
from .matmul_cpu import BY_ROWS, VECTORS, lanes, panel_columns, zeros
from .recurrent_cpu import GATE_BYTES, Array
from .simd import Machine, Value, traced


def gate_values(m: Machine, gates: Value, c: Value, c_next: Value, h_next: Value, hidden: Value, units: Value) -> None:
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


def gate_gradients(
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


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _step_forward(dtype: np.dtype, vectors: int) -> Any:
    """Take all sequences through a single step, for some of the hidden units.

    pointers: B, I, H, x (B, I), h, c (B, H), W_ih, W_hh, bias_ih, bias_hh (4H,), gates (B, 4H), h_next, c_next (B, H),
    scratch, scratch bytes per task, tasks
    """
    item, width = dtype.itemsize, vectors * lanes(dtype)
    pack, turn_block, add = column_panels(dtype, vectors), turn(dtype), add_product(dtype, vectors, BY_ROWS)
    fill = traced(fill_rows, dtype, lanes(dtype))
    gates_forward = traced(gate_values, dtype, GATE_BYTES // item)

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
    gates_backward = traced(gate_gradients, dtype, GATE_BYTES // item)
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


@dataclass(slots=True)
class Step:
    """What backward needs of a single step; x and the weights are the caller's own arrays."""

    x: Array  # (B, I)
    h: Array  # (B, H)
    c: Array  # (B, H)
    weight_ih: Array
    weight_hh: Array
    has_bias: bool
    gates: Array  # (B, 4H): i, f, g, o


def forward(
    x: Array, h: Array, c: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None
) -> tuple[Array, Array, Step]:
    """Return h_next, c_next (B, H) and what backward needs; x is (B, I)."""
    (batch, inputs), hidden, dtype = x.shape, weight_hh.shape[1], x.dtype
    plan = step_plan(batch, inputs, hidden, dtype, runtime.num_threads())
    scratch = empty(plan.forward_size, np.float64)
    gates, h_next, c_next = empty((batch, 4 * hidden), dtype), empty(h.shape, dtype), empty(h.shape, dtype)
    h, c = h.copy(), c.copy()
    has_bias = bias_ih is not None or bias_hh is not None
    if bias_ih is None or bias_hh is None:
        without = zeros(4 * hidden, dtype)
        bias_ih, bias_hh = without if bias_ih is None else bias_ih, without if bias_hh is None else bias_hh
    pointers = (
        batch, inputs, hidden, x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, gates, h_next, c_next, scratch,
        plan.forward_bytes, plan.tasks,
    )  # fmt: skip
    runtime.run(_step_forward(dtype, plan.vectors), plan.tasks, pointers)
    return h_next, c_next, Step(x, h, c, weight_ih, weight_hh, has_bias, gates)


def backward(
    dh_next: Array | None, dc_next: Array | None, saved: Step
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return dx (B, I), dh, dc (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias (4H,) or None."""
    (batch, inputs), hidden, dtype = saved.x.shape, saved.h.shape[1], saved.x.dtype
    plan = step_plan(batch, inputs, hidden, dtype, runtime.num_threads())
    memory = empty(plan.backward_size, np.float64)  # alive until the kernels have run
    scratch = runtime.address(memory)
    dh = np.zeros((batch, hidden), dtype)
    dc = np.zeros((batch, hidden), dtype) if dc_next is None else dc_next.copy()
    dx = empty(saved.x.shape, dtype)
    dweight_ih, dweight_hh = empty((4 * hidden, inputs), dtype), empty((4 * hidden, hidden), dtype)
    dbias = np.empty(4 * hidden, dtype) if saved.has_bias else None
    nothing = zeros(max(inputs, hidden), dtype)
    pointers = (
        batch, inputs, hidden, saved.x, saved.h, saved.c, saved.gates, dh_next, dh, dc, nothing, scratch + plan.dz_at,
        scratch + plan.panels_at, dweight_ih, dweight_hh, dbias, scratch, plan.backward_bytes, plan.tasks,
    )  # fmt: skip
    weights = saved.weight_ih, saved.weight_hh
    runtime.run_in_turn(
        (_step_backward(dtype, plan.vectors), plan.tasks, pointers, True),
        input_gradients(plan, batch, scratch, weights, (dx, dh), 4 * hidden, False),
    )
    return dx, dh, dc, dweight_ih, dweight_hh, dbias
