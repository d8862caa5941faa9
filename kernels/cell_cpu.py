"""One step of an LSTM or GRU: what their kernels share where T is 1.

A sequence packs its weights once for all steps. A single step spent a sixth of its time on that (B = 32, I = H =
256), so here the weights are read as they lie, and the small operand is packed instead: columns of x^T, of h^T and of
the gradients' transpose (panels as in matmul_cpu.py, a column for each sequence of the batch):

    (W x^T)  rows of W are the tile's rows          W^T dz^T  columns of W are          dz^T x  rows of dz^T are

A task takes UNITS hidden units, with all of their gates, so that gates and weight gradients follow their products in
the same launch. Each thread packs x and h for itself, which saves a launch.

Dimensions: B batch, I input, H hidden. S is the number of rows of dz^T: 4H, of the gates' sums for the LSTM; of r, z, n
and of W_hn h + b_hn for the GRU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import runtime
from .matmul_cpu import BY_COLUMNS, VECTORS, lanes, most_steps, panel_columns, rows_by_panels
from .recurrent_cpu import zero_row
from .simd import Machine, Value, traced

Array = np.ndarray

UNITS = 32
PARALLEL_FLOPS = 1 << 18


def batch_vectors(batch: int, dtype: np.dtype) -> int:
    """Return how many vectors wide the panels are whose columns are sequences."""
    return 1 if batch <= lanes(dtype) else VECTORS


def padded_batch(batch: int, dtype: np.dtype) -> int:
    """Return how many columns those panels have together."""
    width = batch_vectors(batch, dtype) * lanes(dtype)
    return -(-batch // width) * width


def padded_columns(n: int, dtype: np.dtype) -> int:
    """Return how many columns the panels of a matrix with n columns have together."""
    width = panel_columns(dtype)
    return -(-n // width) * width


# --- moving rows and columns


def _turn_square(
    m: Machine,
    source: Value,
    stride: Value,
    target: Value,
    target_stride: Value,
    rows: Value,
    columns: Value,
    kept: Value,
) -> None:
    """Transpose up to lanes x lanes elements. Rows of the target get `kept` elements, zeros from `rows` on."""
    square = [m.load(source + stride * r, m.mask(m.choose(rows > r, columns, 0))) for r in range(m.lanes)]
    mask = m.mask(kept)
    for c, vector in enumerate(m.transpose(square)):
        m.when(columns > c, functools.partial(m.store, target + target_stride * c, vector, mask))


@functools.cache
def turn(dtype: np.dtype, vectors: int = 0) -> Any:
    """Return the function that writes the transpose of (rows, columns) to (columns, rows); strides in bytes.

    vectors : fill the rows of the target with zeros up to a multiple of so many vectors
    """
    square = traced(_turn_square, dtype, lanes(dtype))
    item, step = dtype.itemsize, lanes(dtype)
    width = max(vectors, 1) * step

    def turn_block(source, stride, rows, columns, target, target_stride):
        for row in range(0, (rows + width - 1) // width * width, step):
            height = min(step, max(rows - row, 0))
            for column in range(0, columns, step):
                square(
                    source + row * stride + column * item,
                    stride,
                    target + column * target_stride + row * item,
                    target_stride,
                    height,
                    min(step, columns - column),
                    step if vectors else height,
                )

    return runtime.inner(turn_block)


@functools.cache
def column_panels(dtype: np.dtype, vectors: int) -> Any:
    """Return the function (x, batch, columns, target) that packs x^T, x (batch, columns) contiguous."""
    turn_block = turn(dtype, vectors)
    item, width = dtype.itemsize, vectors * lanes(dtype)

    def pack(x, batch, columns, target):
        for first in range(0, batch, width):
            rows = min(width, batch - first)
            at = first * columns * item
            turn_block(x + at, columns * item, rows, columns, target + at, width * item)

    return runtime.inner(pack)


def _copy_panel(m: Machine, source: Value, stride: Value, target: Value, rows: Value, columns: Value) -> None:
    masks = [m.mask(columns - v * m.lanes) for v in range(VECTORS)]
    size = m.lanes * m.dtype.itemsize

    def row(r: Value, state: list[Value]) -> list[Value]:
        for v, mask in enumerate(masks):
            m.store(target + r * (VECTORS * size) + v * size, m.load(source + stride * r + v * size, mask))
        return []

    m.loop(0, rows, 1, [], row)


@functools.cache
def row_panels(dtype: np.dtype) -> Any:
    """Return the function (x, batch, columns, target) that packs x (batch, columns), which is contiguous."""
    copy = traced(_copy_panel, dtype, lanes(dtype))
    item, width = dtype.itemsize, panel_columns(dtype)

    def pack(x, batch, columns, target):
        for first in range(0, columns, width):
            copy(x + first * item, columns * item, target + first * batch * item, batch, columns - first)

    return runtime.inner(pack)


def fill_rows(m: Machine, target: Value, stride: Value, a: Value, b: Value, rows: Value, columns: Value) -> None:
    """Fill row r of the target with a[r] + b[r]."""

    def row(r: Value, state: list[Value]) -> list[Value]:
        value = m.load_scalar(m.at(a, r)) + m.load_scalar(m.at(b, r))
        m.over(0, columns, lambda i, mask: m.store(m.at(target + stride * r, i), value, mask))
        return []

    m.loop(0, rows, 1, [], row)


def sum_batch(m: Machine, source: Value, stride: Value, rows: Value, target: Value, columns: Value) -> None:
    """Write the sum over `rows` rows, taken in double precision: a bias's gradient."""
    wide = m.with_lanes(m.lanes, np.float64)

    def body(index: Value, mask: Value | None) -> None:
        at = m.at(source, index)

        def add(r: Value, state: list[Value]) -> list[Value]:
            return [state[0] + m.convert(m.load(at + stride * r, mask), np.float64)]

        total = m.loop(0, rows, 1, [wide.zero()], add)[0]
        m.store(m.at(target, index), m.convert(total, m.dtype), mask)

    m.over(0, columns, body)


