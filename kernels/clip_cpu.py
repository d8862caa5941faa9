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


def scale(arrays: list[np.ndarray], coefficients: np.ndarray) -> None:
    """Multiply each array in place by its coefficient, float64 (len(arrays),); 1.0 leaves the array untouched."""
    chosen = [i for i, coefficient in enumerate(coefficients.tolist()) if coefficient != 1.0]
    if not chosen:
        return
    if len(chosen) < coefficients.size:
        whole = list(arrays)
        arrays, coefficients = [whole[i] for i in chosen], coefficients[chosen]
    table, stream = table_of([arrays])
    table.run(_scale(table.dtype), own=coefficients, stream=stream)


def clip_by_value(arrays: list[np.ndarray], low: float, high: float) -> None:
    """Clamp the entries in place to [low, high]; NaN stays NaN."""
    if arrays:
        table, stream = table_of([arrays])
        table.run(_clamp(table.dtype), (low, high), stream=stream)
