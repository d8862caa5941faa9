"""What attention on the CPU is made of: products of tiles and triangles, packing, and the softmax of rows of scores.

Scores lie in blocks of QUERIES rows by KEYS, `scores_stride` bytes from row to row; copies of queries and sums in rows
of `row_stride` bytes. attention_cpu.py has the order in which these are called, and what is summed up where.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import runtime
from .dropout_cpu import GROUP, random_words
from .matmul_cpu import BY_COLUMNS, BY_ROWS, ROWS, VECTOR_BYTES, VECTORS, lanes, panel_columns, tile
from .matmul_cpu import copy_rows as copy_into_panel
from .matmul_cpu import copy_transposed as copy_transposed_into_panel
from .simd import I32, Machine, Value, traced
from .vecmath import exp_negative

QUERIES = 8 * ROWS  # of a block
KEYS = 32 * 12  # of a block, a multiple of ROWS, of every panel and of dropout's groups


def scores_stride(dtype: np.dtype) -> int:
    """Return the bytes from row to row of a block of scores, an odd number of cache lines."""
    return KEYS * dtype.itemsize + VECTOR_BYTES


def row_stride(columns: int, dtype: np.dtype) -> int:
    """Return the bytes from row to row of a copy of queries or sums: whole panels, an odd number of cache lines."""
    vectors = -(-columns // panel_columns(dtype)) * VECTORS
    return (vectors + (vectors + 1) % 2) * VECTOR_BYTES


# --- products


@functools.cache
def _whole(dtype: np.dtype, left: str) -> Any:
    """Return the Numba function of matmul's micro-kernel, compiled once for all places that call it."""
    micro = tile(dtype, left, VECTORS)

    def whole(rows, a, a_stride, b, c, c_stride, start, start_stride, depth, columns):
        micro(rows, a, a_stride, b, 0, c, c_stride, start, start_stride, depth, columns)

    return runtime.inner(whole)


@functools.cache
def _triangle(dtype: np.dtype, left: str) -> Any:
    """Return the Numba function that adds a triangle of products, (size, a, a_stride, b, c, c_stride, columns).

    size : 1 to ROWS
    a (size, size) : element (r, k), row by row, takes part where k <= r; if BY_COLUMNS it lies transposed, and takes
        part where k >= r
    b : panel, [k][VECTORS]; c (size, columns) : added to
    """
    item = dtype.itemsize

    def triangle(m, size, a, a_stride, b, c, c_stride, columns):
        masks = [m.mask(columns - v * m.lanes) for v in range(VECTORS)]

        def of_size(size: int) -> None:
            cells = [(r, v) for r in range(size) for v in range(VECTORS)]
            sums = dict.fromkeys(cells, m.zero())
            for k in range(size):
                right = [m.load(b + (k * VECTORS + v) * VECTOR_BYTES) for v in range(VECTORS)]
                for r in range(k, size) if left == BY_ROWS else range(k + 1):
                    row, column = (r, k) if left == BY_ROWS else (k, r)
                    factor = m.load_scalar(a + a_stride * row + column * item)
                    for v in range(VECTORS):
                        sums[r, v] = m.fma(factor, right[v], sums[r, v])
            for r, v in cells:
                at = c + c_stride * r + v * VECTOR_BYTES
                m.store(at, m.load(at, masks[v]) + sums[r, v], masks[v])

        m.switch(size, {size: functools.partial(of_size, size) for size in range(1, ROWS + 1)})

    micro = traced(triangle, dtype, lanes(dtype))

    def add(size, a, a_stride, b, c, c_stride, columns):
        micro(size, a, a_stride, b, c, c_stride, columns)

    return runtime.inner(add)


