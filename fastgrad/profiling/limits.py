"""The limit that the machine sets: the same reads and writes without arithmetic, or the flops at the rate of a product.

A memory-bound kernel can't be faster than one that moves its bytes and computes nothing, in the fastest order of access
known: 256 bytes of one stream before the next, prefetched, past the caches where nothing is read back. A recurrent
layer can't be faster than its flops at the rate that a 2048-cubed float32 product reaches in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._memory import empty
from fastgrad.kernels import runtime
from fastgrad.kernels.norm_cpu import AHEAD_BYTES
from fastgrad.kernels.simd import STREAM_BYTES, Machine, Value, traced
from fastgrad.kernels.streams import BLOCK, PARALLEL_SIZE, STREAMING_BYTES
from fastgrad.profiling.turns import Contestant

Array = np.ndarray

FLOAT = np.dtype(np.float32)
PRODUCT = 2048  # rows and columns of the product whose rate is the limit of arithmetic


@dataclass(frozen=True)
class Limit:
    """contestant: what is timed; scale: the limit is this many times its seconds."""

    contestant: Contestant
    scale: float = 1.0


@runtime.kernel
def _move(reads: int, writes: int, in_place: bool, streaming: bool) -> Any:
    """Read and write streams of float32. pointers: addresses of the streams, elements.

    in_place : the streams written are the first ones that are read, else they come after those
    """

    def chunk(m: Machine, table: Value, first: Value, last: Value) -> None:
        bases = [m.load_int(table + k * 8) for k in range(reads if in_place else reads + writes)]
        targets = bases[:writes] if in_place else bases[reads:]

        def body(index: Value, mask: Value | None) -> None:
            at = index * FLOAT.itemsize
            values = [m.load_ahead(base + at, mask) for base in bases[:reads]]
            # Each value read is needed for one that is written, else the compiler drops its load.
            while len(values) > writes:
                one, other = values.pop(), values.pop()
                values.append(m.from_bits(m.to_bits(one) | m.to_bits(other)))
            # Rotated, or a stream that is written to where it came from would be dropped as well.
            for target, value in zip(targets, values[1:] + values[:1], strict=True):
                m.store(target + at, value, mask, streaming and mask is None)

        m.over(first, last, body, targets[0] if streaming else None)
        if streaming:
            m.fence()

    run_chunk = traced(chunk, FLOAT)

    def kernel(block, pointers):
        first = block * BLOCK
        run_chunk(pointers[0], first, min(first + BLOCK, pointers[1]))

    return kernel


@runtime.kernel
def _read() -> Any:
    """Read a stream of float32. pointers: its address, elements, where to leave STREAM_BYTES for each block."""

    def chunk(m: Machine, base: Value, first: Value, last: Value, target: Value) -> None:
        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            return [m.to_bits(m.load_ahead(base + index * FLOAT.itemsize, mask, AHEAD_BYTES)) | state[0]]

        (total,) = m.fold(first, last, [m.to_bits(m.zero())], body)
        m.store(target, m.from_bits(total))

    run_chunk = traced(chunk, FLOAT)

    def kernel(block, pointers):
        first = block * BLOCK
        run_chunk(pointers[0], first, min(first + BLOCK, pointers[1]), pointers[2] + block * STREAM_BYTES)

    return kernel


def ones(elements: int) -> Array:
    """Return an array that starts on a cache line, as stores past the caches need it."""
    array = empty(elements, FLOAT)
    array.fill(1.0)
    return array


def moving(
    elements: int, reads: int, writes: int, *, in_place: bool = False, streams: Sequence[Array] = ()
) -> Callable[[], object]:
    """Return a call that reads and writes so many streams.

    in_place: what it writes are the first of those it reads; streams: the arrays, of its own unless given
    """
    streams = streams or [ones(elements) for _ in range(reads if in_place else reads + writes)]
    table = np.array([runtime.address(stream) for stream in streams], np.int64)
    streaming = not in_place and 4 * elements >= STREAMING_BYTES
    return _call(_move(reads, writes, in_place, streaming), elements, [table, elements], [table, *streams])


def reading(elements: int, stream: Array | None = None) -> Callable[[], object]:
    """Return a call that reads one stream, an array of its own unless given."""
    stream = ones(elements) if stream is None else stream
    left = np.empty(STREAM_BYTES * -(-elements // BLOCK), np.uint8)
    return _call(_read(), elements, [stream, elements, left], [stream, left])


def _call(kernel: runtime.Kernel, elements: int, pointers: Sequence[Array | int], keep: object) -> Callable[[], object]:
    """Return a call that runs the kernel over all blocks; keep: the arrays that it works on."""
    numbers = np.array([p if isinstance(p, int) else runtime.address(p) for p in pointers], np.int64)
    blocks, parallel = -(-elements // BLOCK), elements > PARALLEL_SIZE

    def run(kept: object = keep) -> None:
        runtime.run(kernel, blocks, numbers, parallel)

    return run


def of_memory(*passes: Callable[[], object], before: Callable[[], object] | None = None) -> Limit:
    """Return the limit of work that makes these passes over memory, one after the other; before: see `Contestant`."""
    return Limit(Contestant(lambda: [run() for run in passes], before))


def of_products(flops: int, side: int = PRODUCT, multiply: Callable[..., object] | None = None) -> Limit:
    """Return the limit of work of so many flops in products of float32 matrices.

    side: rows and columns of one; multiply: takes (a, b, out), NumPy's unless given
    """
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((side, side), dtype=np.float32) for _ in range(3))
    run = multiply or np.matmul
    return Limit(Contestant(lambda: run(a, b, c)), flops / (2 * side**3))
