"""Launch dropout on a device; see dropout.cu."""

from __future__ import annotations

from typing import Any

from . import cuda

Array = Any

_DROPOUT = cuda.Kernel(
    "dropout", "fg_dropout", "x: T*, out: T*, n: i64, seed: u64, offset: u64, threshold: u32, scale: A"
)


def dropout(x: Array, threshold: int, scale: float, seed: int, offset: int, out: Array) -> None:
    """Write x scale where the random number is at least `threshold`, else 0, into `out` (n,), may be x."""
    device = cuda.device_of(x)
    block = cuda.threads(device)
    grid = cuda.blocks(cuda.blocks(x.size, 64) * 16, block)
    _DROPOUT(device, x.dtype, grid, block, x, out, x.size, seed, offset, threshold, scale)
