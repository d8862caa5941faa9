"""Dropout by counted random numbers, see dropout_ref.py: the same entries fall for the same seed and offset everywhere.

Bytes an element: 8 in float32, and no mask. A vector of 64 entries takes the four words of 16 counters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from . import runtime
from .dropout_ref import MULTIPLIERS, ROUNDS, WEYL
from .simd import CACHE_LINE, I32, I64, Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, may_stream

GROUP = 64  # entries that share 16 counters
COUNTERS = 16


def random_words(m: Machine, group: Value, seed: Value, offset: Value) -> Value:
    """Return the random words of the entries of a group: 64 x 32 bits."""
    builder = m.builder
    narrow, wide = ir.VectorType(I32, COUNTERS), ir.VectorType(I64, COUNTERS)
    half = ir.Constant(wide, [32] * COUNTERS)

    def halves(values: Any) -> tuple[Any, Any]:
        return builder.trunc(values, narrow), builder.trunc(builder.lshr(values, half), narrow)

    def spread(value: Value) -> Any:
        return m._broadcast(value.ir, COUNTERS)

    counters = builder.add(spread(group * COUNTERS), ir.Constant(wide, list(range(COUNTERS))))
    (c0, c1), (c2, c3), keys = halves(counters), halves(spread(offset)), list(halves(spread(seed)))
    for _ in range(ROUNDS):
        (low1, high1), (low2, high2) = (
            halves(builder.mul(builder.zext(c, wide), ir.Constant(wide, [factor] * COUNTERS)))
            for c, factor in zip((c0, c2), MULTIPLIERS, strict=True)
        )
        c0, c1 = builder.xor(builder.xor(high2, c1), keys[0]), low2
        c2, c3 = builder.xor(builder.xor(high1, c3), keys[1]), low1
        keys = [builder.add(k, ir.Constant(narrow, [w] * COUNTERS)) for k, w in zip(keys, WEYL, strict=True)]
    parts = [Value(m, c) for c in (c0, c1, c2, c3)]
    for count in (2 * COUNTERS, 4 * COUNTERS):
        parts = [m._shuffle(a, b, list(range(count))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@runtime.kernel
def _dropout(dtype: np.dtype, streaming: bool) -> Any:
    """pointers: x, out, n, seed, offset, threshold, scale (double). streaming: out begins a cache line."""
    item = dtype.itemsize

    def chunk(m, x, out, first, last, seed, offset, threshold, number):
        scale = m.splat(m.load_double(number))
        limit = m._broadcast(m.builder.trunc(threshold.ir, I32), GROUP)

        def body(index: Value, mask: Value | None) -> None:
            words = random_words(m, index // GROUP, seed, offset)
            kept = Value(m, m.builder.icmp_unsigned(">=", words.ir, limit))
            value = m.select(kept, m.load_ahead(x + index * item, mask) * scale, 0.0)
            m.store(out + index * item, value, mask, streaming and mask is None)

        m.over(first, last, body)
        if streaming:
            m.fence()

    run_chunk = traced(chunk, dtype, GROUP)

    def kernel(block, pointers):
        first = block * BLOCK
        run_chunk(
            pointers[0], pointers[1], first, min(first + BLOCK, pointers[2]), pointers[3], pointers[4], pointers[5],
            pointers[6],
        )  # fmt: skip

    return kernel


def dropout(x: np.ndarray, threshold: int, scale: float, seed: int, offset: int, out: np.ndarray) -> None:
    """Write x scale where the random number is at least `threshold`, else 0, into `out` (n,), may be x."""
    number = np.array([scale])
    signed = np.array([seed, offset], np.uint64).view(np.int64)
    addresses = runtime.address(x), runtime.address(out)
    pointers = np.array([*addresses, x.size, *signed, threshold, runtime.address(number)], np.int64)
    streaming = may_stream(out, [x]) and addresses[1] % CACHE_LINE == 0
    blocks = -(-x.size // BLOCK)
    runtime.run(_dropout(x.dtype, streaming), blocks, pointers, parallel=x.size > PARALLEL_SIZE)
