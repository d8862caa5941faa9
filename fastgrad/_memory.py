"""Arrays whose memory is used again: a training loop asks for the same sizes in every step.

The C library gives large blocks back to the system when they are freed, and a step then pays for every page anew: at
the default size of the trainer some 1,000 page faults a step. Here a block returns to a pool when the last array on it
is gone, and the next array of that size takes it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

ALIGNMENT = 64  # a cache line
SMALLEST = 1 << 15  # below this the C library's own free lists serve
FEW = SMALLEST // 32  # elements that are less than that, whatever they are


def _limit() -> int:
    """Return how many bytes are kept for later: 1 GB, or a sixteenth of a small memory.

    A step of an LSTM of (T, B, I, H) = (1024, 16, 768, 768) takes 400 MB: with 0.25 GB kept, 1.13 times the time.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 1 << 28
    return min(1 << 30, max(1 << 28, memory // 16))


LIMIT = _limit()

_lock = threading.RLock()  # a garbage collection inside of it may free a block on the same thread
# By size, the sizes used last at the end: arrays of bytes, and where in each the first cache line starts.
_free: OrderedDict[int, list[tuple[np.ndarray, int]]] = OrderedDict()
_kept = 0


def _let_go(block: Any) -> None:
    # At the end of the interpreter the module may be half gone.
    if _give_back is not None:
        _give_back(block.owner)


@functools.lru_cache(maxsize=256)
def _block_type(size: int) -> Any:
    """Return the type of what holds `size` bytes below an array, and gives them back with the last view of it.

    As a buffer it costs an array 0.7 us; a holder with an __array_interface__ costs 3.5.
    """
    return type("_Block", (ctypes.c_char * size,), {"__del__": _let_go})


def _take(size: int) -> tuple[np.ndarray, int]:
    global _kept
    with _lock:
        blocks = _free.get(size)
        if blocks:
            _free.move_to_end(size)
            _kept -= size
            return blocks.pop()
    # NumPy asks for huge pages for large arrays, which plain malloc does not.
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = raw.__array_interface__["data"][0]
    return raw, start + -start % ALIGNMENT


def _give_back(owner: tuple[np.ndarray, int]) -> None:
    global _kept
    size = owner[0].size - ALIGNMENT
    with _lock:
        _free.setdefault(size, []).append(owner)
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
    count = shape if type(shape) is int else math.prod(shape)  # type: ignore[arg-type]
    if count <= FEW:
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    size = dtype.itemsize * count
    if size < SMALLEST:
        return np.empty(shape, dtype)
    rounded = -(-size // 4096) * 4096
    owner = _take(rounded)
    block = _block_type(rounded).from_address(owner[1])
    block.owner = owner
    return np.ndarray(shape, dtype, block)
