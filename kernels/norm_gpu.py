"""Launch norms of a list of tensors on a device; see norm.cu and norms.cuh.

All results stay on the device: nothing waits for it. On float32 arrays subnormal entries are taken for 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import cuda
from .table_gpu import Table, table_of

Array = Any

_CHUNKS = cuda.Kernel(
    "norm", "fg_norm_chunks", "table: i64*, streams: i32, tensors: i32, stream: i32, partial: f64*", ["ord"]
)
_FINISH = cuda.Kernel(
    "norm",
    "fg_norm_finish",
    "table: i64*, streams: i32, tensors: i32, partial: f64*, totals: f64*, norms: f64*, arrived: u32*, norm: f64*, "
    "coefficients: f64*, limit: f64, unscale: f64",
    ["ord"],
)
NO_LIMIT = -1.0
_NAMES = {1.0: 1, 2.0: 2, math.inf: 0}  # as FG_ORD


def sum_chunks(table: Table, lists: Sequence[Sequence[Array]], stream: int, ord: float = 2.0) -> None:
    """Take what the norms need of each chunk of one of the lists, in one launch."""
    table.launch(_CHUNKS, lists, stream, table.partial, ord=_NAMES[ord])


def _finish(table: Table, ord: float, norms: Array, norm: Array, limit: float = NO_LIMIT, unscale: float = 1.0) -> None:
    _FINISH(
        table.device, table.dtype, table.tensors, cuda.threads(table.device), *table.head, table.partial, table.totals,
        norms, table.arrived, norm, table.coefficients, limit, unscale, ord=_NAMES[ord],
    )  # fmt: skip


def tensor_norms(arrays: Sequence[Array], ord: float) -> Array:
    """Return the norm of each array, float64 (len(arrays),) on the device; for at least one array."""
    return clip_each(arrays, NO_LIMIT, ord)[0]


def global_norm(arrays: Sequence[Array], ord: float) -> Array:
    """Return the norm of all entries together, 0-d float64 on the device; for at least one array."""
    return clip_all(arrays, ord, NO_LIMIT)[0]


def clip_each(arrays: Sequence[Array], limit: float, ord: float = 2.0) -> tuple[Array, Array]:
    """Return the norm of each array and min(1, limit / (norm + 1e-6)) of each, float64 (len(arrays),).

    The coefficients are scratch: good for launches on this stream until the next norm of the same arrays.
    """
    table = table_of([arrays])
    sum_chunks(table, [arrays], 0, ord)
    norms = table.result(table.tensors)
    _finish(table, ord, norms, table.norm, limit)
    return norms, table.coefficients


def clip_all(arrays: Sequence[Array], ord: float, limit: float, unscale: float = 1.0) -> tuple[Array, Array]:
    """Return the norm of all entries together times `unscale`, 0-d, and what to do with it, (2,) float64.

    That is min(1, limit / (norm + 1e-6)) times `unscale`, and 1. It is scratch, see `clip_each`.
    """
    table = table_of([arrays])
    sum_chunks(table, [arrays], 0, ord)
    norm = table.result(())
    _finish(table, ord, table.norms, norm, limit, unscale)
    return norm, table.coefficients[table.tensors :]
