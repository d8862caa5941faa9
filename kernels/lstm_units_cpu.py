"""The LSTM over a sequence for fewer sequences than threads: see lstm_cpu.py, whose results are these to the bit.

A thread takes some of the hidden units through all steps, with all of their gates: it reads its own columns of W_hh
alone, which then come from the caches of all cores together. After each step the threads meet, for each needs the state
of all units. What is not done here is what may come between the steps.

With one sequence and H = 128 a step reads 256 KB of W_hh, 1.4 us at the 46 bytes a cycle of a second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .lstm_cell_cpu import gate_gradients, gate_values
from .matmul_cpu import panel_columns, rows_by_panels
from .meeting import meet
from .recurrent_cpu import GATE_BYTES, copy_row, own_units, zero_row
from .simd import traced


@runtime.kernel
def forward(dtype: np.dtype) -> Any:
    """Take some hidden units through all steps.

    pointers: T, B, H, gates (T, B, 4H), h (T + 1, B, H), c (T + 1, B, H), packed W_hh^T of i, f, g and o, lengths or 0,
    y (T, B, H) where there are lengths, reverse, parts, flags. Slot t of h and c holds the state before step t, or
    after it in reverse.
    """
    item, width = dtype.itemsize, panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_forward = traced(gate_values, dtype, GATE_BYTES // item)
    copy, zero = traced(copy_row, dtype), traced(zero_row, dtype)

    def kernel(place, pointers):
        steps, batch, hidden, gates, h, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]
        lengths, y, reverse, flags = pointers[10], pointers[11], pointers[12], pointers[14]
        member, members, first, panels, unit, units = own_units(place, pointers[13], hidden, width)
        if member >= members:
            return
        row, row4 = hidden * item, 4 * hidden * item
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            before = (t + 1 if reverse else t) * batch * row
            after = (t if reverse else t + 1) * batch * row
            for gate in range(4):
                sums = gates + t * batch * row4 + gate * row
                multiply(
                    h + before, row, batch, pointers[6 + gate], hidden, first, panels, hidden, sums, row4,
                    sums, row4, 0, hidden,
                )  # fmt: skip
            for b in range(batch):
                at = b * row + unit * item
                if lengths != 0 and t >= runtime.peek(lengths, b):
                    copy(h + before + at, h + after + at, units)
                    copy(c + before + at, c + after + at, units)
                    zero(y + t * batch * row + at, units)
                    continue
                step = gates + (t * batch + b) * row4 + unit * item
                gates_forward(step, c + before + at, c + after + at, h + after + at, hidden, units)
                if lengths != 0:
                    copy(h + after + at, y + t * batch * row + at, units)
            meet(flags, member, members, s + 1)

    return kernel


@runtime.kernel
def backward(dtype: np.dtype) -> Any:
    """Take some hidden units back through all steps.

    pointers: T, B, H, gates, c, dy or 0, dh (B, H) in/out, dc (B, H) in/out, dgates (T, B, 4H) out, packed W_hh,
    lengths or 0, zeros (H,), reverse, parts, flags
    """
    item, width = dtype.itemsize, panel_columns(dtype)
    multiply = rows_by_panels(dtype)
    gates_backward = traced(gate_gradients, dtype, GATE_BYTES // item)
    zero = traced(zero_row, dtype)

    def kernel(place, pointers):
        steps, batch, hidden, gates, c = pointers[0], pointers[1], pointers[2], pointers[3], pointers[4]
        dy, dh, dc, dgates, packed = pointers[5], pointers[6], pointers[7], pointers[8], pointers[9]
        lengths, zeros, reverse, flags = pointers[10], pointers[11], pointers[12], pointers[14]
        member, members, first, panels, unit, units = own_units(place, pointers[13], hidden, width)
        if member >= members:
            return
        row, row4 = hidden * item, 4 * hidden * item
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            before = (t + 1 if reverse else t) * batch * row
            for b in range(batch):
                at, at4 = b * row + unit * item, (t * batch + b) * row4 + unit * item
                if lengths != 0 and t >= runtime.peek(lengths, b):
                    for gate in range(4):
                        zero(dgates + at4 + gate * row, units)
                    continue
                above = dy + t * batch * row + at if dy != 0 else zeros
                gates_backward(gates + at4, c + before + at, above, dh + at, dc + at, dgates + at4, hidden, units)
            meet(flags, member, members, s + 1)
            multiply(
                dgates + t * batch * row4, row4, batch, packed, 4 * hidden, first, panels, hidden,
                dh, row, dh, row, 0, 4 * hidden,
            )  # fmt: skip

    return kernel
