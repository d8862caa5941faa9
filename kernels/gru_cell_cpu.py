"""A single step of the GRU with reset_after, and what its gates compute in every step: see gru_cpu.py.

It goes by hidden units and not by sequences, see cell_cpu.py. Flops: 6 B H (I + H) forward, twice that backward.
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

# --- gates (3H,) in/out, sums, then r, z, n;  inner (H,), h (H,), h_next (H,) out; for `units` of the hidden units
#     of one sequence, to the first of which all addresses point


def gate_values(m: Machine, gates: Value, inner: Value, h: Value, h_next: Value, hidden: Value, units: Value) -> None:
    """All gates, with reset_after; inner holds W_hn h + b_hn."""
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        cells = [gates + stride * k + at for k in range(3)]
        r, z = (vecmath.sigmoid(m, m.load(cells[k], mask)) for k in (0, 1))
        n = vecmath.tanh(m, m.fma(r, m.load(inner + at, mask), m.load(cells[2], mask)))
        for cell, gate in zip(cells, (r, z, n), strict=True):
            m.store(cell, gate, mask)
        m.store(h_next + at, m.fma(z, m.load(h + at, mask), (1.0 - z) * n), mask)

    m.over(0, units, body)


# --- dh (H,) in/out, gradient of h', then the part of h's that no product gives;  dgates (3H,) out: gradients of the
#     sums of x;  dinner (H,)


def candidate_gradients(
    m: Machine, gates: Value, h: Value, dy: Value, dh: Value, at: Value, stride: Value, mask: Value | None
) -> tuple[Value, Value, Value]:
    """Return the gradient of h' times z, and those of the sums of z and n."""
    z, n = (m.load(gates + stride * k + at, mask) for k in (1, 2))
    dh_all = m.load(dh + at, mask) + m.load(dy + at, mask)
    rest = 1.0 - z
    return (
        dh_all * z,
        dh_all * (m.load(h + at, mask) - n) * (z * rest),
        dh_all * rest * m.fma(-n, n, m.full(1.0)),
    )


