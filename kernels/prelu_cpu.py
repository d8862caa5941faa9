"""PReLU: y = x where x > 0, else w x, with one weight per channel (He et al., 2015).

Bytes an element in float32: 8 forward, 12 backward. The gradient of a weight is summed in double, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .rows_cpu import adding_rows
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE

ROWS = 64  # rows of channels in one block


def _forward(m: Machine, x: Value, w: Value) -> Value:
    return m.select(x > 0.0, x, x * w)


def _derivative(m: Machine, x: Value, w: Value) -> Value:
    return m.select(m.is_nan(x), x, m.select(x > 0.0, 1.0, w))


def _weight_term(m: Machine, dy: Value, x: Value) -> Value:
    return dy * m.minimum(x, 0.0)


@runtime.kernel
def _across(dtype: np.dtype, backward: bool) -> Any:
    """Channels along the last axis. pointers: dy, x, out, weight, rows, C, sums (blocks, C) double."""
    item = dtype.itemsize

    def strip(m, dy, x, out, weight, rows, channels, sums):
        wide = m.with_lanes(m.lanes, np.float64)

        def body(index: Value, mask: Value | None) -> None:
            at = index * item
            w = m.load(weight + at, mask)

            def step(row: Value, state: list[Value]) -> list[Value]:
                here = channels * row * item + at
                value = m.load(x + here, mask)
                if not backward:
                    m.store(out + here, _forward(m, value, w), mask)
                    return []
                upstream = m.load(dy + here, mask)
                m.store(out + here, upstream * _derivative(m, value, w), mask)
                return [state[0] + m.convert(_weight_term(m, upstream, value), np.float64)]

            state = m.loop(0, rows, 1, [wide.zero()] if backward else [], step)
            if backward:
                wide.store(sums + index * 8, state[0], mask)

        m.over(0, channels, body)

    run_strip = traced(strip, dtype)

    def kernel(block, pointers):
        rows, channels = pointers[4], pointers[5]
        first = block * ROWS
        at = first * channels * item
        run_strip(
            pointers[0] + at, pointers[1] + at, pointers[2] + at, pointers[3],
            min(ROWS, rows - first), channels, pointers[6] + block * channels * 8,
        )  # fmt: skip

    return kernel


@runtime.kernel
def _along(dtype: np.dtype, backward: bool) -> Any:
    """One weight for `inner` adjacent elements. pointers: dy, x, out, weight, inner, C, sums (rows, chunks), chunks."""
    item = dtype.itemsize

    def chunk(m, dy, x, out, weight, first, last, sums):
        w = m.load_scalar(weight)
        wide = m.with_lanes(m.lanes, np.float64)

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            at = index * item
            value = m.load(x + at, mask)
            if not backward:
                m.store(out + at, _forward(m, value, w), mask)
                return []
            upstream = m.load(dy + at, mask)
            m.store(out + at, upstream * _derivative(m, value, w), mask)
            return [state[0] + m.convert(_weight_term(m, upstream, value), np.float64)]

        state = m.fold(first, last, [wide.zero()] if backward else [], body)
        if backward:
            m.store_double(sums, m.reduce(state[0], lambda a, b: a + b))

    run_chunk = traced(chunk, dtype)

    def kernel(block, pointers):
        inner, chunks = pointers[4], pointers[7]
        row = block // chunks
        first = block % chunks * BLOCK
        at = row * inner * item
        run_chunk(
            pointers[0] + at, pointers[1] + at, pointers[2] + at, pointers[3] + row % pointers[5] * item,
            first, min(first + BLOCK, inner), pointers[6] + block * 8,
        )  # fmt: skip

    return kernel


def _launch(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, out: np.ndarray, dweight: np.ndarray | None = None
) -> None:
    """Run forward, or with dweight backward."""
    outer, channels, inner = x.shape
    backward = dweight is not None
    if x.size == 0:
        if dweight is not None:
            dweight[...] = 0
        return
    arrays = dy, x, out, weight
    launch: runtime.Launch
    across, chunks = inner == 1, -(-inner // BLOCK)
    blocks = -(-outer // ROWS) if across else outer * channels * chunks
    sums = np.empty((blocks * channels if across else blocks) if backward else 0)
    parallel = x.size > PARALLEL_SIZE
    if across:
        launch = _across(x.dtype, backward), blocks, (*arrays, outer, channels, sums), parallel
    else:
        launch = _along(x.dtype, backward), blocks, (*arrays, inner, channels, sums, chunks), parallel
    if dweight is None:
        runtime.run(*launch)
    elif chunks > 1 and (channels > 1 or blocks >= 8):  # summed in NumPy's order
        runtime.run(*launch)
        with np.errstate(all="ignore"):
            dweight[...] = sums.reshape(-1, channels, chunks).sum(axis=2).sum(axis=0)
    else:
        rows = blocks if across or channels == 1 else outer
        runtime.run_in_turn(launch, adding_rows(sums, channels * 8, rows, channels, dweight))


def prelu(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Write y into `out` (outer, C, inner), may be x; x (outer, C, inner), weight (C,)."""
    _launch(x, x, weight, out)


def prelu_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: np.ndarray, dweight: np.ndarray) -> None:
    """Write dx (outer, C, inner), may be dy or x, and dweight (C,): dw = sum of dy min(x, 0)."""
    _launch(dy, x, weight, dx, dweight)
