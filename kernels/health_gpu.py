"""Launch what looks at the entries of every tensor of a list on a device; see health.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import cuda
from .table_gpu import Table, table_of

Array = Any

_CHUNKS = cuda.Kernel(
    "health", "fg_health_chunks", "table: i64*, streams: i32, tensors: i32, stream: i32, partial: f64*, counts: i64*"
)
_FINISH = cuda.Kernel(
    "health", "fg_health_finish", "table: i64*, streams: i32, tensors: i32, partial: f64*, counts: i64*, found: f64*"
)


def examine_chunks(table: Table, lists: Sequence[Sequence[Array]], stream: int) -> None:
    """Take what norms and counts need of each chunk of one of the lists, in one launch."""
    table.launch(_CHUNKS, lists, stream, table.partial, table.counts)


def health(arrays: Sequence[Array]) -> Array:
    """Return for each array: l2 norm, max |a| without NaN; NaN, Inf, zero, subnormal entries.

    float64 (6, len(arrays)) on the device, which nothing waits for.
    """
    table = table_of([arrays])
    found = table.result((6, table.tensors))
    examine_chunks(table, [arrays], 0)
    block = cuda.threads(table.device)
    _FINISH(table.device, table.dtype, table.tensors, block, *table.head, table.partial, table.counts, found)
    return found
