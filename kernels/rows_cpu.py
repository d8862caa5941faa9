"""Sum the rows of a matrix in double: the last step of a gradient that was summed block by block.

NumPy's np.sum(axis=0) takes 2 us for the smallest matrix; this has its bits, and goes into one compiled call with what
wrote the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .simd import Machine, Value, traced
from .streams import PARALLEL_SIZE

STRIP = 1024  # columns of one block


@runtime.kernel
def _add_rows(dtype: np.dtype, of_doubles: bool) -> Any:
    """dtype : of the targets, and of the sums, unless those are doubles

    pointers: two targets, sums, row stride in bytes, rows, columns of one target, strips of those."""
    source = np.dtype(np.float64) if of_doubles else dtype
    item, out_item = source.itemsize, dtype.itemsize

    def strip(m: Machine, sums: Value, stride: Value, rows: Value, out: Value, columns: Value) -> None:
        wide, narrow = m.with_lanes(m.lanes, np.float64), m.with_lanes(m.lanes, dtype)

        def body(index: Value, mask: Value | None) -> None:
            at = sums + index * item

            def add(row: Value, state: list[Value]) -> list[Value]:
                return [state[0] + m.convert(m.load(at + stride * row, mask), np.float64)]

            (value,) = m.loop(0, rows, 1, [wide.zero()], add)
            narrow.store(out + index * out_item, m.convert(value, dtype), mask)

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
    sums: np.ndarray, stride: int, rows: int, columns: int, out: np.ndarray, other: np.ndarray | None = None
) -> runtime.Launch:
    """Return what writes the sum over the rows of a matrix, taken in double, into `out` and `other`, (columns,) each.

    sums : memory of the matrix, (rows, columns) for each of the two, with this many bytes from row to row

    NumPy's order is another one where there is a single column, of 8 rows or more: see `add_column`.
    """
    strips = -(-columns // STRIP)
    outs = 1 if other is None else 2
    kernel, parallel = _add_rows(out.dtype, sums.dtype == np.float64), rows * columns * outs > PARALLEL_SIZE
    return kernel, strips * outs, (out, other, sums, stride, rows, columns, strips), parallel


def add_column(column: np.ndarray, out: np.ndarray) -> None:
    """Write the sum of a column (rows, 1), taken in double, into out (1,)."""
    with np.errstate(all="ignore"):
        out[...] = column.sum(axis=0, dtype=np.float64)
