"""The machine, the versions and the number of threads, from `fastgrad profile`; and torch, or None."""

from __future__ import annotations

from typing import Any

from fastgrad._machine import allowed_cores as cores
from fastgrad._machine import processor
from fastgrad.profiling import environment
from fastgrad.profiling.environment import describe, products, set_threads, versions

__all__ = ["cores", "describe", "processor", "products", "set_threads", "torch", "versions"]

# A peer, not a dependency: without it its columns stay empty.
torch: Any = environment.torch()
