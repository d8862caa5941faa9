"""Keep a stream busy for a while; see delay.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

Array = Any

_DELAY = cuda.Kernel("delay", "fg_delay", "state: u32*, steps: i64")


def delay(state: Array, steps: int) -> None:
    """Go on by so many random numbers on the current stream. state (1,) uint32, not 0: in/out."""
    _DELAY(cuda.device_of(state), np.dtype(np.float32), 1, 1, state, steps)
