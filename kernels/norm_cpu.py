"""Norms of a list of tensors in one pass and one launch.

    ord 1: sum |a|      ord 2: sqrt(sum a^2)      ord inf: max |a|

Each block of a tensor gives one double; those are added up in a fixed order, so the bits of the result don't depend on
the number of threads. Squares of float32 are summed in double, where they neither overflow nor underflow. Squares of
float64 may: a tensor whose sum leaves the safe range is read again, scaled by a power of two. A NaN gives NaN.

Bytes: 4 an element in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import runtime
from .runtime import peek, peek_double, poke_double
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, Table, table_of, tensor_of_block
from .sums import pairwise

# Sums of squares in here have lost nothing: no square overflowed, and what underflowed is below their last digit.
SAFE_SQUARES = (1e-280, 1e300)
UNSAFE = -1.0  # in place of a norm of other squares
NORM_EPS = 1e-6  # as in fastgrad.clipping
# How far ahead lines are asked for, where a single stream is read: at 2048 it took 1.12 times as long on one thread,
# 1.08 times on two (67 M float32).
AHEAD_BYTES = 4096


def _larger(m: Machine, a: Value, b: Value) -> Value:
    """Return the larger of two; a NaN on either side wins."""
    return m.select((b > a) | m.is_nan(b), b, a)


def _reduction(
    dtype: np.dtype,
    wide: type,
    step: Callable[[Machine, Value, Value, Value], Value],
    combine: Callable[[Machine, Value, Value], Value],
) -> Any:
    """Return a kernel that folds each block into one double.

    wide : dtype of the accumulators
    step : (m, total, vector, the tensor's own factor) -> total, at the accumulators' dtype
    combine : (m, a, b) -> one of two totals
    pointers : table, tensors, starts, sizes, where to write the doubles, factors of the tensors or 0
    """

    def chunk(m, base, first, last, target, factor_address):
        sums = m.with_lanes(m.lanes, wide)
        factor = sums.full(1.0)
        if wide is np.float64 and dtype == np.float64:
            factor = sums.splat(m.load_double(factor_address))

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            value = m.load_ahead(base + index * dtype.itemsize, mask, AHEAD_BYTES)
            return [step(sums, state[0], m.convert(value, wide), factor)]

        (total,) = m.fold(first, last, [sums.zero()], body)
        m.store_double(target, m.reduce(total, lambda a, b: combine(sums.with_lanes(a.ir.type.count), a, b)))

    run_chunk = traced(chunk, dtype)

    def kernel(block, pointers):
        starts, factors = pointers[2], pointers[5]
        tensor = tensor_of_block(starts, pointers[1], block)
        first = (block - runtime.peek(starts, tensor)) * BLOCK
        last = min(first + BLOCK, runtime.peek(pointers[3], tensor))
        run_chunk(runtime.peek(pointers[0], tensor), first, last, pointers[4] + block * 8, factors + tensor * 8)

    return kernel


@runtime.kernel
def _sum_abs(dtype: np.dtype) -> Any:
    return _reduction(dtype, np.float64, lambda m, s, x, f: s + m.abs(x), lambda m, a, b: a + b)


@runtime.kernel
def _sum_squares(dtype: np.dtype) -> Any:
    def step(m: Machine, total: Value, x: Value, factor: Value) -> Value:
        x = x * factor if dtype == np.float64 else x
        return m.fma(x, x, total)

    return _reduction(dtype, np.float64, step, lambda m, a, b: a + b)


@runtime.kernel
def _max_abs(dtype: np.dtype) -> Any:
    return _reduction(dtype, dtype.type, lambda m, s, x, f: _larger(m, s, m.abs(x)), _larger)


@runtime.inner
def _largest(values, count):
    """Return the largest of numbers that are not negative, 0 of none; a NaN wins."""
    largest = 0.0
    for i in range(count):
        value = peek_double(values, i)
        if value > largest or value != value:
            largest = value
    return largest


@runtime.inner
def sum_blocks(partial, starts, tensor):
    first, count = peek(starts, tensor), peek(starts, tensor + 1) - peek(starts, tensor)
    if count == 0:
        return 0.0
    if count == 1:
        return peek_double(partial, first)
    return peek_double(partial, first) + pairwise(partial + (first + 1) * 8, count - 1)


@runtime.inner
def _norm_of_norms(norms, tensors, scratch):
    largest = _largest(norms, tensors)
    if not 0.0 < largest < math.inf:
        return largest
    exponent = math.frexp(largest)[1]
    for k in range(tensors):
        scaled = math.ldexp(peek_double(norms, k), -exponent)
        poke_double(scratch, k, scaled * scaled)
    return math.ldexp(math.sqrt(pairwise(scratch, tensors)), exponent)


def _fold_blocks(partial, starts, tensors, largest, result):
    # of all tensors together: their sum, or the largest
    for k in range(tensors):
        if largest:
            first, end = peek(starts, k), peek(starts, k + 1)
            poke_double(result, k, _largest(partial + first * 8, end - first))
        else:
            poke_double(result, k, sum_blocks(partial, starts, k))
    return _largest(result, tensors) if largest else pairwise(result, tensors)


@runtime.inner
def _fold_squares(partial, starts, tensors, checked, norms, scratch):
    # the norm of all, or UNSAFE where one of the norms is
    low, high = SAFE_SQUARES
    unsafe = False
    for k in range(tensors):
        squares = sum_blocks(partial, starts, k)
        if checked and not low < squares < high and peek(starts, k + 1) > peek(starts, k):
            unsafe = True
            poke_double(norms, k, UNSAFE)
        else:
            poke_double(norms, k, math.sqrt(squares))
    return UNSAFE if unsafe else _norm_of_norms(norms, tensors, scratch)


_blocks_folder = runtime.compiled(_fold_blocks, returns=float)
_norms_folder = runtime.compiled(_norm_of_norms.py_func, returns=float)
_squares_folder = runtime.compiled(_fold_squares.py_func, returns=float)


@runtime.inner
def clip_coefficient(norm, limit):
    coefficient = limit / (norm + NORM_EPS)
    return 1.0 if coefficient >= 1.0 else coefficient  # NaN falls through


def _norm_and_step(task, flush):
    # task: the pointers of the norm and of the step, six each, and what else _clip_in_one puts there
    step_pointers, blocks, scratch, scalars = task + 48, peek(task, 14), peek(task, 15), peek(task, 10)
    tensors = peek(task, 1)
    for block in range(blocks):
        runtime.run_block(peek(task, 12), block, task, flush)
    norm = _fold_squares(peek(task, 4), peek(task, 2), tensors, peek(task, 16), scratch + 8 * tensors, scratch)
    if norm != UNSAFE:
        scale = peek_double(scalars, 0)
        norm *= abs(scale)
        poke_double(scalars, 0, clip_coefficient(norm, runtime.as_double(peek(task, 17))) * scale)
        for block in range(blocks):
            runtime.run_block(peek(task, 13), block, step_pointers, flush)
    return norm


_norm_and_stepper = runtime.compiled(_norm_and_step, returns=float)


@functools.lru_cache(maxsize=8)
def _ones(count: int) -> np.ndarray:
    return np.ones(count)


def _per_tensor(
    table: Table, stream: int, kernel: Callable[..., runtime.Kernel], factors: np.ndarray | None = None
) -> np.ndarray:
    """Run a reduction and combine the blocks of each tensor, in order; empty tensors give 0."""
    result = np.empty(table.tensors)
    _all_together(table, stream, kernel, result, factors)
    return result


def _all_together(
    table: Table,
    stream: int,
    kernel: Callable[..., runtime.Kernel],
    result: np.ndarray,
    factors: np.ndarray | None = None,
) -> float:
    """The same, into `result` (tensors,); return the reduction of that."""
    tensors = table.tensors
    partial = np.empty(table.blocks)
    here = runtime.address(partial)
    table.launch(kernel(table.dtype), here, runtime.address(_ones(tensors) if factors is None else factors), stream)
    return _blocks_folder()(here, table.starts_at, tensors, kernel is _max_abs, runtime.address(result))


def _of_squares(table: Table, stream: int, norms: int) -> float:
    """Return the 2-norm of all entries together, or UNSAFE; with `norms`, an address, write that of each tensor."""
    tensors, dtype = table.tensors, table.dtype
    double = dtype == np.float64
    memory = np.empty(table.blocks + 2 * tensors)
    partial = runtime.address(memory)
    scratch = partial + 8 * table.blocks
    table.launch(_sum_squares(dtype), partial, runtime.address(_ones(tensors)) if double else 0, stream)
    return _squares_folder()(partial, table.starts_at, tensors, double, norms or scratch + 8 * tensors, scratch)


def tensor_norms(arrays: Sequence[np.ndarray], ord: float) -> np.ndarray:
    """Return the norm of each array, float64 (len(arrays),)."""
    if not arrays:
        return np.zeros(0)
    table, stream = table_of([arrays])
    if ord == math.inf:
        return _per_tensor(table, stream, _max_abs)
    if ord == 1:
        return _per_tensor(table, stream, _sum_abs)
    norms = np.empty(table.tensors)
    if _of_squares(table, stream, runtime.address(norms)) == UNSAFE:
        (unsafe,) = np.nonzero(norms == UNSAFE)
        every = list(arrays)
        norms[unsafe] = _scaled_norms([every[i] for i in unsafe.tolist()])
    return norms


def _scaled_norms(arrays: list[np.ndarray]) -> np.ndarray:
    """Return 2-norms of float64 arrays whose squares over- or underflow: scaled by 2**-e, where 2**e is the largest."""
    table = Table([arrays])
    largest = _per_tensor(table, 0, _max_abs)
    usual = np.isfinite(largest) & (largest > 0)
    # A factor of 2**1022 at most: it is itself finite, and lifts any subnormal far enough.
    exponents = np.clip(np.frexp(np.where(usual, largest, 1.0))[1], -1022, 1024)
    squares = _per_tensor(table, 0, _sum_squares, np.ldexp(1.0, -exponents))
    with np.errstate(over="ignore"):
        return np.where(usual, np.ldexp(np.sqrt(squares), exponents), largest)


def norm_of_norms(norms: np.ndarray, ord: float) -> float:
    """Return the norm of all entries together of tensors with these norms."""
    if ord == math.inf:
        return float(norms.max(initial=0.0))
    if ord == 1:
        return float(norms.sum())
    scratch = np.empty(norms.size)
    return _norms_folder()(runtime.address(norms), norms.size, runtime.address(scratch))


def global_norm(arrays: Sequence[np.ndarray], ord: float) -> float:
    """Return the norm of all entries together: the norm of the norms."""
    if not arrays:
        return 0.0
    # In one compiled call behind the kernel, unless a sum of squares has left the safe range.
    table, stream = table_of([arrays])
    if ord != 2:
        return _all_together(table, stream, _sum_abs if ord == 1 else _max_abs, np.empty(table.tensors))
    norm = _of_squares(table, stream, 0)
    return norm if norm != UNSAFE else norm_of_norms(tensor_norms(arrays, 2.0), 2.0)


def step_clipped(
    table: Table,
    stream: int,
    grads: Sequence[np.ndarray],
    kernel: runtime.Kernel,
    scalars: Sequence[float],
    max_norm: float,
) -> float:
    """Run an optimizer's step kernel with its gradients clipped by their norm; return that, before clipping.

    stream : of the parameters; grads are the next one
    scalars : of the kernel; the first is the factor of the gradients, which is part of their norm
    """
    norm = UNSAFE
    if table.elements <= PARALLEL_SIZE or runtime.num_threads() == 1:
        norm = _clip_in_one(table, stream, kernel, scalars, max_norm)
    if norm == UNSAFE:
        scale, *others = scalars
        norm = global_norm(grads, 2.0) * abs(scale)
        table.run(kernel, (clip_coefficient(norm, max_norm) * scale, *others), stream=stream)
    return norm


def _clip_in_one(table: Table, stream: int, kernel: runtime.Kernel, scalars: Sequence[float], max_norm: float) -> float:
    """The same on one thread in one compiled call, which saves 2 us of 8; or UNSAFE, with nothing changed."""
    tensors, blocks, dtype = table.tensors, table.blocks, table.dtype
    double = dtype == np.float64
    memory = np.empty(blocks + 2 * tensors)
    partial, numbers = runtime.address(memory), runtime.doubles(*scalars)
    task = runtime.table(
        *table.pointers(partial, runtime.address(_ones(tensors)) if double else 0, stream + 1),
        *table.pointers(runtime.address_of(numbers), 0, stream),
        _sum_squares(dtype).address, kernel.address, blocks, partial + 8 * blocks, double, runtime.bits(max_norm),
    )  # fmt: skip
    return _norm_and_stepper()(runtime.address_of(task), runtime.flushing())