@functools.cache
def scored(dtype: np.dtype) -> Any:
    """Return the Numba function that multiplies rows by packed keys, from one of them to another, into scores.

    (rows, a, a_stride, b, depth, first_key, last_key, scores, zeros, first_row); first_row : number of the first row
        where tiles whose rows all come before their keys are left out, else a number past all keys
    """
    whole, width, item, stride = _whole(dtype, BY_ROWS), panel_columns(dtype), dtype.itemsize, scores_stride(dtype)

    def scored(rows, a, a_stride, b, depth, first_key, last_key, scores, zeros, first_row):
        for key in range(first_key, last_key, width):
            for row in range(max(0, key - first_row) // ROWS * ROWS, rows, ROWS):
                whole(
                    min(ROWS, rows - row), a + row * a_stride, a_stride, b + key * depth * item,
                    scores + row * stride + (key - first_key) * item, stride, zeros, 0, depth,
                    min(width, last_key - key),
                )  # fmt: skip

    return runtime.inner(scored)


@functools.cache
def weighted(dtype: np.dtype) -> Any:
    """Return the Numba function that adds weights times packed rows, (rows, weights, b, b_rows, first_key, last_key,
    columns, sums, sums_stride, zeros, first_row): those of the keys first_key to last_key, up to the row's own number
    where first_row is not negative. sums (rows, columns) are written, not added to, where zeros is not 0.
    """
    whole, triangle, stride = _whole(dtype, BY_ROWS), _triangle(dtype, BY_ROWS), scores_stride(dtype)
    width, item = panel_columns(dtype), dtype.itemsize

    def weighted(rows, weights, b, b_rows, first_key, last_key, columns, sums, sums_stride, zeros, first_row):
        for column in range(0, columns, width):
            panel = b + (column * b_rows + first_key * width) * item
            for row in range(0, rows, ROWS):
                height = min(ROWS, rows - row)
                left, c = weights + row * stride, sums + row * sums_stride + column * item
                depth = last_key - first_key
                if first_row >= 0:
                    depth = max(0, min(depth, first_row + row - first_key))
                if depth > 0 or zeros != 0:
                    start, start_stride = (zeros, 0) if zeros != 0 else (c, sums_stride)
                    whole(height, left, stride, panel, c, sums_stride, start, start_stride, depth, width)
                if first_row >= 0 and first_key <= first_row + row < last_key:
                    triangle(
                        height, left + depth * item, stride, panel + depth * width * item, c, sums_stride, width
                    )  # fmt: skip

    return runtime.inner(weighted)


@functools.cache
def weighted_back(dtype: np.dtype) -> Any:
    """Return the Numba function that adds transposed weights times packed rows to the rows of an output.

    (keys, weights, b, rows, first_key, columns, out, out_stride, first_row): key k takes all rows, or those whose
    number is not below its own where first_row is not negative.
    """
    whole, triangle, stride = _whole(dtype, BY_COLUMNS), _triangle(dtype, BY_COLUMNS), scores_stride(dtype)
    width, item = panel_columns(dtype), dtype.itemsize

    def weighted_back(keys, weights, b, rows, first_key, columns, out, out_stride, first_row):
        for column in range(0, columns, width):
            panel, many = b + column * rows * item, min(width, columns - column)
            for key in range(0, keys, ROWS):
                height = min(ROWS, keys - key)
                left, c = weights + key * item, out + key * out_stride + column * item
                row = 0
                if first_row >= 0 and first_key + key >= first_row:
                    row = first_key + key - first_row
                    triangle(
                        height, left + row * stride, stride, panel + row * width * item, c, out_stride, many
                    )  # fmt: skip
                    row += height
                if row < rows:
                    whole(
                        height, left + row * stride, stride, panel + row * width * item, c, out_stride, c, out_stride,
                        rows - row, many,
                    )  # fmt: skip

    return runtime.inner(weighted_back)


# --- packing


@functools.cache
def packed(dtype: np.dtype) -> Any:
    """Return the Numba function that packs rows (n, D), `stride` bytes apart, into panels: [panel of D][n][width]."""
    copy, width, item = traced(copy_into_panel, dtype, lanes(dtype)), panel_columns(dtype), dtype.itemsize

    def packed(source, stride, rows, columns, target):
        for column in range(0, columns, width):
            for row in range(rows):
                at = target + (column * rows + row * width) * item
                copy(source + row * stride + column * item, at, columns - column)

    return runtime.inner(packed)


@functools.cache
def packed_transposed(dtype: np.dtype) -> Any:
    """Return the Numba function that packs the transpose of rows (n, D) into panels: [panel of n][D][width]."""
    step, width, item = lanes(dtype), panel_columns(dtype), dtype.itemsize
    copy = traced(copy_transposed_into_panel, dtype, step)

    def packed_transposed(source, stride, rows, columns, target):
        for row in range(0, -(-rows // width) * width, step):
            for column in range(0, columns, step):
                panel = row // width * width
                copy(
                    source + row * stride + column * item, stride,
                    target + (panel * columns + column * width + row - panel) * item,
                    max(0, min(step, rows - row)), min(step, columns - column),
                )  # fmt: skip

    return runtime.inner(packed_transposed)


def scale_rows(m: Machine, source: Value, stride: Value, target: Value, to: Value, rows: Value, columns: Value, scale):
    """Write rows times a number (at an address, a double) to rows `to` bytes apart."""
    factor = m.splat(m.load_double(scale))

    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * r, target + to * r
        m.over(0, columns, lambda i, mask: m.store(m.at(there, i), m.load(m.at(here, i), mask) * factor, mask))
        return []

    m.loop(0, rows, 1, [], row)


def copy_rows(m: Machine, source: Value, stride: Value, target: Value, to: Value, rows: Value, columns: Value):
    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * r, target + to * r
        m.over(0, columns, lambda i, mask: m.store(m.at(there, i), m.load(m.at(here, i), mask), mask))
        return []

    m.loop(0, rows, 1, [], row)


def clear_rows(m: Machine, target: Value, to: Value, rows: Value, columns: Value):
    def row(r: Value, state: list[Value]) -> list[Value]:
        m.over(0, columns, lambda i, mask: m.store(m.at(target + to * r, i), m.zero(), mask))
        return []

    m.loop(0, rows, 1, [], row)


# --- rows of scores


def _store_one(m: Machine, address: Value, vector: Value) -> None:
    m.store(address, vector, m.mask(m.integer(1)))


def _keeper(m: Machine, group: Value, seed: Value, offset: Value, threshold: Value, factor: Value) -> Any:
    """Return what multiplies the weights from key `index` of a row on, whose numbers begin with a group."""
    limit = m._broadcast(m.builder.trunc(threshold.ir, I32), GROUP)
    kept = m.splat(m.load_double(factor))

    def of(index: Value) -> Value:
        words = random_words(m, group + index // GROUP, seed, offset)
        return m.select(Value(m, m.builder.icmp_unsigned(">=", words.ir, limit)), kept, 0.0)

    return of


def _softmax_row(m, row, count, first, largest_at, total_at, sums, columns, dropping):
    """Turn scores into exponentials, and bring the row's largest score, its total and its sums up to date.

    row : address of `count` scores, one or more
    first : 1 in the first block of keys, 0 where the row has sums (columns,) and a total to be rescaled
    dropping : None, or what multiplies the weights once they are added up
    """
    narrow = m.with_lanes(lanes(m.dtype))

    def larger(a: Value, b: Value) -> Value:
        return m.select(a < b, b, a)  # a NaN in b does not enter: it comes back with its exponential

    def largest(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        value = m.load(m.at(row, index), mask)
        return [larger(state[0], value if mask is None else m.select(mask, value, -np.inf))]

    before = narrow.load_scalar(largest_at)
    found = narrow.splat(m.reduce(m.fold(0, count, [m.full(-np.inf)], largest)[0], larger))
    top = larger(before, found)
    _store_one(narrow, largest_at, top)
    top = narrow.select(top > -np.inf, top, 0.0)  # a score of -inf less -inf would be NaN, and has weight 0

    def rescale() -> None:
        factor = exp_negative(narrow, before - top)
        _store_one(narrow, total_at, narrow.load_scalar(total_at) * factor)
        narrow.over(0, columns, lambda i, mask: narrow.store(
            narrow.at(sums, i), narrow.load(narrow.at(sums, i), mask) * factor, mask))  # fmt: skip

    m.when(first < 1, rescale)
    shift = Value(m, m._broadcast(m.builder.extract_element(top.ir, I32(0)), m.lanes))

    def exponentials(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        value = exp_negative(m, m.load(m.at(row, index), mask) - shift)
        value = value if mask is None else m.select(mask, value, 0.0)
        m.store(m.at(row, index), value if dropping is None else value * dropping(index), mask)
        return [state[0] + value]

    added = m.reduce(m.fold(0, count, [m.zero()], exponentials)[0], lambda a, b: a + b)
    _store_one(narrow, total_at, narrow.load_scalar(total_at) + narrow.splat(added))


def _slopes_row(m, row, upstream, count, largest_at, total_at, along_at, dropping):
    """Turn scores into weights P, and dP into dS = P (dP - along); dropping : as above, for P and for dP."""
    top, along = m.load_scalar(largest_at), m.load_scalar(along_at)
    share = m.full(1.0) / m.load_scalar(total_at)

    def body(index: Value, mask: Value | None) -> None:
        weight = exp_negative(m, m.load(m.at(row, index), mask) - top) * share
        slope = m.load(m.at(upstream, index), mask)
        if dropping is not None:
            factor = dropping(index)
            slope = slope * factor
            m.store(m.at(row, index), weight * factor, mask)
        else:
            m.store(m.at(row, index), weight, mask)
        m.store(m.at(upstream, index), weight * (slope - along), mask)

    m.over(0, count, body)


def softmax(m, row, count, first, largest_at, total_at, sums, columns):
    _softmax_row(m, row, count, first, largest_at, total_at, sums, columns, None)


def softmax_dropped(
    m, row, count, first, largest_at, total_at, sums, columns, group, seed, offset, threshold, factor
):  # fmt: skip
    dropping = _keeper(m, group, seed, offset, threshold, factor)
    _softmax_row(m, row, count, first, largest_at, total_at, sums, columns, dropping)


def slopes(m, row, upstream, count, largest_at, total_at, along_at):
    _slopes_row(m, row, upstream, count, largest_at, total_at, along_at, None)


def slopes_dropped(
    m, row, upstream, count, largest_at, total_at, along_at, group, seed, offset, threshold, factor
):  # fmt: skip
    dropping = _keeper(m, group, seed, offset, threshold, factor)
    _slopes_row(m, row, upstream, count, largest_at, total_at, along_at, dropping)


def begin_rows(m, largest, total, rows):
    m.over(0, rows, lambda i, mask: m.store(m.at(largest, i), m.full(-np.inf), mask))
    m.over(0, rows, lambda i, mask: m.store(m.at(total, i), m.zero(), mask))


def end_rows(m, sums, sums_stride, y, y_stride, rows, columns, largest, total):
    """Divide the sums by the totals; a largest score of -inf, of which all are, becomes the 0 it was taken for."""

    def row(r: Value, state: list[Value]) -> list[Value]:
        divisor = m.load_scalar(m.at(total, r))
        here, there = sums + sums_stride * r, y + y_stride * r
        m.over(0, columns, lambda i, mask: m.store(m.at(there, i), m.load(m.at(here, i), mask) / divisor, mask))
        return []

    m.loop(0, rows, 1, [], row)

    def shown(i: Value, mask: Value | None) -> None:
        top = m.load(m.at(largest, i), mask)
        m.store(m.at(largest, i), m.select(top <= -np.inf, 0.0, top), mask)

    m.over(0, rows, shown)


def dot_rows(m, a, a_stride, b, b_stride, rows, columns, out):
    """Write the dot products of rows."""

    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = a + a_stride * r, b + b_stride * r

        def add(i: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            return [m.fma(m.load(m.at(here, i), mask), m.load(m.at(there, i), mask), state[0])]

        sums = m.fold(0, columns, [m.zero()], add)
        _store_one(m, m.at(out, r), m.splat(m.reduce(sums[0], lambda a, b: a + b)))
        return []

    m.loop(0, rows, 1, [], row)
