"""Dropout by counted random numbers, see dropout_ref.py: the same entries fall for the same seed and offset everywhere.

Bytes an element: 8 in float32, and no mask. A group of 64 entries takes the four words of 16 counters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from . import runtime
from .dropout_ref import MULTIPLIERS, ROUNDS, WEYL
from .simd import CACHE_LINE, I32, I64, Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, may_stream

GROUP = 64  # entries that share 16 counters
COUNTERS = 16

Load = Callable[[], Value]
Drop = Callable[[Value], Value]


def random_words(m: Machine, group: Value, seed: Value, offset: Value) -> Value:
    """Return the random words of the entries of a group: 64 x 32 bits."""
    # Words stay in lanes of 64 bits, whose upper halves are left as they come out: one instruction multiplies the lower
    # ones alone. Widened and narrowed in each round, relu with dropout backward of 8192 x 1024 took 6.1 ms, not 2.8.
    builder = m.builder
    narrow, wide = ir.VectorType(I32, COUNTERS), ir.VectorType(I64, COUNTERS)

    def all_of(number: int) -> Any:
        return ir.Constant(wide, [number] * COUNTERS)

    half, lower = all_of(32), all_of(0xFFFFFFFF)

    def halves(value: Value) -> tuple[Any, Any]:
        return value.ir, builder.lshr(value.ir, I64(32))

    def spread(scalar: Any) -> Any:
        return m._broadcast(scalar, COUNTERS)

    def product(word: Any, factor: int) -> tuple[Any, Any]:
        """Return the word of the lower half, with more above it, and of the upper one."""
        whole = builder.mul(builder.and_(word, lower), all_of(factor))
        return whole, builder.lshr(whole, half)

    c0 = builder.add(spread((group * COUNTERS).ir), ir.Constant(wide, list(range(COUNTERS))))
    c1 = builder.lshr(c0, half)
    c2, c3 = map(spread, halves(offset))
    keys = halves(seed)
    for _ in range(ROUNDS):
        (low1, high1), (low2, high2) = (product(c, f) for c, f in zip((c0, c2), MULTIPLIERS, strict=True))
        c0, c1 = builder.xor(builder.xor(high2, c1), spread(keys[0])), low2
        c2, c3 = builder.xor(builder.xor(high1, c3), spread(keys[1])), low1
        keys = tuple(builder.add(k, I64(w)) for k, w in zip(keys, WEYL, strict=True))
    c0, c1, c2, c3 = (builder.trunc(c, narrow) for c in (c0, c1, c2, c3))
    parts = [Value(m, c) for c in (c0, c1, c2, c3)]
    for count in (2 * COUNTERS, 4 * COUNTERS):
        parts = [m._shuffle(a, b, list(range(count))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def parts_of_group(
    m: Machine, words: Value, mask: Value | None, threshold: Value, scale: Value
) -> list[tuple[int, Value | None, Drop]]:
    """Cut a group into vectors of the machine: the first entry of each, its mask, and what drops entries of it.

    words, mask : of the whole group. 64 doubles in a vector would not leave the registers room for an activation.
    """
    limit = m._broadcast(m.builder.trunc(threshold.ir, I32), m.lanes)

    def drop(kept: Value) -> Drop:
        return lambda value: m.select(kept, value * scale, 0.0)

    parts: list[tuple[int, Value | None, Drop]] = []
    for first in range(0, GROUP, m.lanes):
        lanes = list(range(first, first + m.lanes))
        own = None if mask is None else m._shuffle(mask, mask, lanes)
        kept = Value(m, m.builder.icmp_unsigned(">=", m._shuffle(words, words, lanes).ir, limit))
        parts.append((first, own, drop(kept)))
    return parts


def flat_kernel(
    formula: Callable[[Machine, Load, Load, Drop, Sequence[Value]], Value], dtype: np.dtype, params: int,
    streaming: bool,
) -> Any:  # fmt: skip
    """Return the Python function of a kernel over all entries of arrays, in their order.

    formula : formula(m, dy, x, drop, params) returns what is written: dy() and x() load a vector, drop(value) scales it
        or makes it 0
    streaming : out begins a cache line, and is stored past the caches

    pointers: dy, x, out, n, seed, offset, threshold, numbers (1 + params,): scale and the parameters
    """
    item = dtype.itemsize

    def chunk(m, dy, x, out, first, last, seed, offset, threshold, numbers):
        scale, *constants = [m.splat(m.load_double(numbers + i * 8)) for i in range(1 + params)]
        group = m.with_lanes(GROUP)

        def body(index: Value, mask: Value | None) -> None:
            words = random_words(m, index // GROUP, seed, offset)
            for start, own, drop in parts_of_group(m, words, mask, threshold, scale):
                at = (index + start) * item
                given, value = (lambda base=base, at=at, own=own: m.load_ahead(base + at, own) for base in (dy, x))
                m.store(out + at, formula(m, given, value, drop, constants), own, streaming and mask is None)

        group.over(first, last, body)
        if streaming:
            m.fence()

    run_chunk = traced(chunk, dtype)

    def kernel(block, pointers):
        first = block * BLOCK
        run_chunk(
            pointers[0], pointers[1], pointers[2], first, min(first + BLOCK, pointers[3]), pointers[4], pointers[5],
            pointers[6], pointers[7],
        )  # fmt: skip

    return kernel


def run_flat(
    kernel: Callable[[bool], runtime.Kernel], dy: np.ndarray, x: np.ndarray, threshold: int, scale: float, seed: int,
    offset: int, params: Sequence[float], out: np.ndarray,
) -> None:  # fmt: skip
    """Run a `flat_kernel`, which `kernel` returns for `streaming`; all arrays (n,), out may be one of the others."""
    pointers = dy, x, out, x.size, seed, offset, threshold, (scale, *params)
    streaming = may_stream(out, [dy, x]) and runtime.address(out) % CACHE_LINE == 0
    runtime.run(kernel(streaming), -(-x.size // BLOCK), pointers, x.size > PARALLEL_SIZE)


@runtime.kernel
def _dropout(dtype: np.dtype, streaming: bool) -> Any:
    return flat_kernel(lambda m, dy, x, drop, params: drop(x()), dtype, 0, streaming)


def dropout(x: np.ndarray, threshold: int, scale: float, seed: int, offset: int, out: np.ndarray) -> None:
    """Write x scale where the random number is at least `threshold`, else 0, into `out` (n,), may be x."""
    run_flat(lambda streaming: _dropout(x.dtype, streaming), x, x, threshold, scale, seed, offset, (), out)
