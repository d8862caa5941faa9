"""Arrays whose memory is used again: a training loop asks for the same sizes in every step.

The C library gives large blocks back to the system when they are freed, and a step then pays for every page anew: at
the default size of the trainer some 1,000 page faults a step. Here a block returns to a pool when the last array on it
is gone, and the next array of that size takes it.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

ALIGNMENT = 64  # a cache line
SMALLEST = 1 << 15  # below this the C library's own free lists serve
LIMIT = 1 << 28  # bytes kept for later

_lock = threading.RLock()  # a garbage collection inside of it may free a block on the same thread
_free: OrderedDict[int, list[np.ndarray]] = OrderedDict()  # by size, the sizes used last at the end
_kept = 0


class _Block:
    """The memory below an array; NumPy holds it as the array's base and lets go of it with the last view."""

    __slots__ = ("__array_interface__", "raw")

    def __init__(self, raw: np.ndarray, address: int, size: int):
        self.raw = raw
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        # At the end of the interpreter the module may be half gone.
        if _give_back is not None:
            _give_back(self.raw)


def _take(size: int) -> np.ndarray:
    global _kept
    with _lock:
        blocks = _free.get(size)
        if blocks:
            _free.move_to_end(size)
            _kept -= size
            return blocks.pop()
    # NumPy asks for huge pages for large arrays, which plain malloc does not.
    return np.empty(size + ALIGNMENT, np.uint8)


def _give_back(raw: np.ndarray) -> None:
    global _kept
    size = raw.size - ALIGNMENT
    with _lock:
        _free.setdefault(size, []).append(raw)
        _free.move_to_end(size)
        _kept += size
        while _kept > LIMIT:
            oldest = next(iter(_free))
            if _free[oldest]:
                _free[oldest].pop()
                _kept -= oldest
            else:
                del _free[oldest]


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialised C-contiguous array; one of SMALLEST bytes or more starts on a cache line."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize * (shape if isinstance(shape, int) else math.prod(shape))
    if size < SMALLEST:
        return np.empty(shape, dtype)
    block = _take(-(-size // 4096) * 4096)
    address = block.__array_interface__["data"][0]
    return np.asarray(_Block(block, address + -address % ALIGNMENT, size)).view(dtype).reshape(shape)