# --- products


@functools.cache
def add_product(dtype: np.dtype, vectors: int, left: str) -> Any:
    """Return the function that adds a (rows, k) times packed panels (k, columns) to c; blocked over k.

    (a, a_stride, rows, b, b_rows, panels, c, c_stride, k); b_rows: rows of a panel, k or more of them
    """
    multiply = rows_by_panels(dtype, left, vectors)
    columns, steps = vectors * lanes(dtype), most_steps(dtype)

    def add(a, a_stride, rows, b, b_rows, panels, c, c_stride, k):
        for first in range(0, k, steps):
            last = min(k, first + steps)
            multiply(a, a_stride, rows, b, b_rows, 0, panels, panels * columns, c, c_stride, c, c_stride, first, last)

    return runtime.inner(add)


@functools.cache
def weight_rows(dtype: np.dtype, vectors: int) -> Any:
    """Return the function that writes some rows of dz^T x, a weight's gradient.

    (dz, dz_rows, row, rows, x, batch, n, out, nothing): dz panels of dz^T, x row panels, out (rows, n) contiguous,
    nothing (n,) zeros
    """
    multiply = rows_by_panels(dtype)
    item, width, columns = dtype.itemsize, vectors * lanes(dtype), panel_columns(dtype)

    def write(dz, dz_rows, row, rows, x, batch, n, out, nothing):
        panels = (n + columns - 1) // columns
        for first in range(0, batch, width):
            left = dz + (first * dz_rows + row * width - first) * item
            start, start_stride = (out, n * item) if first else (nothing, 0)
            last = min(batch, first + width)
            multiply(left, width * item, rows, x, batch, 0, panels, n, out, n * item, start, start_stride, first, last)

    return runtime.inner(write)


