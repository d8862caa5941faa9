"""Launch attention and its gradients on a device; see attention.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import cuda

Array = Any
Dropped = tuple[int, float, int, int]

THREADS, BACKWARD_THREADS = 256, 128  # of a block, where its rows fit into shared memory
_CHUNKS = (1, 2, 4, 8)  # features of a lane, of those in a slab


def _strides(*names: str) -> str:
    return ", ".join(f"{name}_{axis}: i64" for name in names for axis in "bht")


_SIZES = "lengths: i64*?, H: i64, T: i64, S: i64, D: i64"
_REST = "scale: A, causal: i32, dropped: i32, threshold: u32, factor: A, seed: u64, offset: u64"
_FORWARD = cuda.Kernel(
    "attention", "fg_attention",
    f"q: T*, k: T*, v: T*, y: T*, largest: T*, total: T*, {_SIZES}, {_strides('q', 'k', 'v', 'y')}, {_REST}",
    variants=("chunks",),
)  # fmt: skip
_BACKWARD_QUERIES = cuda.Kernel(
    "attention", "fg_attention_backward_queries",
    "dy: T*, q: T*, k: T*, v: T*, y: T*, largest: T*, total: T*, along: A*, dq: T*, "
    f"{_SIZES}, {_strides('dy', 'q', 'k', 'v', 'y', 'dq')}, {_REST}",
    variants=("chunks",),
)  # fmt: skip
_BACKWARD_KEYS = cuda.Kernel(
    "attention", "fg_attention_backward_keys",
    "dy: T*, q: T*, k: T*, v: T*, largest: T*, total: T*, along: A*, dk: T*, dv: T*, "
    f"{_SIZES}, {_strides('dy', 'q', 'k', 'v', 'dk', 'dv')}, {_REST}",
    variants=("chunks",),
)  # fmt: skip


def _spans(device: cuda.Device, arrays: Sequence[Array]) -> list[Array]:
    """Return the memory from the first to the last element of each array, as arrays of one axis."""
    spans = []
    for a in arrays:
        last = sum((size - 1) * stride for size, stride in zip(a.shape, a.strides, strict=True))
        spans.append(device.xp.ndarray((last // a.itemsize + 1,), a.dtype, a.data))
    return spans


def _walks(arrays: Sequence[Array]) -> list[int]:
    return [stride // a.itemsize for a in arrays for stride in a.strides[:3]]


class _Shape:
    """How a launch is cut: rows of a warp, threads, shared memory, and the slabs of a head."""

    def __init__(self, device: cuda.Device, dtype: np.dtype, D: int, wanted: int, copies: int, weights: int) -> None:
        self.chunks = next((c for c in _CHUNKS if c * cuda.WARP >= D), _CHUNKS[-1])
        self.slabs = cuda.blocks(D, self.chunks * cuda.WARP)
        vector = 16 // dtype.itemsize
        stride = (cuda.blocks(D, vector) | 1) * vector
        each = {1: 8, 2: 8, 4: 4, 8: 2}[self.chunks] * 4 // dtype.itemsize  # ROWS of attention.cu
        threads = cuda.threads(device, wanted)
        while True:
            self.rows = threads // cuda.WARP * each
            self.shared = (copies * (self.rows + cuda.WARP) * stride + weights * self.rows * cuda.WARP) * dtype.itemsize
            if self.shared <= device.shared_memory or threads == cuda.WARP:
                break
            threads = max(cuda.WARP, threads // 2 // cuda.WARP * cuda.WARP)
        self.threads = threads


def _rest(scale: float, causal: bool, dropped: Dropped | None) -> tuple[Any, ...]:
    return scale, causal, dropped is not None, *(dropped or (0, 1.0, 0, 0))


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool,
    lengths: Array | None,
    dropped: Dropped | None,
    y: Array,
    largest: Array,
    total: Array,
) -> None:
    """Write y (B, H, T, D), largest and total (B, H, T); features lie side by side, the other axes anywhere."""
    device = cuda.device_of(q)
    (B, H, T, D), S = q.shape, k.shape[2]
    arrays = (q, k, v, y)
    shape = _Shape(device, q.dtype, D, THREADS, 1, 1)
    _FORWARD(
        device, q.dtype, (B * H * cuda.blocks(T, shape.rows), shape.slabs), shape.threads,
        *_spans(device, arrays), largest, total, lengths, H, T, S, D, *_walks(arrays), *_rest(scale, causal, dropped),
        shared=shape.shared, chunks=shape.chunks,
    )  # fmt: skip


def attention_backward(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    largest: Array,
    total: Array,
    scale: float,
    causal: bool,
    lengths: Array | None,
    dropped: Dropped | None,
    dq: Array,
    dk: Array,
    dv: Array,
) -> None:
    """Write dq (B, H, T, D), dk and dv (B, H, S, D), which lie as the others may."""
    device = cuda.device_of(q)
    (B, H, T, D), S = q.shape, k.shape[2]
    along = device.xp.empty((B, H, T), q.dtype)
    rest = _rest(scale, causal, dropped)
    sizes = lengths, H, T, S, D
    shape = _Shape(device, q.dtype, D, BACKWARD_THREADS, 2, 1)
    *read, of_y, of_dq = _spans(device, (dy, q, k, v, y, dq))
    _BACKWARD_QUERIES(
        device, q.dtype, (B * H * cuda.blocks(T, shape.rows), shape.slabs), shape.threads, *read, of_y, largest, total,
        along, of_dq, *sizes, *_walks((dy, q, k, v, y, dq)), *rest, shared=shape.shared, chunks=shape.chunks,
    )  # fmt: skip
    shape = _Shape(device, q.dtype, D, BACKWARD_THREADS, 2, 2)
    _BACKWARD_KEYS(
        device, q.dtype, (B * H * cuda.blocks(S, shape.rows), shape.slabs), shape.threads, *read, largest, total, along,
        *_spans(device, (dk, dv)), *sizes, *_walks((dy, q, k, v, dk, dv)), *rest, shared=shape.shared,
        chunks=shape.chunks,
    )  # fmt: skip
