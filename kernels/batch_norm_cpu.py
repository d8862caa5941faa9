"""Batch normalisation of channels and its gradients, each in one pass for the sums and one for the result.

    y = (x - mean) rstd weight + bias,    dx = weight rstd (dy - mean of dy - xhat mean of (dy xhat))

Bytes an element in float32: forward 4 + 8, backward 8 + 12; the statistics of a batch that does not fit the caches ask
for the first pass. Its sums are doubles around an entry of each channel, in a fixed order; see channels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import channels, runtime
from .simd import Value, traced
from .streams import BLOCK, PARALLEL_SIZE, may_stream

ROWS = 128  # of channels along the last axis, in a block of the sums


@runtime.kernel
def _sums(dtype: np.dtype, backward: bool, across: bool) -> Any:
    """pointers: dy, x, shift, rows, columns, rows of a block, C, sums, double: u, then u d, see channels.py.

    across : a column is a channel, and sums (blocks, 2, columns); else a row belongs to one, and sums (rows, 2)
    """
    item = dtype.itemsize

    def clear(m, sums, count):
        wide = m.with_lanes(m.lanes, np.float64)
        wide.over(0, count, lambda index, mask: wide.store(sums + index * 8, wide.zero(), mask))

    def row(m, dy, x, shift, columns, sums):
        wide = m.with_lanes(m.lanes, np.float64)
        common = None if across else m.convert(m.load_scalar(shift), np.float64)

        def terms(at: Value, mask: Value | None) -> tuple[Value, Value]:
            k = m.convert(m.load(shift + at, mask), np.float64) if common is None else common
            d = m.convert(m.load_ahead(x + at, mask), np.float64) - k
            if mask is not None:
                d = wide.select(mask, d, 0.0)
            u = m.convert(m.load_ahead(dy + at, mask), np.float64) if backward else d
            return u, d

        if across:

            def body(index: Value, mask: Value | None) -> None:
                u, d = terms(index * item, mask)
                first, second = sums + index * 8, sums + (columns + index) * 8
                wide.store(first, wide.load(first, mask) + u, mask)
                wide.store(second, wide.fma(u, d, wide.load(second, mask)), mask)

            m.over(0, columns, body)
        else:

            def add(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
                u, d = terms(index * item, mask)
                return [state[0] + u, wide.fma(u, d, state[1])]

            totals = m.fold(0, columns, [wide.zero(), wide.zero()], add)
            for place, total in enumerate(totals):
                m.store_double(sums + place * 8, m.reduce(total, lambda a, b: a + b))

    run_row, run_clear = traced(row, dtype), traced(clear, dtype)

    def kernel(block, pointers):
        rows, columns, each, count = pointers[3], pointers[4], pointers[5], pointers[6]
        if across:
            run_clear(pointers[7] + block * 2 * columns * 8, 2 * columns)
        for r in range(block * each, min(rows, (block + 1) * each)):
            at = r * columns * item
            shift = pointers[2] + (0 if across else r % count * item)
            sums = pointers[7] + (block * 2 * columns * 8 if across else r * 16)
            run_row(pointers[0] + at, pointers[1] + at, shift, columns, sums)

    return kernel


@runtime.kernel
def _apply(dtype: np.dtype, backward: bool, across: bool, streaming: bool) -> Any:
    """pointers: dy, x, centre, scale, constant, slope, out, rows, columns, rows of a block, C; across: as above."""
    item = dtype.itemsize

    def row(m, dy, x, centre, scale, constant, slope, out, columns):
        addresses = (centre, scale, constant, slope) if backward else (centre, scale, constant)
        common = () if across else tuple(m.load_scalar(address) for address in addresses)

        def body(index: Value, mask: Value | None) -> None:
            at = index * item
            middle, factor, rest, *more = common or [m.load(address + at, mask) for address in addresses]
            d = m.load_ahead(x + at, mask) - middle
            value = m.fma(m.load_ahead(dy + at, mask), factor, m.fma(d, more[0], rest)) if backward else None
            m.store(out + at, m.fma(d, factor, rest) if value is None else value, mask, streaming and mask is None)

        m.over(0, columns, body, out if streaming else None)
        if streaming:
            m.fence()

    run_row = traced(row, dtype)

    def kernel(block, pointers):
        rows, columns, each, count = pointers[7], pointers[8], pointers[9], pointers[10]
        for r in range(block * each, min(rows, (block + 1) * each)):
            at = r * columns * item
            of = 0 if across else r % count * item
            run_row(
                pointers[0] + at, pointers[1] + at, pointers[2] + of, pointers[3] + of, pointers[4] + of,
                pointers[5] + of, pointers[6] + at, columns,
            )  # fmt: skip

    return kernel


def _rows(x: np.ndarray) -> tuple[int, int, bool]:
    """Return rows and columns of x (outer, C, inner) as a matrix, and whether a column is a channel."""
    outer, count, inner = x.shape
    return (outer, count, True) if inner == 1 else (outer * count, inner, False)


def _total(dy: np.ndarray, x: np.ndarray, shift: np.ndarray, backward: bool) -> np.ndarray:
    """Return the sums of both terms, (2, C) double."""
    rows, columns, across = _rows(x)
    if x.size == 0:
        return np.zeros((2, x.shape[1]))
    each = ROWS if across else max(1, BLOCK // columns)
    blocks = -(-rows // each)
    sums = np.empty((blocks, 2, columns) if across else (x.shape[0], x.shape[1], 2))
    addresses = [runtime.address(a) for a in (dy, x, shift)]
    pointers = np.array([*addresses, rows, columns, each, x.shape[1], runtime.address(sums)], np.int64)
    runtime.run(_sums(x.dtype, backward, across), blocks, pointers, parallel=x.size > PARALLEL_SIZE)
    total = sums.sum(axis=0)
    return total if across else total.T


def _write(dy: np.ndarray, x: np.ndarray, by: channels.Coefficients, out: np.ndarray) -> None:
    rows, columns, across = _rows(x)
    if x.size == 0:
        return
    each = max(1, BLOCK // columns)
    slope = by.centre if by.slope is None else by.slope
    addresses = [runtime.address(a) for a in (dy, x, by.centre, by.scale, by.constant, slope, out)]
    pointers = np.array([*addresses, rows, columns, each, x.shape[1]], np.int64)
    kernel = _apply(x.dtype, by.slope is not None, across, may_stream(out, [dy, x]))
    runtime.run(kernel, -(-rows // each), pointers, parallel=x.size > PARALLEL_SIZE)


def batch_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, running: tuple[np.ndarray, np.ndarray] | None, training: bool,
    momentum: float, eps: float, y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Write y (outer, C, inner); return mean and rstd (C,) in float64; see batch_norm_ref."""
    with np.errstate(all="ignore"):
        if training:
            count, shift = x.shape[0] * x.shape[2], x[0, :, 0].copy()
            sums, squares = _total(x, x, shift, False)
            mean, variance = channels.statistics(shift, sums, squares, count)
            if running is not None:
                channels.update(running, mean, variance, count, momentum)
        else:
            assert running is not None
            mean, variance = (kept.astype(np.float64) for kept in running)
        rstd = channels.rstd_of(variance, eps)
        _write(x, x, channels.forward(mean, rstd, weight, bias), y)
    return mean, rstd


def batch_norm_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, training: bool,
    dx: np.ndarray, dweight: np.ndarray, dbias: np.ndarray,
) -> None:  # fmt: skip
    """Write dx (outer, C, inner), may be dy, dweight and dbias (C,)."""
    with np.errstate(all="ignore"):
        centre = mean.astype(x.dtype)
        sums, products = _total(dy, x, centre, True)
        count = x.shape[0] * x.shape[2]
        by, product = channels.backward(mean, rstd, weight, centre, sums, products, max(count, 1))
        dweight[...], dbias[...] = product, sums
        if not training:
            nothing = np.zeros_like(centre)
            by, x = channels.Coefficients(nothing, by.scale, nothing), dy
        _write(dy, x, by, dx)