@runtime.kernel(vectors=sorted({1, VECTORS}))
def _input_gradients(dtype: np.dtype, vectors: int) -> Any:
    """Write some columns of dx = dz W_ih and dh = dz W_hh.

    pointers: B, S, panels of dz^T, scratch, scratch bytes per task, tasks; then for x and for h: n, W (k, n),
    split, k, out (B, n), accumulate. Rows of W from `split` on belong to the last rows of dz^T.
    """
    add = add_product(dtype, vectors, BY_COLUMNS)
    turn_in, turn_out, clear = turn(dtype, vectors), turn(dtype), traced(zero_row, dtype)
    item, width = dtype.itemsize, vectors * lanes(dtype)

    def kernel(block, pointers):
        batch, dz_rows, dz = pointers[0], pointers[1], pointers[2]
        sums = pointers[3] + block * pointers[4]
        tasks = pointers[5]
        panels = (batch + width - 1) // width
        stride = panels * width * item
        for side in range(2):
            at = 6 + 6 * side
            n, weight, split, k = pointers[at], pointers[at + 1], pointers[at + 2], pointers[at + 3]
            out, accumulate = pointers[at + 4], pointers[at + 5]
            chunks = (n + UNITS - 1) // UNITS
            for chunk in range(chunks * block // tasks, chunks * (block + 1) // tasks):
                first = chunk * UNITS
                rows = min(UNITS, n - first)
                if accumulate:
                    turn_in(out + first * item, n * item, batch, rows, sums, stride)
                else:
                    clear(sums, rows * panels * width)
                a = weight + first * item
                add(a, n * item, rows, dz, dz_rows, panels, sums, stride, split)
                shifted = dz + (dz_rows - k) * width * item
                a += split * n * item
                add(a, n * item, rows, shifted + split * width * item, dz_rows, panels, sums, stride, k - split)
                turn_out(sums, stride, rows, batch, out + first * item, n * item)

    return kernel


# --- launchers


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a single step of (batch, inputs, hidden) is run, worked out once.

    tasks : into how many parts the hidden units are split: one per thread, one alone where there is little to do
    vectors : how wide the panels are whose columns are sequences
    forward_bytes, backward_bytes, gradients_bytes : scratch of one task, its own panels and sums, in forward, in
        backward to the gates, and in `input_gradients`; no two tasks share a page
    forward_size, backward_size : numbers float64 of all memory that forward and backward need for themselves
    dz_at, panels_at : bytes from the beginning of backward's, of the gradients of all sums (B, 4H) and their panels
    """

    tasks: int
    vectors: int
    forward_bytes: int
    backward_bytes: int
    gradients_bytes: int
    forward_size: int
    backward_size: int
    dz_at: int
    panels_at: int


def _pages(elements: int, dtype: np.dtype) -> int:
    return -(-elements * dtype.itemsize // 4096) * 4096


@functools.lru_cache(maxsize=256)
def step_plan(batch: int, inputs: int, hidden: int, dtype: np.dtype, threads: int) -> StepPlan:
    tasks = 1 if 8 * batch * hidden * (inputs + hidden) < PARALLEL_FLOPS else min(threads, -(-hidden // UNITS))
    vectors = batch_vectors(batch, dtype)
    columns = padded_batch(batch, dtype)
    forward = _pages(columns * (inputs + hidden + UNITS), dtype)
    backward = _pages(batch * (padded_columns(inputs, dtype) + padded_columns(hidden, dtype)), dtype)
    gradients = _pages(UNITS * columns, dtype)
    dz_at = tasks * max(backward, gradients)  # the one runs after the other
    panels_at = dz_at + -(-4 * hidden * batch * dtype.itemsize // 64) * 64
    end = panels_at + 4 * hidden * columns * dtype.itemsize
    sizes = tasks * forward // 8, -(-end // 8)
    return StepPlan(tasks, vectors, forward, backward, gradients, *sizes, dz_at, panels_at)


def input_gradients(
    plan: StepPlan,
    batch: int,
    scratch: int,
    weights: tuple[Array, Array],
    outs: tuple[Array, Array],
    split: int,
    accumulate: bool,
) -> runtime.Launch:
    """Return what writes dx = dz W_ih and dh = dz W_hh, the latter added to what is there if `accumulate`.

    scratch : address of backward's memory, with the panels of dz^T, (4H, B)
    split : how many rows of W_hh belong to the first rows of dz^T; the others belong to its last
    """
    weight_ih, weight_hh = weights
    dx, dh = outs
    rows, inputs = weight_ih.shape
    hidden = weight_hh.shape[1]
    pointers = (
        batch, 4 * hidden, scratch + plan.panels_at, scratch, plan.gradients_bytes, plan.tasks,
        inputs, weight_ih, rows, rows, dx, False,
        hidden, weight_hh, split, rows, dh, accumulate,
    )  # fmt: skip
    return _input_gradients(dx.dtype, plan.vectors), plan.tasks, pointers, True