def gate_gradients(
    m: Machine,
    gates: Value,
    inner: Value,
    h: Value,
    dy: Value,
    dh: Value,
    dgates: Value,
    dinner: Value,
    hidden: Value,
    units: Value,
) -> None:
    """All gates, with reset_after; dinner out: gradient of W_hn h + b_hn."""
    stride = hidden * m.dtype.itemsize

    def body(index: Value, mask: Value | None) -> None:
        at = index * m.dtype.itemsize
        kept, dz, dn = candidate_gradients(m, gates, h, dy, dh, at, stride, mask)
        r = m.load(gates + at, mask)
        m.store(dh + at, kept, mask)
        m.store(dgates + at, dn * m.load(inner + at, mask) * (r * (1.0 - r)), mask)
        m.store(dgates + stride + at, dz, mask)
        m.store(dgates + stride * 2 + at, dn, mask)
        m.store(dinner + at, dn * r, mask)

    m.over(0, units, body)


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _step_forward(dtype: np.dtype, vectors: int) -> Any:
    """Take all sequences through a single step, for some of the hidden units.

    pointers: B, I, H, x (B, I), h (B, H), W_ih, W_hh, bias_ih, bias_hh (3H,), zeros (H,), gates (B, 3H), inner, h_next
    (B, H), scratch, scratch bytes per task, tasks
    """
    item, width = dtype.itemsize, vectors * lanes(dtype)
    pack, turn_block, add = column_panels(dtype, vectors), turn(dtype), add_product(dtype, vectors, BY_ROWS)
    fill = traced(fill_rows, dtype, lanes(dtype))
    gates_after = traced(gate_values, dtype, GATE_BYTES // item)

    def kernel(block, pointers):
        batch, inputs, hidden, x, h = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4]
        weight_ih, weight_hh, bias_ih, bias_hh = pointers[5], pointers[6], pointers[7], pointers[8]
        zeros, gates, inner, h_next, tasks = pointers[9], pointers[10], pointers[11], pointers[12], pointers[15]
        panels = (batch + width - 1) // width
        columns = panels * width
        stride = columns * item
        x_panels = pointers[13] + block * pointers[14]
        h_panels = x_panels + inputs * stride
        sums = h_panels + hidden * stride
        pack(x, batch, inputs, x_panels)
        pack(h, batch, hidden, h_panels)
        chunks = (hidden + UNITS - 1) // UNITS
        for chunk in range(chunks * block // tasks, chunks * (block + 1) // tasks):
            unit = chunk * UNITS
            units = min(UNITS, hidden - unit)
            for gate in range(3):
                row = gate * hidden + unit
                candidate = gate == 2  # the two products of n stay apart
                a, b = weight_ih + row * inputs * item, weight_hh + row * hidden * item
                fill(sums, stride, bias_ih + row * item, zeros if candidate else bias_hh + row * item, units, columns)
                add(a, inputs * item, units, x_panels, inputs, panels, sums, stride, inputs)
                if candidate:
                    turn_block(sums, stride, units, batch, gates + row * item, 3 * hidden * item)
                    fill(sums, stride, bias_hh + row * item, zeros, units, columns)
                add(b, hidden * item, units, h_panels, hidden, panels, sums, stride, hidden)
                if candidate:
                    turn_block(sums, stride, units, batch, inner + unit * item, hidden * item)
                else:
                    turn_block(sums, stride, units, batch, gates + row * item, 3 * hidden * item)
            for b in range(batch):
                at = (b * hidden + unit) * item
                at3 = (b * 3 * hidden + unit) * item
                gates_after(gates + at3, inner + at, h + at, h_next + at, hidden, units)

    return kernel


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _step_backward(dtype: np.dtype, vectors: int) -> Any:
    """Take all sequences back through the gates of a single step and to the weights, for some of the hidden units.

    pointers: B, I, H, x (B, I), h (B, H), gates (B, 3H), inner (B, H), dh_next or 0, dh (B, H) of zeros, zeros (I or
    H,), dgates (B, 3H) out, dinner (B, H) out, panels of both transposed (4H, B) out, dweight_ih, dweight_hh, dbias
    (2, 3H) or 0, scratch, scratch bytes per task, tasks
    """
    item, width, strip = dtype.itemsize, vectors * lanes(dtype), panel_columns(dtype)
    pack, turn_block, write = row_panels(dtype), turn(dtype, vectors), weight_rows(dtype, vectors)
    gates_after_backward = traced(gate_gradients, dtype, GATE_BYTES // item)
    add_up = traced(sum_batch, dtype, lanes(dtype))

    def kernel(block, pointers):
        batch, inputs, hidden, x, h, gates = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        inner, dy, dh, zeros, dgates, dinner = (
            pointers[6], pointers[7], pointers[8], pointers[9], pointers[10], pointers[11],
        )  # fmt: skip
        panels, dbias, tasks = pointers[12], pointers[15], pointers[18]
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
                at3 = (b * 3 * hidden + unit) * item
                gates_after_backward(
                    gates + at3, inner + at, h + at, dy + at if dy != 0 else zeros, dh + at,
                    dgates + at3, dinner + at, hidden, units,
                )  # fmt: skip
            for gate in range(4):
                row = gate * hidden + unit
                source, stride = dgates + row * item, 3 * hidden * item
                if gate == 3:
                    source, stride = dinner + unit * item, hidden * item
                for first in range(0, batch, width):
                    turn_block(
                        source + first * stride, stride, min(width, batch - first), units,
                        panels + (first * rows + row * width) * item, width * item,
                    )  # fmt: skip
                if gate < 3:
                    out = pointers[13] + row * inputs * item
                    write(panels, rows, row, units, x_panels, batch, inputs, out, zeros)
                    if dbias != 0:
                        add_up(source, stride, batch, dbias + row * item, units)
                if gate != 2:
                    out_row = row - hidden if gate == 3 else row
                    out = pointers[14] + out_row * hidden * item
                    write(panels, rows, row, units, h_panels, batch, hidden, out, zeros)
                    if dbias != 0:
                        add_up(source, stride, batch, dbias + (3 * hidden + out_row) * item, units)

    return kernel


@dataclass(slots=True)
class Step:
    """What backward needs of a single step; x and the weights are the caller's own arrays."""

    x: Array  # (B, I)
    h: Array  # (B, H)
    weight_ih: Array
    weight_hh: Array
    has_bias_ih: bool
    has_bias_hh: bool
    gates: Array  # (B, 3H): r, z, n
    inner: Array  # (B, H): W_hn h + b_hn


def forward(
    x: Array, h: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None
) -> tuple[Array, Step]:
    """Return h_next (B, H) and what backward needs; x is (B, I)."""
    (batch, inputs), hidden, dtype = x.shape, weight_hh.shape[1], x.dtype
    plan = step_plan(batch, inputs, hidden, dtype, runtime.num_threads())
    scratch = empty(plan.forward_size, np.float64)
    gates, inner, h_next = empty((batch, 3 * hidden), dtype), empty(h.shape, dtype), empty(h.shape, dtype)
    h = h.copy()
    without = zeros(3 * hidden, dtype)
    biases = without if bias_ih is None else bias_ih, without if bias_hh is None else bias_hh
    pointers = (
        batch, inputs, hidden, x, h, weight_ih, weight_hh, *biases, without, gates, inner, h_next, scratch,
        plan.forward_bytes, plan.tasks,
    )  # fmt: skip
    runtime.run(_step_forward(dtype, plan.vectors), plan.tasks, pointers)
    return h_next, Step(x, h, weight_ih, weight_hh, bias_ih is not None, bias_hh is not None, gates, inner)


def backward(dh_next: Array | None, saved: Step) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """Return dx (B, I), dh (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih and dbias_hh (3H,) or None."""
    (batch, inputs), hidden, dtype = saved.x.shape, saved.h.shape[1], saved.x.dtype
    plan = step_plan(batch, inputs, hidden, dtype, runtime.num_threads())
    memory = empty(plan.backward_size, np.float64)  # alive until the kernels have run
    scratch = runtime.address(memory)
    dh = np.zeros((batch, hidden), dtype)
    dx = empty(saved.x.shape, dtype)
    dweight_ih, dweight_hh = empty((3 * hidden, inputs), dtype), empty((3 * hidden, hidden), dtype)
    dbias = np.empty((2, 3 * hidden), dtype)
    dgates = scratch + plan.dz_at
    dinner = dgates + 3 * hidden * batch * dtype.itemsize
    nothing = zeros(max(inputs, hidden), dtype)
    pointers = (
        batch, inputs, hidden, saved.x, saved.h, saved.gates, saved.inner, dh_next, dh, nothing, dgates, dinner,
        scratch + plan.panels_at, dweight_ih, dweight_hh, dbias if saved.has_bias_ih or saved.has_bias_hh else None,
        scratch, plan.backward_bytes, plan.tasks,
    )  # fmt: skip
    weights = saved.weight_ih, saved.weight_hh
    runtime.run_in_turn(
        (_step_backward(dtype, plan.vectors), plan.tasks, pointers, True),
        input_gradients(plan, batch, scratch, weights, (dx, dh), 2 * hidden, True),
    )
    return (
        dx,
        dh,
        dweight_ih,
        dweight_hh,
        dbias[0] if saved.has_bias_ih else None,
        dbias[1] if saved.has_bias_hh else None,
    )
