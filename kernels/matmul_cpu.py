"""Matrix products of the layers and the recurrent steps, on the same threads as every other kernel.

    out (M, N) = a (M, K) @ b (K, N) + start,    start = 0, a bias (N,), or out itself

Why not BLAS: after a product OpenBLAS's threads spin for some 100 ms on the cores that the next kernel needs, and it
packs its right operand anew in every call, which for the 32 x 256 x 1024 product of one LSTM step costs half of the
time (150 to 195 GFLOP/s on two cores whose large products reach 400). Here the operand is packed once per sequence.

b is packed into panels: NR columns, all K rows, [panel][k][NR], zeros past column N. A micro-kernel keeps a tile of up
to MR rows by NR columns in registers over k. Each element of the result is one chain of fused multiply-adds in
the order of k for every KC steps, added to what it starts with: so the bits of the result depend neither on the number
of threads nor on how rows fell into tiles.

Flops: 2 M N K. Bytes: K N read and written for the packing, then M K + K N + 2 M N.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .simd import Machine, Value, traced

VECTOR_BYTES = 64
# 32 vector registers of 64 bytes hold a tile of 12 x 2 vectors, two of b and one of a; 16 of 32 bytes hold 6 x 2.
ROWS, VECTORS = (12, 2) if "+avx512f" in runtime.target()[2] else (6, 1)
# At most so many steps of k at a time, KC, of equal count: 4 KB of a row. Fewer bring rows of c back from memory more
# often: with 384, and what was left over at the end, products took 2 to 9 % longer. The part of a panel of b then comes
# from a second-level cache for every tile, which is no slower.
DEPTH_BYTES = 4096
# Rows of one task: their part of a, 768 KB at most, stays in a second-level cache, and each panel of b is fetched once
# for all of them.
BLOCK_ROWS = 16 * ROWS
# Rows that lie a multiple of this apart crowd into a few sets of a first-level cache, and are copied to lie otherwise:
# 2048-cubed took 0.7 of the time, 2048 x 1024 by 1024 x 256 0.8, two threads; at other strides copying costs 4 %.
CROWDED_STRIDE = 1024
COPY_PANELS = 4  # from so many panels on; fewer use a row too rarely


def lanes(dtype: np.dtype) -> int:
    return VECTOR_BYTES // dtype.itemsize


def panel_columns(dtype: np.dtype) -> int:
    """Return NR, the number of columns in a panel of packed b."""
    return VECTORS * lanes(dtype)


def most_steps(dtype: np.dtype) -> int:
    """Return the most that KC may be."""
    return DEPTH_BYTES // dtype.itemsize


# Panels at once for a single row, whose two chains of sums are too few to hide the latency of an addition: a batch of 1
# took 8 to 23 % less time at depths from 256 on, but an LSTM's step a quarter more at 128.
WIDE, WIDE_DEPTH = 4, 256
# How the left operand lies in memory: rows, or columns, of adjacent elements; or [group of ROWS][k][ROWS].
BY_ROWS, BY_COLUMNS, PACKED = "rows", "columns", "packed"


@functools.cache
def tile(dtype: np.dtype, left: str, vectors: int, wide: bool = False) -> Any:
    """Return the micro-kernel (rows, a, a_stride, b, b_stride, c, c_stride, start, start_stride, depth, columns).

    All but rows, depth and columns are addresses and bytes.

    rows : 1 to ROWS
    a : first element of the tile's rows, which lie `a_stride` bytes apart if BY_ROWS; else its columns do
    b : panel, [k][vectors]; if `wide`, WIDE // rows panels, `b_stride` apart, for 1 row or 2
    c (rows, columns) : out; `start` what the sums begin with, with a stride of 0 for one row shared by all
    """
    item = dtype.itemsize

    def micro(m, rows, a, a_stride, b, b_stride, c, c_stride, start, start_stride, depth, columns):
        def of_height(height: int) -> None:
            # The vectors of a row: which panel they lie in, and where in it.
            places = [(p, v) for p in range(WIDE // height if wide else 1) for v in range(vectors)]
            panels = [b + b_stride * p if p else b for p, v in places]
            masks = [m.mask(columns - v * m.lanes) for v in range(len(places))]

            def step(k: Value, sums: list[Value]) -> list[Value]:
                at = k * (vectors * VECTOR_BYTES)
                right = [m.load(panel + at + v * VECTOR_BYTES) for panel, (_, v) in zip(panels, places, strict=True)]
                out = []
                for r in range(height):
                    at = a + a_stride * r + k * item if left == BY_ROWS else a + a_stride * k + r * item
                    factor = m.load_scalar(at)
                    out += [m.fma(factor, b, sums[r * len(right) + v]) for v, b in enumerate(right)]
                return out

            def cell(base: Value, stride: Value, r: int, v: int) -> Value:
                return base + stride * r + v * VECTOR_BYTES

            cells = [(r, v) for r in range(height) for v in range(len(places))]
            # Brought near while the sums run: waiting for rows of a large result costs a tenth of the time.
            for r in range(height):
                m.prefetch(cell(start, start_stride, r, 0))
                m.prefetch(cell(c, c_stride, r, 0), vectors * VECTOR_BYTES)
            sums = m.loop(0, depth, 1, [m.zero() for _ in cells], step)
            for (r, v), value in zip(cells, sums, strict=True):
                m.store(cell(c, c_stride, r, v), m.load(cell(start, start_stride, r, v), masks[v]) + value, masks[v])

        heights = (1, 2) if wide else range(1, ROWS + 1)
        m.switch(rows, {height: functools.partial(of_height, height) for height in heights})

    return traced(micro, dtype, lanes(dtype))


@functools.cache
def rows_by_panels(dtype: np.dtype, left: str = BY_ROWS, vectors: int = VECTORS) -> Any:
    """Return the Numba function that multiplies a few rows by packed panels, for use inside other kernels.

    (a, a_stride, rows, b, k, first_panel, panels, n, c, c_stride, start, start_stride, k_first, k_last)

    a (rows, k) : address, rows `a_stride` bytes apart; columns if BY_COLUMNS; if PACKED, the part k_first to k_last
        alone, and no stride
    b : address of the packed panels, each `vectors` wide; c, start (rows, n): addresses and byte strides
    """
    narrow, wide = tile(dtype, left, vectors), tile(dtype, left, vectors, True)
    item = dtype.itemsize
    width = vectors * lanes(dtype)
    packed, by_columns = left == PACKED, left == BY_COLUMNS

    def multiply(a, a_stride, rows, b, k, first_panel, panels, n, c, c_stride, start, start_stride, k_first, k_last):
        groups = (rows + ROWS - 1) // ROWS
        depth = k_last - k_first
        last_panel = first_panel + panels
        if rows <= 2 and depth >= WIDE_DEPTH:
            at_once = WIDE // rows
            while first_panel + at_once <= last_panel:
                column = first_panel * width
                wide(
                    rows,
                    a if packed else a + k_first * (a_stride if by_columns else item),
                    ROWS * item if packed else a_stride,
                    b + (first_panel * k + k_first) * width * item,
                    k * width * item,
                    c + column * item,
                    c_stride,
                    start + column * item,
                    start_stride,
                    depth,
                    min(width * at_once, n - column),
                )
                first_panel += at_once
        for panel in range(first_panel, last_panel):
            column = panel * width
            b_panel = b + (panel * k + k_first) * width * item
            for group in range(groups):
                if packed:
                    row = group * ROWS
                    height = min(ROWS, rows - row)
                    a_tile = a + row * depth * item
                else:  # even heights: 16 rows are two tiles of 8, not one of 12 and one of 4
                    row = rows * group // groups
                    height = rows * (group + 1) // groups - row
                    a_tile = a + row * item + k_first * a_stride if by_columns else a + row * a_stride + k_first * item
                narrow(
                    height,
                    a_tile,
                    ROWS * item if packed else a_stride,
                    b_panel,
                    0,
                    c + row * c_stride + column * item,
                    c_stride,
                    start + row * start_stride + column * item,
                    start_stride,
                    depth,
                    min(width, n - column),
                )

    return runtime.inner(multiply)


# --- packing


def copy_rows(m: Machine, source: Value, target: Value, columns: Value) -> None:
    """Copy one row of b into a panel: `columns` elements, then zeros."""
    for v in range(VECTORS):
        m.store(target + v * VECTOR_BYTES, m.load(source + v * VECTOR_BYTES, m.mask(columns - v * m.lanes)))


def copy_transposed(m: Machine, source: Value, stride: Value, target: Value, columns: Value, rows: Value) -> None:
    """Transpose `columns` rows of the source, `stride` bytes apart and `rows` elements long, into a square of b."""
    vectors = [m.load(source + stride * c, m.mask(m.choose(columns > c, rows, 0))) for c in range(m.lanes)]
    for k, vector in enumerate(m.transpose(vectors)):
        m.when(rows > k, functools.partial(m.store, target + k * (VECTORS * VECTOR_BYTES), vector))


@runtime.kernel
def _pack(dtype: np.dtype, transposed: bool) -> Any:
    """Pack one panel of b. pointers: b, target, stride in bytes, K, N."""
    item, width, step = dtype.itemsize, panel_columns(dtype), lanes(dtype)
    rows_into_panel = traced(copy_rows, dtype, step)
    transposed_into_panel = traced(copy_transposed, dtype, step)

    def pack(panel, pointers):
        source, stride, k, n = pointers[0], pointers[2], pointers[3], pointers[4]
        column = panel * width
        target = pointers[1] + column * k * item
        if transposed:
            for first in range(0, width, step):
                columns = min(step, max(n - column - first, 0))
                for row in range(0, k, step):
                    transposed_into_panel(
                        source + (column + first) * stride + row * item,
                        stride,
                        target + (row * width + first) * item,
                        columns,
                        min(step, k - row),
                    )
        else:
            for row in range(k):
                rows_into_panel(source + row * stride + column * item, target + row * width * item, n - column)

    return pack


def pack(queue: runtime.Queue, b: np.ndarray) -> np.ndarray:
    """Return an array for b (K, N) in panels, which the queue is to fill.

    b is row-major or the transpose of a row-major array, with any row stride.
    """
    k, n = b.shape
    dtype = b.dtype
    width = panel_columns(dtype)
    panels = -(-n // width)
    packed = empty(panels * width * k, dtype)
    rows, columns = b.strides
    transposed = columns != dtype.itemsize and n > 1
    if transposed and rows != dtype.itemsize and k > 1:
        b, transposed = np.ascontiguousarray(b), False
        rows = b.strides[0]
    pointers = b, packed, columns if transposed else rows, k, n
    queue.launches.append((_pack(dtype, transposed), panels, pointers, k * n > 16384))
    return packed


# --- the product


def _pack_rows(m: Machine, source: Value, stride: Value, target: Value, rows: Value, depth: Value) -> None:
    """Pack a block of a, whose columns are adjacent in memory, into groups of ROWS rows: [group][k][ROWS].

    Column by column: the memory is read in its order, and neighbours share a cache line.
    """
    groups = rows // ROWS
    rest = rows - groups * ROWS
    group_bytes = depth * (ROWS * m.dtype.itemsize)

    def copy(source: Value, target: Value, count: Value) -> None:
        for first in range(0, ROWS, m.lanes):
            mask = m.mask(count - first)
            m.store(m.at(target, first), m.load(m.at(source, first), mask), mask)

    def column(k: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * k, m.at(target, k * ROWS)

        def group(g: Value, state: list[Value]) -> list[Value]:
            copy(m.at(here, g * ROWS), there + group_bytes * g, m.integer(ROWS))
            return []

        m.loop(0, groups, 1, [], group)
        m.when(rest > 0, lambda: copy(m.at(here, groups * ROWS), there + group_bytes * groups, rest))
        return []

    m.loop(0, depth, 1, [], column)


def _copy_left(
    m: Machine, source: Value, stride: Value, target: Value, target_stride: Value, rows: Value, depth: Value
) -> None:
    """Copy rows of a."""

    def row(r: Value, state: list[Value]) -> list[Value]:
        here, there = source + stride * r, target + target_stride * r
        m.over(0, depth, lambda i, mask: m.store(m.at(there, i), m.load_ahead(m.at(here, i), mask), mask))
        return []

    m.loop(0, rows, 1, [], row)


@runtime.kernel
def _product(dtype: np.dtype, packed: bool) -> Any:
    """Compute a block of rows times a range of panels, of one or more right operands.

    pointers: a, scratch, a's stride, M, K, rows per block, row blocks, ranges of panels, scratch bytes per block, KC,
    stride of copied rows or 0, right operands, then for each of those: packed b, N, c, its stride, start, its stride.
    If `packed`, a is the transpose of a row-major array, and is packed here: once for all right operands. Else its rows
    are copied here if the copies have a stride.
    """
    multiply = rows_by_panels(dtype, PACKED if packed else BY_ROWS)
    pack_rows = traced(_pack_rows, dtype, lanes(dtype))
    copy_left = traced(_copy_left, dtype)
    item, width = dtype.itemsize, panel_columns(dtype)

    def product(block, pointers):
        a_stride, rows, k, block_rows, row_blocks = pointers[2], pointers[3], pointers[4], pointers[5], pointers[6]
        ranges, chunk, copy_stride, operands = pointers[7], pointers[9], pointers[10], pointers[11]
        scratch = pointers[1] + block * pointers[8]
        row = block % row_blocks * block_rows
        part = block // row_blocks
        height = min(block_rows, rows - row)
        left, left_stride = pointers[0] + row * a_stride, a_stride
        for k_first in range(0, k, chunk):
            k_last = min(k, k_first + chunk)
            if packed:
                pack_rows(pointers[0] + k_first * a_stride + row * item, a_stride, scratch, height, k_last - k_first)
                left = scratch
            elif copy_stride != 0:
                copy_left(
                    pointers[0] + row * a_stride + k_first * item, a_stride, scratch, copy_stride, height,
                    k_last - k_first,
                )  # fmt: skip
                left, left_stride = scratch - k_first * item, copy_stride
            for operand in range(operands):
                at = 12 + 6 * operand
                b, n, c, c_stride = pointers[at], pointers[at + 1], pointers[at + 2], pointers[at + 3]
                start, start_stride = (c, c_stride) if k_first else (pointers[at + 4], pointers[at + 5])
                panels = (n + width - 1) // width
                first_panel, last_panel = panels * part // ranges, panels * (part + 1) // ranges
                multiply(
                    left, left_stride, height, b, k, first_panel, last_panel - first_panel, n,
                    c + row * c_stride, c_stride, start + row * start_stride, start_stride, k_first, k_last,
                )  # fmt: skip

    return product


@functools.lru_cache(maxsize=64)
def zeros(n: int, dtype: np.dtype) -> np.ndarray:
    return np.zeros(n, dtype)


def matmul(
    a: np.ndarray,
    b: np.ndarray | Sequence[np.ndarray],
    out: np.ndarray | Sequence[np.ndarray],
    bias: np.ndarray | None = None,
    accumulate: bool = False,
) -> None:
    """Write a @ b + bias into out, or add a @ b to it.

    a (M, K), b (K, N) : row-major or transposed views of row-major arrays, any row stride, same dtype
    out (M, N) : rows adjacent in memory, no overlap with a and b
    bias (N,) : contiguous

    Several b, each with its out, share one reading of a.
    """
    queue = runtime.Queue()
    product(queue, a, b, out, bias, accumulate)
    queue.run()


def product(
    queue: runtime.Queue,
    a: np.ndarray,
    b: np.ndarray | Sequence[np.ndarray],
    out: np.ndarray | Sequence[np.ndarray],
    bias: np.ndarray | None = None,
    accumulate: bool = False,
) -> None:
    """Put `matmul` into a queue; of several b, each may be an array that `pack` returned."""
    bs = [b] if isinstance(b, np.ndarray) else b
    outs = [out] if isinstance(out, np.ndarray) else out
    dtype = a.dtype
    rows, k = a.shape
    if rows == 0 or k == 0:
        if rows and not accumulate:
            for target in outs:
                target[...] = 0 if bias is None else bias
        return
    transposed = a.strides[1] != a.itemsize and k > 1
    if transposed and a.strides[0] != a.itemsize and rows > 1:
        a, transposed = np.ascontiguousarray(a), False
    operands: list[Any] = []
    columns = 0
    for right, target in zip(bs, outs, strict=True):
        n = target.shape[1]
        if n == 0:
            continue
        packed_b = right if right.ndim == 1 else pack(queue, right)
        start = target if accumulate else zeros(n, dtype) if bias is None else bias
        strides = (target.strides[0], target.strides[0] if accumulate else 0)
        operands += packed_b, n, target, strides[0], start, strides[1]
        columns += n
    if not operands:
        return

    threads = runtime.num_threads()
    # As many blocks for each thread, of equal size; rows too few for that are split by columns.
    row_blocks = threads * -(-rows // (threads * BLOCK_ROWS)) if rows >= threads * ROWS else -(-rows // ROWS)
    block_rows = -(-rows // row_blocks)
    row_blocks = -(-rows // block_rows)
    ranges = -(-threads // row_blocks)
    chunk = -(-k // -(-k // most_steps(dtype)))
    scratch_bytes = copy_stride = 0
    if transposed:
        scratch_bytes = -(-block_rows // ROWS) * ROWS * chunk * dtype.itemsize
    elif a.strides[0] % CROWDED_STRIDE == 0 and rows > ROWS and columns > COPY_PANELS * panel_columns(dtype):
        copy_stride = (-(-chunk * dtype.itemsize // VECTOR_BYTES) | 1) * VECTOR_BYTES  # an odd number of cache lines
        scratch_bytes = block_rows * copy_stride
    scratch_bytes = -(-scratch_bytes // 4096) * 4096  # no two threads in one page
    scratch = empty(row_blocks * ranges * scratch_bytes, np.uint8) if scratch_bytes else None
    pointers = (
        a, scratch, a.strides[1] if transposed else a.strides[0], rows, k, block_rows, row_blocks, ranges,
        scratch_bytes, chunk, copy_stride, len(operands) // 6, *operands,
    )  # fmt: skip
    parallel = rows * columns * k > 2**17
    queue.launches.append((_product(dtype, transposed), row_blocks * ranges, pointers, parallel))
