"""Set to 0 what a mask leaves out, in one launch for any list of tensors. Bytes: 12 an element in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import runtime
from .streams import streams_kernel, table_of


@runtime.kernel
def _apply(dtype: np.dtype) -> Any:
    def keep(m, inputs, scalars):
        value, mask = inputs
        return (m.select((mask < 0.0) | (mask > 0.0), value, 0.0),)

    return streams_kernel(keep, dtype, (0, 1), (0,))


def apply_masks(arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    """Set the entries of each array in place to 0 where its mask, of its dtype, is 0; NaN and Inf too."""
    table, stream = table_of([arrays, masks])
    table.run(_apply(table.dtype), stream=stream)
