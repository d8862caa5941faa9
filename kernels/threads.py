"""The threads that kernels run on: how many, and how a launch is spread over them.

On Linux they are those of OpenMP's library, asked directly: one call starts a team, and each of its threads takes an
equal run of blocks. It is the pool that Numba's parallel loops and other OpenMP code of the process use as well. Where
that library is not there, or NUMBA_THREADING_LAYER asks for another, Numba's own threading layer does it.

OpenMP's threads spin for some milliseconds between launches, and that is left so. Told to sleep after 0.2 to 1 ms
(GOMP_SPINCOUNT), a step of the trainer took as long on a quiet machine and a fifth less beside a busy process; but now
and then the scheduler kept waking both threads on one core, where each launch waits for a whole spin.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

LIBRARY = "libgomp.so.1"
OPENMP = ("default", "omp", "threadsafe")  # values of NUMBA_THREADING_LAYER that OpenMP is an answer to


def _numba_config() -> Any:
    """Return Numba's settings where something has imported it, and may have changed them; else None."""
    return getattr(sys.modules.get("numba"), "config", None)


def _most() -> int:
    if config := _numba_config():
        return config.NUMBA_NUM_THREADS
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else allowed


_max_threads = _threads = _most()


def max_threads() -> int:
    """Return how many threads there are: NUMBA_NUM_THREADS, else one for each processor."""
    return _max_threads


def set_num_threads(n: int) -> None:
    global _threads
    _threads = n


def num_threads() -> int:
    """Return how many threads a parallel run uses."""
    return 1 if _pool_lost else _threads


_pool_lost = False  # in the child of a fork, which has none of its parent's threads


def _after_fork_in_child() -> None:
    global _pool_lost
    numba_parallel = sys.modules.get("numba.np.ufunc.parallel")
    _pool_lost = _pool_lost or layer.cache_info().currsize > 0 or getattr(numba_parallel, "_is_initialized", False)


if hasattr(os, "register_at_fork"):
    # OpenMP's pool does not survive a fork: using it there ends the process. The child computes on one thread instead.
    os.register_at_fork(after_in_child=_after_fork_in_child)


def pool_lost() -> bool:
    """Say whether this process was forked from one that had started threads, and computes on one."""
    return _pool_lost


class OpenMP:
    """GNU's OpenMP library: addresses of what starts a team, of its barrier, of what tells place and size."""

    name = "omp"

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self.start, self.barrier, self.place, self.size = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            for name in ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
        )


class NumbaLayer:
    """One of Numba's threading layers: tbb, omp or workqueue."""

    def __init__(self) -> None:
        import numba
        from numba.np.ufunc import parallel

        parallel._launch_threads()
        self.name: str = numba.threading_layer()
        module = __import__(f"numba.np.ufunc.{LAYER_MODULES[self.name]}", fromlist=["parallel_for"])
        pointers, numbers = [ctypes.c_void_p] * 5, [ctypes.c_size_t] * 2
        # (function, arguments, sizes, strides, data, inner dimensions, number of arguments, threads): calls
        # function(arguments, sizes, strides, data) for each index below sizes[0], arguments moved on by the strides.
        self.start: Callable[..., None] = ctypes.CFUNCTYPE(None, *pointers, *numbers, ctypes.c_int)(module.parallel_for)


LAYER_MODULES = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}


def _openmp() -> OpenMP | None:
    config = _numba_config()
    wanted = config.THREADING_LAYER if config else os.environ.get("NUMBA_THREADING_LAYER", "default")
    if not sys.platform.startswith("linux") or str(wanted).lower() not in OPENMP:
        return None
    try:
        return OpenMP(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError):
        return None


@functools.cache
def layer() -> OpenMP | NumbaLayer:
    """Return what runs the threads, settled when it is first asked for."""
    return _openmp() or NumbaLayer()


def threading_layer() -> str:
    """Return which threading layer runs the threads: tbb, omp or workqueue."""
    return layer().name
