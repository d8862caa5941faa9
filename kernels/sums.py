"""Sums in NumPy's order, in compiled code: a call of np.sum takes 0.8 to 2 us, and np.errstate another 0.7."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from . import runtime
from .runtime import peek_double
from .simd import Machine, Value, traced

PARALLEL_SIZE = 65536  # as in streams.py
STRIP = 1024  # columns of one block of add_rows


@numba.njit(**runtime.INNER)
def pairwise(values, count):
    """Sum doubles in NumPy's order: eight totals in each run of 128, and a tree of those."""
    if count < 8:
        total = -0.0
        for i in range(count):
            total += peek_double(values, i)
        return total
    if count > 128:
        half = count // 2 - count // 2 % 8
        return pairwise(values, half) + pairwise(values + half * 8, count - half)
    a, b, c, d = peek_double(values, 0), peek_double(values, 1), peek_double(values, 2), peek_double(values, 3)
    e, f, g, h = peek_double(values, 4), peek_double(values, 5), peek_double(values, 6), peek_double(values, 7)
    whole = count - count % 8
    for i in range(8, whole, 8):
        a += peek_double(values, i)
        b += peek_double(values, i + 1)
        c += peek_double(values, i + 2)
        d += peek_double(values, i + 3)
        e += peek_double(values, i + 4)
        f += peek_double(values, i + 5)
        g += peek_double(values, i + 6)
        h += peek_double(values, i + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, count):
        total += peek_double(values, i)
    return total


def _sum(values, count):
    return pairwise(values, count)


_summer = runtime.compiled(_sum, returns=types.float64)


def total(values: int, count: int) -> float:
    """Return the sum of `count` doubles at an address."""
    return _summer()(values, count)


@runtime.kernel
def _add_rows(source: np.dtype, target: np.dtype) -> Any:
    """pointers: two targets, sums, row stride in bytes, rows, columns of one target, strips of those."""
    item, out_item = source.itemsize, target.itemsize

    def strip(m: Machine, sums: Value, stride: Value, rows: Value, out: Value, columns: Value) -> None:
        wide, narrow = m.with_lanes(m.lanes, np.float64), m.with_lanes(m.lanes, target)

        def body(index: Value, mask: Value | None) -> None:
            at = sums + index * item

            def add(row: Value, state: list[Value]) -> list[Value]:
                return [state[0] + m.convert(m.load(at + stride * row, mask), np.float64)]

            (value,) = m.loop(0, rows, 1, [wide.zero()], add)
            narrow.store(out + index * out_item, m.convert(value, target), mask)

        m.over(0, columns, body)

    run_strip = traced(strip, source, 64 // item)

    def kernel(block, pointers):
        columns, strips = pointers[5], pointers[6]
        out, first = block // strips, block % strips * STRIP
        run_strip(
            pointers[2] + (out * columns + first) * item, pointers[3], pointers[4],
            pointers[out] + first * out_item, min(STRIP, columns - first),
        )  # fmt: skip

    return kernel


def adding_rows(
    sums: int, dtype: np.dtype, stride: int, rows: int, columns: int, out: np.ndarray, other: np.ndarray | None = None
) -> runtime.Launch:
    """Return what writes the sum over the rows of a matrix, taken in double, into `out` and `other`, (columns,) each.

    sums : address of the matrix, (rows, columns) for each of the two, with this many bytes from row to row

    NumPy's order is another one where there is a single column, of 8 rows or more: see `add_column`.
    """
    strips = -(-columns // STRIP)
    outs = 1 if other is None else 2
    second = out if other is None else other
    pointers = runtime.table(runtime.handle(out), runtime.handle(second), sums, stride, rows, columns, strips)
    return _add_rows(dtype, out.dtype), strips * outs, pointers, rows * columns * outs > PARALLEL_SIZE, 2


def add_column(column: np.ndarray, out: np.ndarray) -> None:
    """Write the sum of a column (rows, 1), taken in double, into out (1,)."""
    with np.errstate(all="ignore"):
        out[...] = column.sum(axis=0, dtype=np.float64)
