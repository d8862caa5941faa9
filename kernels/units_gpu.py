"""Launch the clipping of each unit of a list of tensors by its own norm on a device; see units.cu."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from . import cuda
from .table_gpu import table_of

Array = Any

_CLIP = cuda.Kernel(
    "units",
    "fg_clip_units",
    "table: i64*, streams: i32, tensors: i32, units: i64, norms: f64*, limit: f64, eps: f64",
    ["adaptive"],
)


def _run(lists: Sequence[Sequence[Array]], limit: float, eps: float, adaptive: int) -> list[Array]:
    units = [a.shape[0] if a.ndim > 1 else 1 for a in lists[0]]
    before = [0, *itertools.accumulate(units)]
    table = table_of(lists, before[:-1])
    norms = table.result(before[-1])
    _CLIP(
        table.device, table.dtype, before[-1], cuda.threads(table.device), *table.head, before[-1], norms, limit, eps,
        touches=list(itertools.chain.from_iterable(lists)), adaptive=adaptive,
    )  # fmt: skip
    return [norms[start:end] for start, end in itertools.pairwise(before)]


def clip_units(arrays: Sequence[Array], max_norm: float) -> list[Array]:
    """Scale each unit in place by min(1, max_norm / (norm + 1e-6)); return the norms before, (units,) of each array."""
    return _run([arrays], max_norm, 0.0, 0)


def adaptive_clip(grads: Sequence[Array], params: Sequence[Array], clipping: float, eps: float) -> None:
    """Scale each unit G of the gradients in place so that |G| <= clipping * max(|W|, eps), W its parameters."""
    _run([grads, params], clipping, eps, 1)
