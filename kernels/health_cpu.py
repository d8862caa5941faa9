"""What the entries of every tensor of a list look like, in one pass and one launch.

    norm = sqrt(sum a^2),   max |a|,   how many are NaN, Inf, zero, subnormal

Entries are counted by their bits, so the counts are those of the memory, whatever the processor makes of subnormal
numbers. NaN and Inf are rare: a block whose largest magnitude is neither has none, and one that has is read again out
of the cache. The sum of squares is the one of `norm_cpu`, bit for bit.

Bytes: 4 an element in float32, as for the norm alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import SAFE_SQUARES, UNSAFE, sum_blocks, tensor_norms
from .runtime import peek, peek_double, poke_double
from .simd import Machine, Value, traced
from .streams import BLOCK, table_of, tensor_of_block

# Further than in the norm: with its 4096 bytes the pass took 1.07 times as long as the norm (124 M float32, one
# thread), with 6144 1.02 times, with 8192 and 12288 more again.
AHEAD = 6144
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
            value = m.load_ahead(base + index * dtype.itemsize, mask, AHEAD)
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


def _fold(results, starts, tensors, double, found):
    # found (6, tensors): norm, largest, and the counts. Say whether a norm is UNSAFE.
    blocks = peek(starts, tensors)
    stride = blocks * 8
    low, high = SAFE_SQUARES
    unsafe = 0
    for k in range(tensors):
        first, last = peek(starts, k), peek(starts, k + 1)
        bits = np.int64(0)
        for block in range(first, last):
            bits = max(bits, peek(results + LARGEST * stride, block))
        largest = np.int64(bits).view(np.float64) if double else np.float64(np.int32(bits).view(np.float32))
        for row in range(NAN, LARGEST):
            total = 0.0
            for block in range(first, last):
                total += peek_double(results + row * stride, block)
            poke_double(found, (row - NAN + 2) * tensors + k, total)
        squares = sum_blocks(results, starts, k)
        norm = math.sqrt(squares)
        if double and 0.0 < largest < math.inf and norm == norm and not low < squares < high:
            norm, unsafe = UNSAFE, 1
        poke_double(found, k, norm)
        poke_double(found, tensors + k, largest)
    return unsafe


_folder = runtime.compiled(_fold, returns=int)


def health(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each array: l2 norm, max |a| without NaN; NaN, Inf, zero, subnormal entries. float64 (6, arrays)."""
    table, stream = table_of([arrays])
    tensors, dtype = table.tensors, table.dtype
    results = np.empty(6 * table.blocks)
    written = runtime.address(results)
    table.launch(_examine(dtype), written, 0, stream)
    # The blocks of each tensor are combined in order; empty tensors have none.
    found = np.empty((6, tensors))
    if _folder()(written, table.starts_at, tensors, dtype == np.float64, runtime.address(found)):
        (unsafe,) = np.nonzero(found[0] == UNSAFE)
        every = list(arrays)
        found[0, unsafe] = tensor_norms([every[i] for i in unsafe.tolist()], 2.0)
    return found
