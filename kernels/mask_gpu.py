"""Set to 0 what a mask leaves out, on a device; see mask.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import cuda
from .table_gpu import table_of

Array = Any

_APPLY = cuda.Kernel("mask", "fg_apply_masks", "table: i64*, streams: i32, tensors: i32")


def apply_masks(arrays: Sequence[Array], masks: Sequence[Array]) -> None:
    """Set the entries of each array in place to 0 where its mask, of its dtype, is 0; NaN and Inf too."""
    table_of([arrays, masks]).launch(_APPLY, [arrays, masks])
