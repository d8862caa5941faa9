"""The GRU with reset_after over a sequence for fewer sequences than threads: see lstm_units_cpu.py and gru_cpu.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .gru_cell_cpu import gate_gradients, gate_values
from .matmul_cpu import panel_columns, rows_by_panels
from .meeting import meet
from .recurrent_cpu import GATE_BYTES, copy_row, own_units, zero_row
from .simd import traced


@runtime.kernel
def forward(dtype: np.dtype) -> Any:
    """Take some hidden units through all steps.

    pointers: T, B, H, gates (T, B, 3H), inner (T, B, H), h (T + 1, B, H), packed W_hh^T of r, z and n, bias of W_hn h
    (H,), lengths or 0, y (T, B, H) where there are lengths, reverse, parts, flags. Slot t of h holds the state before
    step t, or after it in reverse.
    """
    item, width = dtype.itemsize, panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_after = traced(gate_values, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)

    def kernel(place, pointers):
        steps, batch, hidden, gates, inner, h = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        bias, lengths, y, reverse, flags = pointers[9], pointers[10], pointers[11], pointers[12], pointers[14]
        member, members, first, panels, unit, units = own_units(place, pointers[13], hidden, width)
        if member >= members:
            return
        row, row3 = hidden * item, 3 * hidden * item
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = h + (t + 1 if reverse else t) * batch * row
            after = h + (t if reverse else t + 1) * batch * row
            g, w = gates + t * batch * row3, inner + t * batch * row
            for gate in range(2):
                sums = g + gate * row
                multiply(
                    before, row, batch, pointers[6 + gate], hidden, first, panels, hidden, sums, row3,
                    sums, row3, 0, hidden,
                )  # fmt: skip
            multiply(before, row, batch, pointers[8], hidden, first, panels, hidden, w, row, bias, 0, 0, hidden)
            for b in range(batch):
                at = b * row + unit * item
                if lengths != 0 and t >= runtime.peek(lengths, b):
                    copy(before + at, after + at, units)
                    zero(y + t * batch * row + at, units)
                    continue
                gates_after(g + b * row3 + unit * item, w + at, before + at, after + at, hidden, units)
                if lengths != 0:
                    copy(after + at, y + t * batch * row + at, units)
            meet(flags, member, members, s + 1)

    return kernel


@runtime.kernel
def backward(dtype: np.dtype) -> Any:
    """Take some hidden units back through all steps.

    pointers: T, B, H, gates, inner, h, dy or 0, dh (B, H) in/out, dgates (T, B, 3H) out, dinner (T, B, H) out, packed
    W_hh of r and z, of n, lengths or 0, zeros (H,), reverse, parts, flags
    """
    item, width = dtype.itemsize, panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_after_backward = traced(gate_gradients, dtype, GATE_BYTES // item)
    zero = traced(zero_row, dtype)

    def kernel(place, pointers):
        steps, batch, hidden, gates, inner, h = (
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5],
        )  # fmt: skip
        dy, dh, dgates, dinner = pointers[6], pointers[7], pointers[8], pointers[9]
        packed_rz, packed_n, lengths, zeros = pointers[10], pointers[11], pointers[12], pointers[13]
        reverse, flags = pointers[14], pointers[16]
        member, members, first, panels, unit, units = own_units(place, pointers[15], hidden, width)
        if member >= members:
            return
        row, row3 = hidden * item, 3 * hidden * item
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            before = h + (t + 1 if reverse else t) * batch * row
            dg, dw = dgates + t * batch * row3, dinner + t * batch * row
            for b in range(batch):
                at, at3 = b * row + unit * item, b * row3 + unit * item
                if lengths != 0 and t >= runtime.peek(lengths, b):
                    for gate in range(3):
                        zero(dg + at3 + gate * row, units)
                    zero(dw + at, units)
                    continue
                upstream = dy + t * batch * row + at if dy != 0 else zeros
                gates_after_backward(
                    gates + t * batch * row3 + at3, inner + t * batch * row + at, before + at, upstream, dh + at,
                    dg + at3, dw + at, hidden, units,
                )  # fmt: skip
            meet(flags, member, members, s + 1)
            multiply(dw, row, batch, packed_n, hidden, first, panels, hidden, dh, row, dh, row, 0, hidden)
            multiply(dg, row3, batch, packed_rz, 2 * hidden, first, panels, hidden, dh, row, dh, row, 0, 2 * hidden)

    return kernel
