"""Batch normalisation of channels and its gradients, each in one pass for the sums and one for the result.

    y = (x - mean) rstd weight + bias,    dx = weight rstd (dy - mean of dy - xhat mean of (dy xhat))

Bytes an element in float32: forward 4 + 8, backward 8 + 12; the statistics of a batch that does not fit the caches ask
for the first pass. Its sums are doubles around an entry of each channel, in a fixed order; see channels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, may_stream

ROWS = 128  # of channels along the last axis, in a block of the sums


@runtime.kernel
def _sums(dtype: np.dtype, backward: bool, across: bool) -> Any:
    """pointers: dy, x, shift, sums, rows, columns, rows of a block, C; sums are double: u, then u d, see channels.py.

    shift (C,) : of the dtype of x; backward the means, double, rounded to that dtype
    across : a column is a channel, and sums (blocks, 2, columns); else a row belongs to one, and sums (2, rows)
    """
    item = dtype.itemsize

    def clear(m, sums, count):
        wide = m.with_lanes(m.lanes, np.float64)
        wide.over(0, count, lambda index, mask: wide.store(sums + index * 8, wide.zero(), mask))

    def row(m, dy, x, shift, columns, sums, further):
        wide = m.with_lanes(m.lanes, np.float64)
        source, width = (wide, 8) if backward else (m, item)

        def shift_of(value: Value) -> Value:
            return m.convert(m.convert(value, dtype), np.float64)

        common = None if across else shift_of(source.load_scalar(shift))

        def terms(index: Value, mask: Value | None) -> tuple[Value, Value]:
            at = index * item
            k = shift_of(source.load(shift + index * width, mask)) if common is None else common
            d = m.convert(m.load_ahead(x + at, mask), np.float64) - k
            if mask is not None:
                d = wide.select(mask, d, 0.0)
            u = m.convert(m.load_ahead(dy + at, mask), np.float64) if backward else d
            return u, d

        if across:

            def body(index: Value, mask: Value | None) -> None:
                u, d = terms(index, mask)
                first, second = sums + index * 8, further + index * 8
                wide.store(first, wide.load(first, mask) + u, mask)
                wide.store(second, wide.fma(u, d, wide.load(second, mask)), mask)

            m.over(0, columns, body)
        else:

            def add(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
                u, d = terms(index, mask)
                return [state[0] + u, wide.fma(u, d, state[1])]

            totals = m.fold(0, columns, [wide.zero(), wide.zero()], add)
            for place, total in zip((sums, further), totals, strict=True):
                m.store_double(place, m.reduce(total, lambda a, b: a + b))

    run_row, run_clear = traced(row, dtype), traced(clear, dtype)

    def kernel(block, pointers):
        rows, columns, each, count = pointers[4], pointers[5], pointers[6], pointers[7]
        if across:
            run_clear(pointers[3] + block * 2 * columns * 8, 2 * columns)
        for r in range(block * each, min(rows, (block + 1) * each)):
            at = r * columns * item
            shift = pointers[2] + (0 if across else r % count * (8 if backward else item))
            sums = pointers[3] + (block * 2 * columns if across else r) * 8
            further = sums + (columns if across else rows) * 8
            run_row(pointers[0] + at, pointers[1] + at, shift, columns, sums, further)

    return kernel


@runtime.kernel
def _apply(dtype: np.dtype, backward: bool, across: bool, streaming: bool) -> Any:
    """pointers: dy, x, out, centre, rows, columns, rows of a block, C; across: as above.

    centre (4, C) : centre, scale, constant, slope
    """
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
        rows, columns, each, count = pointers[4], pointers[5], pointers[6], pointers[7]
        for r in range(block * each, min(rows, (block + 1) * each)):
            at, one = r * columns * item, count * item
            centre = pointers[3] + (0 if across else r % count * item)
            run_row(
                pointers[0] + at, pointers[1] + at, centre, centre + one, centre + 2 * one, centre + 3 * one,
                pointers[2] + at, columns,
            )  # fmt: skip

    return kernel


def _add_up(m: Machine, sums: Value, stride: Value, rows: Value, at: Value, mask: Value | None) -> Value:
    """Return the sum of doubles over rows that lie `stride` bytes apart, in their order."""
    first = sums + at * 8
    return m.loop(0, rows, 1, [m.zero()], lambda r, state: [state[0] + m.load(first + stride * r, mask)])[0]


@runtime.kernel
def _forward(dtype: np.dtype, training: bool, running: bool) -> Any:
    """Do for all channels what channels.py defines, in one block.

    pointers: shift, running mean, running variance, weight, bias, statistics (2, C) out: mean, rstd; coefficients
    (4, C) out: centre, scale, constant; sums, bytes between their two terms, bytes from row to row, rows, C; count,
    count / (count - 1), momentum, 1 - momentum, eps (doubles)
    """
    item = dtype.itemsize

    def channels(
        m, shift, running_mean, running_var, weight, bias, statistics, coefficients, sums, apart, stride, rows, count,
        n, unbiased, momentum, rest_of_momentum, eps,
    ):  # fmt: skip
        wide = m.with_lanes(m.lanes, np.float64)

        def body(index: Value, mask: Value | None) -> None:
            at, here = index * item, index * 8

            def load(address: Value) -> Value:
                return m.convert(m.load(address + at, mask), np.float64)

            if training:
                divisor = wide.splat(n)
                ahead = _add_up(wide, sums, stride, rows, index, mask) / divisor
                variance = _add_up(wide, sums + apart, stride, rows, index, mask) / divisor - ahead * ahead
                mean = ahead + load(shift)
                variance = wide.select(variance > 0.0, variance, variance * 0.0)
                if running:
                    share, rest = wide.splat(momentum), m.splat(rest_of_momentum)
                    for place, new in ((running_mean, mean), (running_var, variance * wide.splat(unbiased))):
                        kept = m.convert(m.load(place + at, mask) * rest, np.float64)
                        m.store(place + at, m.convert(kept + new * share, dtype), mask)
            else:
                mean, variance = load(running_mean), load(running_var)
            rstd = wide.full(1.0) / wide.sqrt(variance + wide.splat(eps))
            wide.store(statistics + here, mean, mask)
            wide.store(statistics + count * 8 + here, rstd, mask)
            centre, scale = m.convert(mean, dtype), rstd * load(weight)
            constant = load(bias) - (mean - m.convert(centre, np.float64)) * scale
            for k, value in enumerate((centre, m.convert(scale, dtype), m.convert(constant, dtype))):
                m.store(coefficients + count * (k * item) + at, value, mask)

        m.over(0, count, body)

    run_channels = traced(channels, dtype, 64 // item)

    def kernel(block, pointers):
        run_channels(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5], pointers[6], pointers[7],
            pointers[8], pointers[9], pointers[10], pointers[11], runtime.as_double(pointers[12]),
            runtime.as_double(pointers[13]), runtime.as_double(pointers[14]), runtime.as_double(pointers[15]),
            runtime.as_double(pointers[16]),
        )  # fmt: skip

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype, training: bool) -> Any:
    """The same; pointers: weight, mean, rstd, dweight, dbias, coefficients (4, C) out, sums, bytes between their two
    terms, bytes from row to row, rows, C; -1 / count (a double).
    """
    item = dtype.itemsize

    def channels(
        m, weight, mean_at, rstd_at, dweight, dbias, coefficients, sums, apart, stride, rows, count, share
    ):  # fmt: skip
        wide = m.with_lanes(m.lanes, np.float64)

        def body(index: Value, mask: Value | None) -> None:
            at, here = index * item, index * 8
            mean, rstd = wide.load(mean_at + here, mask), wide.load(rstd_at + here, mask)
            centre = m.convert(mean, dtype)
            low, scale = mean - m.convert(centre, np.float64), rstd * m.convert(m.load(weight + at, mask), np.float64)
            total = _add_up(wide, sums, stride, rows, index, mask)
            product = (_add_up(wide, sums + apart, stride, rows, index, mask) - low * total) * rstd
            m.store(dweight + at, m.convert(product, dtype), mask)
            m.store(dbias + at, m.convert(total, dtype), mask)
            if training:
                negative = wide.splat(share)
                slope = scale * rstd * product * negative
                constant = scale * total * negative - slope * low
                values = centre, m.convert(scale, dtype), m.convert(constant, dtype), m.convert(slope, dtype)
            else:
                values = m.zero(), m.convert(scale, dtype), m.zero(), m.zero()
            for k, value in enumerate(values):
                m.store(coefficients + count * (k * item) + at, value, mask)

        m.over(0, count, body)

    run_channels = traced(channels, dtype, 64 // item)

    def kernel(block, pointers):
        run_channels(
            pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5], pointers[6], pointers[7],
            pointers[8], pointers[9], pointers[10], runtime.as_double(pointers[11]),
        )  # fmt: skip

    return kernel


class _Shape:
    """x (outer, C, inner) as a matrix, of which a column is a channel if `across`; and the memory for its sums."""

    __slots__ = ("across", "apart", "columns", "dtype", "parallel", "rows", "sums", "terms")

    def __init__(self, x: np.ndarray):
        outer, count, inner = x.shape
        self.across, self.dtype, self.parallel = inner == 1, x.dtype, x.size > PARALLEL_SIZE
        self.rows, self.columns = (outer, count) if self.across else (outer * count, inner)
        # Rows of sums, and bytes from a first term to its second.
        self.terms = -(-outer // ROWS) if self.across else outer
        self.apart = 8 * (count if self.across else outer * count)
        self.sums = np.empty(2 * self.terms * count)

    def summing(self, dy: np.ndarray, x: np.ndarray, shift: np.ndarray, backward: bool) -> runtime.Launch:
        each = ROWS if self.across else max(1, BLOCK // self.columns)
        pointers = dy, x, shift, self.sums, self.rows, self.columns, each, x.shape[1]
        return _sums(self.dtype, backward, self.across), -(-self.rows // each), pointers, self.parallel

    def added(self, count: int) -> tuple[Any, ...]:
        """Return what the kernels of the channels are told of the sums."""
        return self.sums, self.apart, 8 * count * (2 if self.across else 1), self.terms, count

    def writing(self, dy: np.ndarray, x: np.ndarray, by: np.ndarray, out: np.ndarray, slope: bool) -> runtime.Launch:
        each = max(1, BLOCK // self.columns)
        pointers = dy, x, out, by, self.rows, self.columns, each, x.shape[1]
        kernel = _apply(self.dtype, slope, self.across, may_stream(out, [dy, x]))
        return kernel, -(-self.rows // each), pointers, self.parallel


def batch_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, running: tuple[np.ndarray, np.ndarray] | None, training: bool,
    momentum: float, eps: float, y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Write y (outer, C, inner); return mean and rstd (C,) in float64; see batch_norm_ref."""
    outer, channels, inner = x.shape
    shape, count = _Shape(x), outer * inner
    # of all axes but the last, only the first row is read
    shift = x if shape.across or not training or x.size == 0 else x[0, :, 0].copy()
    statistics, coefficients = np.empty((2, channels)), np.empty((4, channels), x.dtype)
    numbers = float(max(count, 1)), count / (count - 1) if training else 1.0, momentum, 1 - momentum, eps
    arrays = shift, *(running or (None, None)), weight, bias, statistics, coefficients
    pointers = *arrays, *shape.added(channels), *numbers
    by_channel = _forward(x.dtype, training, running is not None), 1, pointers, False
    if x.size == 0:
        runtime.run_in_turn(by_channel)
    elif training:
        writing = shape.writing(x, x, coefficients, y, False)
        runtime.run_in_turn(shape.summing(x, x, shift, False), by_channel, writing)
    else:
        runtime.run_in_turn(by_channel, shape.writing(x, x, coefficients, y, False))
    return statistics[0], statistics[1]


def batch_norm_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, training: bool,
    dx: np.ndarray, dweight: np.ndarray, dbias: np.ndarray,
) -> None:  # fmt: skip
    """Write dx (outer, C, inner), may be dy, dweight and dbias (C,)."""
    shape, channels = _Shape(x), x.shape[1]
    coefficients = np.empty((4, channels), x.dtype)
    share = -1.0 / max(x.shape[0] * x.shape[2], 1)
    pointers = weight, mean, rstd, dweight, dbias, coefficients, *shape.added(channels), share
    by_channel = _backward(x.dtype, training), 1, pointers, False
    if not x.size:
        shape.sums.fill(0)
        runtime.run_in_turn(by_channel)
        return
    source = x if training else dy
    runtime.run_in_turn(
        shape.summing(dy, x, mean, True), by_channel, shape.writing(dy, source, coefficients, dx, training)
    )
