"""Layer normalisation of the rows of a matrix, and its gradients in one pass over memory.

    xhat = (x - mean) rstd,    y = weight xhat + bias
    dx = rstd (g - mean of g - xhat mean of (g xhat)),    g = weight dy

Bytes an element in float32: 8 forward, 12 backward. A row stays in the cache between its mean, its variance and its
result. Everything summed along a row is summed in double, the variance around the mean: no float32 row overflows it,
and nothing cancels. x - mean is taken in two steps, mean = high + low: where the spread of a row is small beside its
mean, the rounding of the mean alone would cost xhat its digits.

dweight and dbias are summed over the rows of a block in the array's dtype, then over the blocks in double; how rows
are cut into blocks depends on their number only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .rows_cpu import adding_rows
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, may_stream

MOST_ROWS = 64  # of a block of the backward pass: summed in the array's dtype before the double sum takes over
BLOCKS = 32  # of the backward pass, at least, where there are so many rows


def _add(a: Value, b: Value) -> Value:
    return a + b


def _scalar(m: Machine, function: Callable[[Machine, Value], Value], value: Value) -> Value:
    """Return function(vector of doubles) of a double, as a double: on the two lanes of the shortest vector."""
    narrow = m.with_lanes(2, np.float64)
    return narrow.reduce(function(narrow, narrow.splat(value)), lambda a, b: a)


def _rounding(m: Machine, value: Value) -> Value:
    """Return what a double loses by being rounded to the machine's dtype, as a double."""
    return _scalar(m, lambda n, v: v - n.convert(n.convert(v, m.dtype), np.float64), value)


