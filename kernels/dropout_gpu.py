"""Launch dropout on a device; see dropout.cu."""

from __future__ import annotations

from typing import Any

from . import cuda

Array = Any

# Scalars of a dropout, as its kernels have them.
RANDOM = "seed: u64, offset: u64, threshold: u32, scale: A"

_DROPOUT = cuda.Kernel("dropout", "fg_dropout", f"x: T*, out: T*, n: i64, {RANDOM}, vectors: i32")


def grid_of_counters(size: int, itemsize: int, block: int) -> int:
    """Return the blocks for `each_of_counters` of philox.cuh: a thread takes 16 bytes of each quarter of a group."""
    return cuda.blocks(cuda.blocks(size, 64) * itemsize, block)


def by_vectors(*arrays: Array) -> bool:
    """Say whether all begin on 16 bytes."""
    return all(a.data.ptr % 16 == 0 for a in arrays)


def dropout(x: Array, threshold: int, scale: float, seed: int, offset: int, out: Array) -> None:
    """Write x scale where the random number is at least `threshold`, else 0, into `out` (n,), may be x."""
    device = cuda.device_of(x)
    block = cuda.threads(device)
    grid = grid_of_counters(x.size, x.itemsize, block)
    _DROPOUT(device, x.dtype, grid, block, x, out, x.size, seed, offset, threshold, scale, by_vectors(x, out))
