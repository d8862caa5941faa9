"""Set to 0 what a mask leaves out: p = p where the mask is not 0, else 0."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def apply_masks(arrays: list[Array], masks: list[Array]) -> None:
    """Set the entries of each array in place to 0 where its mask, of its dtype, is 0; NaN and Inf too."""
    for a, mask in zip(arrays, masks, strict=True):
        a[mask == 0] = 0
