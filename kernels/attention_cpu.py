"""Scaled dot-product attention and its gradients, tile by tile: see attention_ref.py for the definition.

Flops: 4 T S D for each batch and head forward, 10 backward, half of that where causal. What is larger than the
arguments is never in memory: a thread holds the scores of QUERIES queries by KEYS keys, in its second-level cache, and
the keys and values of one head, packed for the micro-kernel of matmul_cpu.py. Online softmax (Milakov & Gimelshein,
2018): the sum of a row's exponentials and its part of y are rescaled where a later block of keys has a larger score.

    forward      S = scale q k^T,  P = exp(S - largest so far),  y += P v;        in the end y / total
    backward     P = exp(S - largest) / total,  dS = P (dy v^T - sum_d dy y),  dq += dS k,  dk += dS^T q,  dv += P^T dy

Where causal, tiles above the diagonal are left out, and on it a triangle of products takes the place of a square: what
a query does not see is not multiplied by 0, which would let a NaN through.

Threads take whole heads, forward also parts of one where there are few. Rows fall into tiles by their number, keys into
blocks by theirs, so that the bits of the results depend on no thread.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from fastgrad._memory import empty

from . import runtime
from .dropout_cpu import GROUP, random_words
from .matmul_cpu import BY_COLUMNS, BY_ROWS, ROWS, VECTOR_BYTES, VECTORS, lanes, panel_columns, tile
from .matmul_cpu import copy_rows as copy_into_panel
from .matmul_cpu import copy_transposed as copy_transposed_into_panel
from .simd import I32, Machine, Value, traced
from .vecmath import exp_negative

Dropped = tuple[int, float, int, int]

QUERIES = 8 * ROWS  # of a block
KEYS = 32 * 12  # of a block, a multiple of ROWS, of every panel and of dropout's groups
PARTS = 4  # tasks for each thread where there are fewer heads than that
SMALL = 2**17  # multiplications of a call below which handing work to threads costs more than it gains


def _scores_stride(dtype: np.dtype) -> int:
    """Return the bytes from row to row of a block of scores, an odd number of cache lines."""
    return KEYS * dtype.itemsize + VECTOR_BYTES


def _row_stride(columns: int, dtype: np.dtype) -> int:
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

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(whole, f"{dtype.name},{left}"))


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

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(add, f"{dtype.name},{left}"))


@functools.cache
def _scored(dtype: np.dtype) -> Any:
    """Return the Numba function that multiplies rows by packed keys, from one of them to another, into scores.

    (rows, a, a_stride, b, depth, first_key, last_key, scores, zeros, first_row); first_row : number of the first row
        where tiles whose rows all come before their keys are left out, else a number past all keys
    """
    whole, width, item, stride = _whole(dtype, BY_ROWS), panel_columns(dtype), dtype.itemsize, _scores_stride(dtype)

    def scored(rows, a, a_stride, b, depth, first_key, last_key, scores, zeros, first_row):
        for key in range(first_key, last_key, width):
            for row in range(max(0, key - first_row) // ROWS * ROWS, rows, ROWS):
                whole(
                    min(ROWS, rows - row), a + row * a_stride, a_stride, b + key * depth * item,
                    scores + row * stride + (key - first_key) * item, stride, zeros, 0, depth,
                    min(width, last_key - key),
                )  # fmt: skip

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(scored, dtype.name))


@functools.cache
def _weighted(dtype: np.dtype) -> Any:
    """Return the Numba function that adds weights times packed rows, (rows, weights, b, b_rows, first_key, last_key,
    columns, sums, sums_stride, zeros, first_row): those of the keys first_key to last_key, up to the row's own number
    where first_row is not negative. sums (rows, columns) are written, not added to, where zeros is not 0.
    """
    whole, triangle, stride = _whole(dtype, BY_ROWS), _triangle(dtype, BY_ROWS), _scores_stride(dtype)
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

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(weighted, dtype.name))


@functools.cache
def _weighted_back(dtype: np.dtype) -> Any:
    """Return the Numba function that adds transposed weights times packed rows to the rows of an output.

    (keys, weights, b, rows, first_key, columns, out, out_stride, first_row): key k takes all rows, or those whose
    number is not below its own where first_row is not negative.
    """
    whole, triangle, stride = _whole(dtype, BY_COLUMNS), _triangle(dtype, BY_COLUMNS), _scores_stride(dtype)
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

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(weighted_back, dtype.name))


# --- packing


@functools.cache
def _packed(dtype: np.dtype) -> Any:
    """Return the Numba function that packs rows (n, D), `stride` bytes apart, into panels: [panel of D][n][width]."""
    copy, width, item = traced(copy_into_panel, dtype, lanes(dtype)), panel_columns(dtype), dtype.itemsize

    def packed(source, stride, rows, columns, target):
        for column in range(0, columns, width):
            for row in range(rows):
                at = target + (column * rows + row * width) * item
                copy(source + row * stride + column * item, at, columns - column)

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(packed, dtype.name))


@functools.cache
def _packed_transposed(dtype: np.dtype) -> Any:
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

    return numba.njit(**runtime.INNER)(runtime.unique_symbol(packed_transposed, dtype.name))


def _scale_rows(m: Machine, source: Value, stride: Value, target: Value, to: Value, rows: Value, columns: Value, scale):
    """Write rows times a number (at an address, a double) to rows `to` bytes apart."""
    factor = m.splat(m.load_double(scale))

    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * r, target + to * r
        m.over(0, columns, lambda i, mask: m.store(m.at(there, i), m.load(m.at(here, i), mask) * factor, mask))
        return []

    m.loop(0, rows, 1, [], row)


def _copy_rows(m: Machine, source: Value, stride: Value, target: Value, to: Value, rows: Value, columns: Value):
    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * r, target + to * r
        m.over(0, columns, lambda i, mask: m.store(m.at(there, i), m.load(m.at(here, i), mask), mask))
        return []

    m.loop(0, rows, 1, [], row)


def _clear_rows(m: Machine, target: Value, to: Value, rows: Value, columns: Value):
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


def _softmax(m, row, count, first, largest_at, total_at, sums, columns):
    _softmax_row(m, row, count, first, largest_at, total_at, sums, columns, None)


def _softmax_dropped(
    m, row, count, first, largest_at, total_at, sums, columns, group, seed, offset, threshold, factor
):  # fmt: skip
    dropping = _keeper(m, group, seed, offset, threshold, factor)
    _softmax_row(m, row, count, first, largest_at, total_at, sums, columns, dropping)


def _slopes(m, row, upstream, count, largest_at, total_at, along_at):
    _slopes_row(m, row, upstream, count, largest_at, total_at, along_at, None)


def _slopes_dropped(
    m, row, upstream, count, largest_at, total_at, along_at, group, seed, offset, threshold, factor
):  # fmt: skip
    dropping = _keeper(m, group, seed, offset, threshold, factor)
    _slopes_row(m, row, upstream, count, largest_at, total_at, along_at, dropping)


def _begin_rows(m, largest, total, rows):
    m.over(0, rows, lambda i, mask: m.store(m.at(largest, i), m.full(-np.inf), mask))
    m.over(0, rows, lambda i, mask: m.store(m.at(total, i), m.zero(), mask))


def _end_rows(m, sums, sums_stride, y, y_stride, rows, columns, largest, total):
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


def _dot_rows(m, a, a_stride, b, b_stride, rows, columns, out):
    """Write the dot products of rows."""

    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = a + a_stride * r, b + b_stride * r

        def add(i: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            return [m.fma(m.load(m.at(here, i), mask), m.load(m.at(there, i), mask), state[0])]

        sums = m.fold(0, columns, [m.zero()], add)
        _store_one(m, m.at(out, r), m.splat(m.reduce(sums[0], lambda a, b: a + b)))
        return []

    m.loop(0, rows, 1, [], row)


# --- kernels

# Entries of the table that both kernels read: addresses, sizes, byte strides of (B, H, rows).
_COMMON = [
    "q",
    "q_b",
    "q_h",
    "q_t",
    "k",
    "k_b",
    "k_h",
    "k_t",
    "v",
    "v_b",
    "v_h",
    "v_t",
    "y",
    "y_b",
    "y_h",
    "y_t",
    "largest",
    "total",
    "lengths",
    "H",
    "T",
    "S",
    "D",
    "causal",
    "scale",
    "threshold",
    "factor",
    "seed",
    "offset",
    "zeros",
    "scratch",
    "room",
    "row_bytes",
    "heads",
    "blocks",
    "parts",
]
(
    _Q, _Q_B, _Q_H, _Q_T, _K, _K_B, _K_H, _K_T, _V, _V_B, _V_H, _V_T, _Y, _Y_B, _Y_H, _Y_T, _LARGEST, _TOTAL, _LENGTHS,
    _H, _T, _S, _D, _CAUSAL, _SCALE, _THRESHOLD, _FACTOR, _SEED, _OFFSET, _ZEROS, _SCRATCH, _ROOM, _ROW_BYTES,
    _HEADS, _BLOCKS, _PARTS,
) = range(len(_COMMON))  # fmt: skip
_DY, _DY_B, _DY_H, _DY_T, _DQ, _DQ_B, _DQ_H, _DQ_T, _DK, _DK_B, _DK_H, _DK_T, _DV, _DV_B, _DV_H, _DV_T = range(
    len(_COMMON), len(_COMMON) + 16
)


@runtime.kernel
def _forward(dtype: np.dtype) -> Any:
    """pointers: those of _COMMON. Block b takes every `blocks`-th part of a head, and has `room` bytes of scratch."""
    item, stride = dtype.itemsize, _scores_stride(dtype)
    scored, weighted = _scored(dtype), _weighted(dtype)
    packed, packed_transposed = _packed(dtype), _packed_transposed(dtype)
    scale_rows, clear_rows = traced(_scale_rows, dtype), traced(_clear_rows, dtype)
    softmax, softmax_dropped = traced(_softmax, dtype), traced(_softmax_dropped, dtype, GROUP)
    begin, end = traced(_begin_rows, dtype), traced(_end_rows, dtype)
    width = panel_columns(dtype)

    def kernel(block, p):
        T, S, D = p[_T], p[_S], p[_D]
        wide = (D + width - 1) // width * width  # columns of packed rows
        long = (S + width - 1) // width * width
        row_bytes = p[_ROW_BYTES]
        keys_at = p[_SCRATCH] + block * p[_ROOM]
        values_at = keys_at + long * D * item
        queries_at = values_at + wide * S * item
        sums_at = queries_at + QUERIES * row_bytes
        scores_at = sums_at + QUERIES * row_bytes
        zeros = p[_ZEROS]
        units = (T + ROWS - 1) // ROWS
        for task in range(block, p[_HEADS] * p[_PARTS], p[_BLOCKS]):
            head, part = task // p[_PARTS], task % p[_PARTS]
            b, h = head // p[_H], head % p[_H]
            q = p[_Q] + b * p[_Q_B] + h * p[_Q_H]
            y = p[_Y] + b * p[_Y_B] + h * p[_Y_H]
            largest, total = p[_LARGEST] + head * T * item, p[_TOTAL] + head * T * item
            keys = S
            if p[_LENGTHS] != 0:
                keys = max(0, min(S, runtime.peek(p[_LENGTHS], b)))
            row = units * part // p[_PARTS] * ROWS
            last = min(T, units * (part + 1) // p[_PARTS] * ROWS)
            triangular = min(T, keys) if p[_CAUSAL] != 0 else 0
            if row >= last:
                continue
            if keys == 0:
                clear_rows(y + row * p[_Y_T], p[_Y_T], last - row, D)
                clear_rows(largest + row * item, 0, 1, last - row)
                clear_rows(total + row * item, 0, 1, last - row)
                continue
            used = min(keys, last) if p[_CAUSAL] != 0 else keys
            packed_transposed(p[_K] + b * p[_K_B] + h * p[_K_H], p[_K_T], used, D, keys_at)
            packed(p[_V] + b * p[_V_B] + h * p[_V_H], p[_V_T], used, D, values_at)
            while row < last:
                rows = min(QUERIES, last - row)
                if row < triangular:
                    rows = min(rows, triangular - row)
                slanted = row < triangular
                seen = row + rows if slanted else keys
                scale_rows(q + row * p[_Q_T], p[_Q_T], queries_at, row_bytes, rows, D, p[_SCALE])
                begin(largest + row * item, total + row * item, rows)
                for key in range(0, seen, KEYS):
                    last_key = min(seen, key + KEYS)
                    scored(
                        rows, queries_at, row_bytes, keys_at, D, key, last_key, scores_at, zeros,
                        row if slanted else S + ROWS,
                    )  # fmt: skip
                    for r in range(rows):
                        count = min(last_key, row + r + 1 if slanted else last_key) - key
                        if count <= 0:
                            continue
                        at = row + r
                        if p[_THRESHOLD] < 0:
                            softmax(
                                scores_at + r * stride, count, 1 if key == 0 else 0, largest + at * item,
                                total + at * item, sums_at + r * row_bytes, D,
                            )  # fmt: skip
                        else:
                            softmax_dropped(
                                scores_at + r * stride, count, 1 if key == 0 else 0, largest + at * item,
                                total + at * item, sums_at + r * row_bytes, D,
                                ((head * T + at) * ((S + GROUP - 1) // GROUP)) + key // GROUP, p[_SEED], p[_OFFSET],
                                p[_THRESHOLD], p[_FACTOR],
                            )  # fmt: skip
                    weighted(
                        rows, scores_at, values_at, used, key, last_key, wide, sums_at, row_bytes,
                        zeros if key == 0 else 0, row if slanted else -1,
                    )  # fmt: skip
                end(sums_at, row_bytes, y + row * p[_Y_T], p[_Y_T], rows, D, largest + row * item, total + row * item)
                row += rows

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype) -> Any:
    """pointers: those of _COMMON, then dy, dq, dk and dv with their strides. Block b takes every `blocks`-th head."""
    item, stride = dtype.itemsize, _scores_stride(dtype)
    scored, weighted, weighted_back = _scored(dtype), _weighted(dtype), _weighted_back(dtype)
    packed, packed_transposed = _packed(dtype), _packed_transposed(dtype)
    scale_rows, clear_rows = traced(_scale_rows, dtype), traced(_clear_rows, dtype)
    copy_rows, dot_rows = traced(_copy_rows, dtype), traced(_dot_rows, dtype)
    slopes, slopes_dropped = traced(_slopes, dtype), traced(_slopes_dropped, dtype, GROUP)
    width = panel_columns(dtype)

    def kernel(block, p):
        T, S, D = p[_T], p[_S], p[_D]
        wide = (D + width - 1) // width * width
        long = (S + width - 1) // width * width
        row_bytes = p[_ROW_BYTES]
        keys_at = p[_SCRATCH] + block * p[_ROOM]  # (D, S) in panels
        values_at = keys_at + long * D * item  # (D, S)
        rows_of_keys_at = values_at + long * D * item  # (S, D)
        queries_at = rows_of_keys_at + wide * S * item  # rows of this block, scaled
        upstream_at = queries_at + QUERIES * row_bytes
        sums_at = upstream_at + QUERIES * row_bytes
        packed_queries_at = sums_at + QUERIES * row_bytes
        packed_upstream_at = packed_queries_at + QUERIES * wide * item
        scores_at = packed_upstream_at + QUERIES * wide * item
        slopes_at = scores_at + QUERIES * stride
        along_at = slopes_at + QUERIES * stride
        zeros = p[_ZEROS]
        for head in range(block, p[_HEADS], p[_BLOCKS]):
            b, h = head // p[_H], head % p[_H]
            q = p[_Q] + b * p[_Q_B] + h * p[_Q_H]
            k = p[_K] + b * p[_K_B] + h * p[_K_H]
            v = p[_V] + b * p[_V_B] + h * p[_V_H]
            y = p[_Y] + b * p[_Y_B] + h * p[_Y_H]
            dy = p[_DY] + b * p[_DY_B] + h * p[_DY_H]
            dq = p[_DQ] + b * p[_DQ_B] + h * p[_DQ_H]
            dk = p[_DK] + b * p[_DK_B] + h * p[_DK_H]
            dv = p[_DV] + b * p[_DV_B] + h * p[_DV_H]
            largest, total = p[_LARGEST] + head * T * item, p[_TOTAL] + head * T * item
            keys = S
            if p[_LENGTHS] != 0:
                keys = max(0, min(S, runtime.peek(p[_LENGTHS], b)))
            triangular = 0
            if p[_CAUSAL] != 0:
                keys = min(keys, T)
                triangular = keys
            clear_rows(dk, p[_DK_T], S, D)
            clear_rows(dv, p[_DV_T], S, D)
            if keys == 0:
                clear_rows(dq, p[_DQ_T], T, D)
                continue
            packed_transposed(k, p[_K_T], keys, D, keys_at)
            packed_transposed(v, p[_V_T], keys, D, values_at)
            packed(k, p[_K_T], keys, D, rows_of_keys_at)
            row = 0
            while row < T:
                rows = min(QUERIES, T - row)
                if row < triangular:
                    rows = min(rows, triangular - row)
                slanted = row < triangular
                seen = row + rows if slanted else keys
                scale_rows(q + row * p[_Q_T], p[_Q_T], queries_at, row_bytes, rows, D, p[_SCALE])
                copy_rows(dy + row * p[_DY_T], p[_DY_T], upstream_at, row_bytes, rows, D)
                dot_rows(upstream_at, row_bytes, y + row * p[_Y_T], p[_Y_T], rows, D, along_at)
                packed(queries_at, row_bytes, rows, D, packed_queries_at)
                packed(upstream_at, row_bytes, rows, D, packed_upstream_at)
                for key in range(0, seen, KEYS):
                    last_key = min(seen, key + KEYS)
                    first_row = row if slanted else S + ROWS
                    scored(rows, queries_at, row_bytes, keys_at, D, key, last_key, scores_at, zeros, first_row)
                    scored(rows, upstream_at, row_bytes, values_at, D, key, last_key, slopes_at, zeros, first_row)
                    for r in range(rows):
                        count = min(last_key, row + r + 1 if slanted else last_key) - key
                        if count <= 0:
                            continue
                        at = row + r
                        if p[_THRESHOLD] < 0:
                            slopes(
                                scores_at + r * stride, slopes_at + r * stride, count, largest + at * item,
                                total + at * item, along_at + r * item,
                            )  # fmt: skip
                        else:
                            slopes_dropped(
                                scores_at + r * stride, slopes_at + r * stride, count, largest + at * item,
                                total + at * item, along_at + r * item,
                                (head * T + at) * ((S + GROUP - 1) // GROUP) + key // GROUP, p[_SEED], p[_OFFSET],
                                p[_THRESHOLD], p[_FACTOR],
                            )  # fmt: skip
                    first_row = row if slanted else -1
                    weighted(
                        rows, slopes_at, rows_of_keys_at, keys, key, last_key, wide, sums_at, row_bytes,
                        zeros if key == 0 else 0, first_row,
                    )  # fmt: skip
                    weighted_back(
                        last_key - key, slopes_at, packed_queries_at, rows, key, D, dk + key * p[_DK_T], p[_DK_T],
                        first_row,
                    )  # fmt: skip
                    weighted_back(
                        last_key - key, scores_at, packed_upstream_at, rows, key, D, dv + key * p[_DV_T], p[_DV_T],
                        first_row,
                    )  # fmt: skip
                scale_rows(sums_at, row_bytes, dq + row * p[_DQ_T], p[_DQ_T], rows, D, p[_SCALE])
                row += rows

    return kernel


# --- launchers


def _walk(array: np.ndarray) -> list[int]:
    """Return address and byte strides of (B, H, rows)."""
    return [runtime.address(array), *array.strides[:3]]


def _table(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, y: np.ndarray, largest: np.ndarray, total: np.ndarray, scale: float,
    causal: bool, lengths: np.ndarray | None, dropped: Dropped | None, parts: int, backward: bool,
) -> tuple[list[int], int, tuple[np.ndarray, ...]]:  # fmt: skip
    """Return the entries of _COMMON, the number of blocks, and what must stay alive."""
    dtype, item = q.dtype, q.dtype.itemsize
    (B, H, T, D), S = q.shape, k.shape[2]
    width, row_bytes = panel_columns(dtype), _row_stride(D, dtype)
    wide, long = (-(-n // width) * width for n in (D, S))
    room = (long * D + wide * S) * item + QUERIES * (2 * row_bytes + _scores_stride(dtype))
    if backward:
        room += long * D * item + QUERIES * (row_bytes + 2 * wide * item + _scores_stride(dtype) + item)
    room = -(-room // 4096) * 4096  # no two threads in one page
    heads = B * H
    blocks = min(heads * parts, runtime.num_threads())
    threshold, factor, seed, offset = (-1, 0.0, 0, 0) if dropped is None else dropped
    numbers = np.array([scale, factor])
    counts = np.array([seed, offset], np.uint64).view(np.int64)
    scratch, zeros = empty(blocks * room, np.uint8), np.zeros(width, dtype)
    table = [
        *_walk(q), *_walk(k), *_walk(v), *_walk(y), runtime.address(largest), runtime.address(total),
        0 if lengths is None else runtime.address(lengths), H, T, S, D, int(causal), runtime.address(numbers),
        threshold, runtime.address(numbers) + 8, *counts.tolist(), runtime.address(zeros), runtime.address(scratch), room,
        row_bytes, heads, blocks, parts,
    ]  # fmt: skip
    return table, blocks, (numbers, scratch, zeros)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    causal: bool,
    lengths: np.ndarray | None,
    dropped: Dropped | None,
    y: np.ndarray,
    largest: np.ndarray,
    total: np.ndarray,
) -> None:
    """Write y (B, H, T, D), largest and total (B, H, T); features lie side by side, the other axes anywhere."""
    (B, H, T, D), S = q.shape, k.shape[2]
    threads = runtime.num_threads()
    parts = max(1, min(-(-PARTS * threads // (B * H)), T // QUERIES)) if PARTS * threads > B * H else 1
    table, blocks, kept = _table(q, k, v, y, largest, total, scale, causal, lengths, dropped, parts, False)
    pointers = np.array(table, np.int64)
    runtime.run(_forward(q.dtype), blocks, pointers, parallel=B * H * T * S * D > SMALL)
    del kept


def attention_backward(
    dy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    y: np.ndarray,
    largest: np.ndarray,
    total: np.ndarray,
    scale: float,
    causal: bool,
    lengths: np.ndarray | None,
    dropped: Dropped | None,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Write dq (B, H, T, D), dk and dv (B, H, S, D), which lie as the others may."""
    (B, H, T, D), S = q.shape, k.shape[2]
    table, blocks, kept = _table(q, k, v, y, largest, total, scale, causal, lengths, dropped, 1, True)
    pointers = np.array([*table, *_walk(dy), *_walk(dq), *_walk(dk), *_walk(dv)], np.int64)
    runtime.run(_backward(q.dtype), blocks, pointers, parallel=B * H * T * S * D > SMALL)
    del kept