def statistics(m: Machine, x: Value, columns: Value, eps: Value) -> tuple[Value, Value]:
    """Return mean and rstd of a row (columns,); they and eps are doubles."""
    wide = m.with_lanes(m.lanes, np.float64)
    count = m.to_double(columns)

    def values(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        return [state[0] + m.convert(m.load_ahead(m.at(x, index), mask), np.float64)]

    mean = m.reduce(m.fold(0, columns, [wide.zero()], values)[0], _add) / count
    centre = wide.splat(mean)

    def squares(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        d = m.convert(m.load(m.at(x, index), mask), np.float64) - centre
        d = d if mask is None else wide.select(mask, d, 0.0)
        return [wide.fma(d, d, state[0])]

    variance = m.reduce(m.fold(0, columns, [wide.zero()], squares)[0], _add) / count
    return mean, _scalar(m, lambda n, v: n.full(1.0) / n.sqrt(v), variance + eps)


def means(m: Machine, columns: Value, terms: Callable[[Value, Value | None], list[Value]]) -> list[Value]:
    """Return the mean of each of two terms(index, mask) along a row, summed in double, as vectors of the dtype."""
    wide = m.with_lanes(m.lanes, np.float64)

    def add(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        return [s + m.convert(term, np.float64) for s, term in zip(state, terms(index, mask), strict=True)]

    count = m.to_double(columns)
    return [m.splat(m.reduce(s, _add) / count) for s in m.fold(0, columns, [wide.zero(), wide.zero()], add)]


class Normalised:
    """xhat of the elements of a row, from its mean and rstd (doubles)."""

    def __init__(self, m: Machine, mean: Value, rstd: Value):
        self.m, self.high, self.rstd = m, m.splat(mean), m.splat(rstd)
        self.low = -(m.splat(_rounding(m, mean)) * self.rstd)

    def of(self, x: Value) -> Value:
        return self.m.fma(x - self.high, self.rstd, self.low)


@runtime.kernel
def _forward(dtype: np.dtype, streaming: bool) -> Any:
    """pointers: x, y, weight, bias, mean, rstd (rows,), rows, N, rows of a block, eps; mean, rstd and eps double.

    streaming : store past the caches
    """
    item = dtype.itemsize

    def row(m, x, y, weight, bias, columns, eps, mean_at, rstd_at):
        mean, rstd = statistics(m, x, columns, eps)
        m.store_double(mean_at, mean)
        m.store_double(rstd_at, rstd)
        xhat = Normalised(m, mean, rstd)

        def body(index: Value, mask: Value | None) -> None:
            at = index * item
            value = m.fma(xhat.of(m.load(x + at, mask)), m.load(weight + at, mask), m.load(bias + at, mask))
            m.store(y + at, value, mask, streaming and mask is None)

        m.over(0, columns, body, y if streaming else None)
        if streaming:
            m.fence()

    run_row = traced(row, dtype)

    def kernel(block, pointers):
        rows, columns, each = pointers[6], pointers[7], pointers[8]
        for r in range(block * each, min(rows, (block + 1) * each)):
            at = r * columns * item
            run_row(
                pointers[0] + at, pointers[1] + at, pointers[2], pointers[3], columns,
                runtime.as_double(pointers[9]), pointers[4] + r * 8, pointers[5] + r * 8,
            )  # fmt: skip

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype, streaming: bool) -> Any:
    """pointers: dy, x, weight, mean, rstd, dx, rows, N, rows of a block, sums (blocks, 2, N): dweight, dbias.

    mean and rstd (rows,) are doubles, sums of the dtype.
    """
    item = dtype.itemsize

    def clear(m, sums, count):
        m.over(0, count, lambda index, mask: m.store(sums + index * item, m.zero(), mask))

    def row(m, dy, x, weight, mean_at, rstd_at, dx, columns, sums):
        xhat = Normalised(m, m.load_double(mean_at), m.load_double(rstd_at))
        dweight, dbias = sums, sums + columns * item

        def totals(index: Value, mask: Value | None) -> list[Value]:
            at = index * item
            upstream, normalised = m.load_ahead(dy + at, mask), xhat.of(m.load_ahead(x + at, mask))
            m.store(dweight + at, m.fma(upstream, normalised, m.load(dweight + at, mask)), mask)
            m.store(dbias + at, m.load(dbias + at, mask) + upstream, mask)
            g = upstream * m.load(weight + at, mask)
            return [g, g * normalised]

        mean, along = means(m, columns, totals)

        def body(index: Value, mask: Value | None) -> None:
            at = index * item
            g = m.load(dy + at, mask) * m.load(weight + at, mask)
            value = m.fma(xhat.of(m.load(x + at, mask)), -along, g - mean)
            m.store(dx + at, value * xhat.rstd, mask, streaming and mask is None)

        m.over(0, columns, body, dx if streaming else None)
        if streaming:
            m.fence()

    run_row, run_clear = traced(row, dtype), traced(clear, dtype)

    def kernel(block, pointers):
        rows, columns, each = pointers[6], pointers[7], pointers[8]
        sums = pointers[9] + block * 2 * columns * item
        run_clear(sums, 2 * columns)
        for r in range(block * each, min(rows, (block + 1) * each)):
            at = r * columns * item
            run_row(
                pointers[0] + at, pointers[1] + at, pointers[2], pointers[3] + r * 8, pointers[4] + r * 8,
                pointers[5] + at, columns, sums,
            )  # fmt: skip

    return kernel


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, y: np.ndarray, mean: np.ndarray, rstd: np.ndarray
) -> None:
    """Write y (M, N), and mean and rstd (M,) of each row, both float64; x (M, N), weight and bias (N,)."""
    rows, columns = x.shape
    if x.size == 0:
        return
    each = max(1, BLOCK // columns)
    pointers = x, y, weight, bias, mean, rstd, rows, columns, each, eps
    kernel = _forward(x.dtype, may_stream(y, [x]))
    runtime.run(kernel, -(-rows // each), pointers, x.size > PARALLEL_SIZE // 4)


def layer_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """Write dx (M, N), may be dy or x, dweight and dbias (N,); mean and rstd (M,) as `layer_norm` wrote them."""
    rows, columns = x.shape
    if x.size == 0:
        dweight[...] = dbias[...] = 0
        return
    each = min(MOST_ROWS, -(-rows // BLOCKS))
    blocks = -(-rows // each)
    sums = empty(blocks * 2 * columns, x.dtype)
    pointers = dy, x, weight, mean, rstd, dx, rows, columns, each, sums
    runtime.run_in_turn(
        (_backward(x.dtype, may_stream(dx, [dy, x])), blocks, pointers, x.size > PARALLEL_SIZE // 4),
        adding_rows(sums, 2 * columns * x.itemsize, blocks, columns, dweight, dbias),
    )
