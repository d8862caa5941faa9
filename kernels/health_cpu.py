"""What the entries of every tensor of a list look like, in one pass and one launch.

    norm = sqrt(sum a^2),   max |a|,   how many are NaN, Inf, zero, subnormal

Entries are counted by their bits, so the counts are those of the memory, whatever the processor makes of subnormal
numbers. NaN and Inf are rare: a block whose largest magnitude is neither has none, and one that has is read again out
of the cache. The sum of squares is the one of `norm_cpu`, bit for bit.

Bytes: 4 an element in float32, as for the norm alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import AHEAD_BYTES, SAFE_SQUARES, tensor_norms
from .simd import Machine, Value, traced
from .streams import BLOCK, table_of, tensor_of_block

SQUARES, NAN, INF, ZERO, SUBNORMAL, LARGEST = range(6)  # rows of what the kernel writes


def _larger(m: Machine, a: Value, b: Value) -> Value:
    return m.select(a < b, b, a)


@runtime.kernel
def _examine(dtype: np.dtype) -> Any:
    """Fold each block into six numbers.

    pointers: table, tensors, starts, sizes, results (6, blocks): doubles, the bits of the largest magnitude as an int64
    """
    bits = np.dtype(f"i{dtype.itemsize}")
    infinity, normal = (int(np.array(x, dtype).view(bits)) for x in (np.inf, np.finfo(dtype).tiny))

    def chunk(m, base, first, last, results, stride):
        wide = m.with_lanes(m.lanes, np.float64)
        nothing = m.to_bits(m.zero())

        def count(total: Value, condition: Value, mask: Value | None) -> Value:
            # In floats: an AVX-512 mask goes into their addition, and has to be spread into a vector for integers.
            return m.select(condition if mask is None else condition & mask, total + 1.0, total)

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            squares, zero, below, largest = state
            value = m.load_ahead(base + index * dtype.itemsize, mask, AHEAD_BYTES)
            x, size = m.convert(value, np.float64), m.magnitude(value)
            return [
                wide.fma(x, x, squares),
                count(zero, size < 1, mask),
                count(below, size < normal, mask),
                _larger(m, largest, size),
            ]

        def again(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            nan, beyond, largest = state
            size = m.magnitude(m.load(base + index * dtype.itemsize, mask))
            return [
                count(nan, size > infinity, mask),
                count(beyond, size >= infinity, mask),
                m.select(size > infinity, largest, _larger(m, largest, size)),
            ]

        def put(row: int, scalar: Value) -> None:
            m.store_double(results + stride * row, scalar)

        def put_sum(row: int, vector: Value) -> None:
            put(row, m.reduce(vector, lambda a, b: a + b))

        def put_largest(vector: Value) -> Value:
            largest = m.reduce(vector, lambda a, b: _larger(m, a, b))
            m.store_int(results + stride * LARGEST, largest)
            return largest

        start = [wide.zero(), m.zero(), m.zero(), nothing]
        squares, zero, below, sizes = m.fold(first, last, start, body)
        put_sum(SQUARES, squares)
        put_sum(ZERO, zero)
        put_sum(SUBNORMAL, below - zero)
        put_sum(NAN, m.zero())
        put_sum(INF, m.zero())
        largest = put_largest(sizes)

        def count_nonfinite() -> None:
            nan, beyond, sizes = m.fold(first, last, [m.zero(), m.zero(), nothing], again)
            put_sum(NAN, nan)
            put_sum(INF, beyond - nan)
            put_largest(sizes)

        m.when(largest >= infinity, count_nonfinite)

    run_chunk = traced(chunk, dtype)

    def kernel(block, pointers):
        tensors, starts = pointers[1], pointers[2]
        tensor = tensor_of_block(starts, tensors, block)
        first = (block - runtime.peek(starts, tensor)) * BLOCK
        last = min(first + BLOCK, runtime.peek(pointers[3], tensor))
        stride = runtime.peek(starts, tensors) * 8
        run_chunk(runtime.peek(pointers[0], tensor), first, last, pointers[4] + block * 8, stride)

    return kernel


def health(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return for each array: l2 norm, max |a| without NaN (float64); NaN, Inf, zero, subnormal entries (int64)."""
    table, stream = table_of([arrays])
    dtype = table.dtype
    results = np.empty((6, table.blocks))
    table.launch(_examine(dtype), runtime.address(results), 0, stream)
    # The blocks of each tensor are combined in order; empty tensors have none.
    totals, bits = np.zeros((5, table.tensors)), np.zeros(table.tensors, np.int64)
    filled = table.sizes > 0
    starts = table.starts[:-1][filled]
    if starts.size:
        with np.errstate(over="ignore"):
            totals[:, filled] = np.add.reduceat(results[:LARGEST], starts, axis=1)
        bits[filled] = np.maximum.reduceat(results[LARGEST].view(np.int64), starts)
    largest = bits.astype(f"i{dtype.itemsize}").view(dtype).astype(np.float64)
    norms = np.sqrt(totals[SQUARES])
    if dtype == np.float64:
        low, high = SAFE_SQUARES
        usual = (largest > 0) & np.isfinite(largest) & ~np.isnan(norms)
        (unsafe,) = np.nonzero(usual & ~((totals[SQUARES] > low) & (totals[SQUARES] < high)))
        if unsafe.size:
            every = list(arrays)
            norms[unsafe] = tensor_norms([every[i] for i in unsafe.tolist()], 2.0)
    nan, inf, zero, subnormal = totals[NAN:LARGEST].astype(np.int64)
    return norms, largest, nan, inf, zero, subnormal
