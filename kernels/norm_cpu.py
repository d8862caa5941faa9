"""Norms of a list of tensors in one pass and one launch.

    ord 1: sum |a|      ord 2: sqrt(sum a^2)      ord inf: max |a|

Each block of a tensor gives one double; those are added up in a fixed order, so the bits of the result don't depend on
the number of threads. Squares of float32 are summed in double, where they neither overflow nor underflow. Squares of
float64 may: a tensor whose sum leaves the safe range is read again, scaled by a power of two. A NaN gives NaN.

Bytes: 4 an element in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import runtime
from .simd import Machine, Value, traced
from .streams import BLOCK, Table, tensor_of_block

# Sums of squares in here have lost nothing: no square overflowed, and what underflowed is below their last digit.
SAFE_SQUARES = (1e-280, 1e300)


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
            value = m.load_ahead(base + index * dtype.itemsize, mask)
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


def _per_tensor(table: Table, kernel: runtime.Kernel, reduce: np.ufunc, factors: np.ndarray) -> np.ndarray:
    """Run a reduction and combine the blocks of each tensor, in order; empty tensors give 0."""
    partial = table.reduce(kernel, factors)
    result = np.zeros(table.tensors)
    filled = table.sizes > 0
    if table.blocks:
        result[filled] = reduce.reduceat(partial, table.starts[:-1][filled])
    return result


def tensor_norms(arrays: list[np.ndarray], ord: float) -> np.ndarray:
    """Return the norm of each array, float64 (len(arrays),)."""
    if not arrays:
        return np.zeros(0)
    dtype = arrays[0].dtype
    table = Table([arrays])
    ones = np.ones(table.tensors)
    if ord == math.inf:
        return _per_tensor(table, _max_abs(dtype), np.maximum, ones)
    if ord == 1:
        return _per_tensor(table, _sum_abs(dtype), np.add, ones)
    squares = _per_tensor(table, _sum_squares(dtype), np.add, ones)
    norms = np.sqrt(squares)
    low, high = SAFE_SQUARES
    if dtype == np.float64:
        (unsafe,) = np.nonzero(~((squares > low) & (squares < high)) & (table.sizes > 0))
        if unsafe.size:
            norms[unsafe] = _scaled_norms([arrays[i] for i in unsafe])
    return norms


def _scaled_norms(arrays: list[np.ndarray]) -> np.ndarray:
    """Return 2-norms of float64 arrays whose squares over- or underflow: scaled by 2**-e, where 2**e is the largest."""
    table = Table([arrays])
    largest = _per_tensor(table, _max_abs(arrays[0].dtype), np.maximum, np.ones(table.tensors))
    usual = np.isfinite(largest) & (largest > 0)
    # A factor of 2**1022 at most: it is itself finite, and lifts any subnormal far enough.
    exponents = np.clip(np.frexp(np.where(usual, largest, 1.0))[1], -1022, 1024)
    squares = _per_tensor(table, _sum_squares(arrays[0].dtype), np.add, np.ldexp(1.0, -exponents))
    with np.errstate(over="ignore"):
        return np.where(usual, np.ldexp(np.sqrt(squares), exponents), largest)


def global_norm(arrays: list[np.ndarray], ord: float) -> float:
    """Return the norm of all entries together: the norm of the norms."""
    norms = tensor_norms(arrays, ord)
    if norms.size == 0:
        return 0.0
    if ord == math.inf:
        return float(norms.max())
    if ord == 1:
        return float(norms.sum())
    largest = float(norms.max())
    if not 0 < largest < math.inf:
        return largest
    exponent = math.frexp(largest)[1]
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(np.sqrt(np.sum(np.square(np.ldexp(norms, -exponent)))), exponent))
