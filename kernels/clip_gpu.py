"""Launch the in-place half of clipping on a device; see clip.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import cuda
from .table_gpu import table_of

Array = Any

_SCALE = cuda.Kernel("clip", "fg_scale", "table: i64*, streams: i32, tensors: i32, coefficients: f64*, each: i32")
_CLAMP = cuda.Kernel("clip", "fg_clamp", "table: i64*, streams: i32, tensors: i32, low: T, high: T")


def scale(arrays: Sequence[Array], coefficients: Array, each: bool) -> None:
    """Multiply arrays in place by coefficients on the device, float64: one for each, or one for all.

    Where it is 1 nothing is read or written.
    """
    table_of([arrays]).launch(_SCALE, [arrays], coefficients, each)


def clip_by_value(arrays: Sequence[Array], low: float, high: float) -> None:
    """Clamp the entries in place to [low, high]; NaN stays NaN."""
    if arrays:
        table_of([arrays]).launch(_CLAMP, [arrays], low, high)
