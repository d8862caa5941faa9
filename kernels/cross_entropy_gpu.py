"""Launch the mean softmax cross-entropy with its gradient on a device; see cross_entropy.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda, loss_gpu

Array = Any

ITEMS, PAIR_BYTES = 16, 8  # as in cross_entropy.cu
LONG_BLOCK_BYTES = 4096  # 1024 threads in float32; in float64 each takes more than 64 registers, and 512 fit
STATIC_SHARED = 512  # bytes of a block's shared memory that are not for the row

_ROWS = cuda.Kernel(
    "cross_entropy", "fg_cross_entropy_rows",
    "logits: T*, targets: i64*, dlogits: T*, losses: f64*, M: i64, V: i64, width: i32, pairs: i32, "
    "counted: i64*?, ignored: i64, hit: A, each: A", ["smoothed"],
)  # fmt: skip
_LONG_ROWS = cuda.Kernel(
    "cross_entropy", "fg_cross_entropy_long_rows",
    "logits: T*, targets: i64*, dlogits: T*, losses: f64*, M: i64, V: i64, vectors: i32, fits: i32, "
    "counted: i64*?, ignored: i64, hit: A, each: A", ["smoothed"],
)  # fmt: skip
_COUNT = cuda.Kernel("cross_entropy", "fg_count_targets", "targets: i64*, counted: i64*, rows: i64, ignored: i64")


def cross_entropy(
    logits: Array, targets: Array, dlogits: Array, smoothing: float = 0.0, ignored: int | None = None
) -> Array:
    """Return the loss, 0-d on the device, and write the gradient into dlogits (M, V), may be logits.

    targets int64 (M,), M > 0. A row whose target is not from 0 to V - 1 has a NaN gradient, and makes the loss NaN;
    where it is `ignored` the gradient is 0 and the row is not counted.
    """
    M, V = logits.shape
    device = cuda.device_of(logits)
    item = logits.itemsize
    losses = device.xp.empty(M, np.float64)
    counted = None
    if ignored is not None:
        counted = device.xp.empty(1, np.int64)
        block = cuda.threads(device, cuda.LARGEST_BLOCK)
        _COUNT(device, logits.dtype, 1, block, targets, counted, M, ignored)
    options = counted, ignored or 0, 1 - smoothing, smoothing / V
    smoothed = int(smoothing != 0)
    start, target_start = logits.data.ptr, dlogits.data.ptr
    pair = PAIR_BYTES // item
    longest = cuda.WARP * pair * ITEMS
    if longest >= V:
        width = min(cuda.WARP, 1 << (cuda.blocks(V, pair) - 1).bit_length())
        pairs = V % pair == 0 and start % PAIR_BYTES == 0 and target_start % PAIR_BYTES == 0
        block = cuda.threads(device)
        grid = cuda.blocks(M * width, block)
        _ROWS(
            device,
            logits.dtype,
            grid,
            block,
            logits,
            targets,
            dlogits,
            losses,
            M,
            V,
            width,
            pairs,
            *options,
            smoothed=smoothed,
        )
    else:
        shared = V * item + 16
        fits = shared + STATIC_SHARED <= device.shared_memory
        # Four vectors or more for each thread: a row of 2,000 leaves room for many blocks beside it.
        wanted = max(128, 1 << (cuda.blocks(V * item, 64) - 1).bit_length())
        # 65 registers for a thread with smoothing in float32 on sm_100, where 1024 threads may have 64.
        block = cuda.threads(device, min(wanted, LONG_BLOCK_BYTES // item >> smoothed))
        vectors = start % 16 == target_start % 16
        _LONG_ROWS(
            device, logits.dtype, M, block, logits, targets, dlogits, losses, M, V, vectors, fits,
            *options, shared=shared if fits else 0, smoothed=smoothed,
        )  # fmt: skip
    return loss_gpu.mean(losses, M, logits.dtype, counted)
