"""The in-place half of clipping: multiply arrays by their coefficients, or clamp their entries, in one launch.

Bytes: 8 an element in float32. `adam_step` and `sgd_step` apply the coefficient inside the update and need none of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .streams import streams_kernel, table_of


@runtime.kernel
def _scale(dtype: np.dtype) -> Any:
    return streams_kernel(lambda m, inputs, own: (inputs[0] * own[0],), dtype, (0,), (0,), per_tensor=True)


@runtime.kernel
def _clamp(dtype: np.dtype) -> Any:
    def clamp(m, inputs, bounds):
        return (m.minimum(m.maximum(inputs[0], bounds[0]), bounds[1]),)

    return streams_kernel(clamp, dtype, (0,), (0,), scalars=2)


def scale(arrays: list[np.ndarray], coefficients: list[float]) -> None:
    """Multiply each array in place by its coefficient; 1.0 leaves the array untouched."""
    chosen = [i for i, coefficient in enumerate(coefficients) if coefficient != 1.0]
    if not chosen:
        return
    if len(chosen) < len(coefficients):
        whole = list(arrays)
        arrays, coefficients = [whole[i] for i in chosen], [coefficients[i] for i in chosen]
    table, stream = table_of([arrays])
    table.run(_scale(table.dtype), own=np.array(coefficients), stream=stream)


def clip_by_value(arrays: list[np.ndarray], low: float, high: float) -> None:
    """Clamp the entries in place to [low, high]; NaN stays NaN."""
    if arrays:
        table, stream = table_of([arrays])
        table.run(_clamp(table.dtype), (low, high), stream=stream)
