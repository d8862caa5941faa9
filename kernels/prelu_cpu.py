"""PReLU: y = x where x > 0, else w x, with one weight per channel (He et al., 2015).

Bytes an element in float32: 8 forward, 12 backward. The gradient of a weight is summed in double, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
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


def _launch(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, out: np.ndarray, backward: bool) -> np.ndarray:
    """Run forward or backward; return the sums of the weight's gradient, (parts, C)."""
    outer, channels, inner = x.shape
    addresses = [runtime.address(a) for a in (dy, x, out, weight)]
    if x.size == 0:
        return np.zeros((0, channels))
    if inner == 1:
        blocks = -(-outer // ROWS)
        sums = np.zeros((blocks, channels))
        pointers = np.array([*addresses, outer, channels, runtime.address(sums)], np.int64)
        kernel = _across(x.dtype, backward)
    else:
        chunks = -(-inner // BLOCK)
        blocks = outer * channels * chunks
        sums = np.zeros((outer, channels, chunks))
        pointers = np.array([*addresses, inner, channels, runtime.address(sums), chunks], np.int64)
        kernel = _along(x.dtype, backward)
    runtime.run(kernel, blocks, pointers, parallel=x.size > PARALLEL_SIZE)
    return sums if inner == 1 else sums.sum(axis=2)


def prelu(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Write y into `out` (outer, C, inner), may be x; x (outer, C, inner), weight (C,)."""
    _launch(x, x, weight, out, backward=False)


def prelu_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: np.ndarray, dweight: np.ndarray) -> None:
    """Write dx (outer, C, inner), may be dy or x, and dweight (C,): dw = sum of dy min(x, 0)."""
    with np.errstate(all="ignore"):
        dweight[...] = _launch(dy, x, weight, dx, backward=True).sum(axis=0)
