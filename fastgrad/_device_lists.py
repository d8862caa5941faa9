"""The short way through the check of lists of device arrays, which costs more than many a step on a GPU.

`fastgrad._tensor_lists` examines arrays one by one: the 592 of an Adam step of GPT-2 small take 3.4 ms on the emulated
device, where an H200 needs 1 for the bytes of the step. Here no error is told, only whether there could be one, in a
third of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad._arrays import device_module

Array = Any


def plain(sets: Sequence[Sequence[tuple[str, list[Array], bool]]]) -> bool:
    """Say that lists of device arrays pass the check as they are; False where it has to look.

    Plain is what `fastgrad.kernels.lists` calls plain: of one float dtype, C-contiguous and aligned, the lists of a set
    alike in shape, and no written array sharing memory with another one.
    """
    arrays = sets[0][0][1] if sets else []
    if not arrays or device_module(arrays[0]) is None:
        return False
    kind, dtype = type(arrays[0]), arrays[0].dtype
    if dtype != np.float32 and dtype != np.float64:
        return False
    starts: list[int] = []
    sizes: list[int] = []
    written: list[bool] = []
    for groups in sets:
        shapes = [getattr(a, "shape", None) for a in groups[0][1]]
        for _, entries, is_written in groups:
            if len(entries) != len(shapes):
                return False
            for a, shape in zip(entries, shapes, strict=True):
                if type(a) is not kind or a.dtype != dtype or a.shape != shape or not a.flags.c_contiguous:
                    return False
                starts.append(a.data.ptr)
                sizes.append(a.size)
            written += [is_written] * len(entries)
    return _apart(np.array(starts), np.array(sizes) * dtype.itemsize, np.array(written), dtype.itemsize)


def _apart(starts: np.ndarray, sizes: np.ndarray, written: np.ndarray, itemsize: int) -> bool:
    filled = np.flatnonzero(sizes)
    order = filled[np.argsort(starts[filled], kind="stable")]
    starts, written = starts[order], written[order]
    if (starts % itemsize).any():
        return False
    ends = starts + sizes[order]
    # How far what came before reaches: anything, which a written array must not meet, and what is written.
    reach = np.maximum.accumulate(ends)[:-1]
    reach_written = np.maximum.accumulate(np.where(written, ends, 0))[:-1]
    return not (starts[1:] < np.where(written[1:], reach, reach_written)).any()
