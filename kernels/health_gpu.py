"""Launch what looks at the entries of every tensor of a list on a device; see health.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import cuda
from .table_gpu import TERMS, table_of

Array = Any

COUNTS = 5  # as in health.cu

_CHUNKS = cuda.Kernel(
    "health", "fg_health_chunks", "table: i64*, streams: i32, tensors: i32, partial: f64*, counts: i64*"
)
_FINISH = cuda.Kernel(
    "health", "fg_health_finish", "table: i64*, streams: i32, tensors: i32, partial: f64*, counts: i64*, found: f64*"
)


def health(arrays: Sequence[Array]) -> Array:
    """Return for each array: l2 norm, max |a| without NaN; NaN, Inf, zero, subnormal entries.

    float64 (6, len(arrays)) on the device, which nothing waits for.
    """
    table = table_of([arrays])
    xp = table.device.xp
    partial, counts = xp.empty(table.chunks * TERMS, np.float64), xp.empty(table.chunks * COUNTS, np.int64)
    found = xp.empty((6, table.tensors), np.float64)
    table.launch(_CHUNKS, [arrays], partial, counts)
    block = cuda.threads(table.device)
    _FINISH(table.device, table.dtype, table.tensors, block, *table.head, partial, counts, found)
    return found
