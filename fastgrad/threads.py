"""How many threads the CPU kernels use."""

from __future__ import annotations

from operator import index


def set_num_threads(n: int) -> None:
    """Set the number of threads of the CPU kernels, for every Python thread of this process.

    Args:
        n: from 1 to the number that Numba started with, which is also the default: NUMBA_NUM_THREADS where that is set,
            else the processors that this process may run on.

    Results don't depend on it, bit for bit. Numba's own setting for other code is left as it is.

    Raises:
        TypeError: n is not an integer.
        ValueError: n is out of range.
    """
    from fastgrad.kernels import runtime

    try:
        if isinstance(n, bool):
            raise TypeError
        n = index(n)
    except TypeError:
        raise TypeError(f"n: expected an integer, got {type(n).__name__}") from None
    if not 1 <= n <= runtime.max_threads():
        raise ValueError(
            f"n: expected 1 to {runtime.max_threads()} threads, got {n}; more than that must be asked for before "
            "the first kernel runs, with the environment variable NUMBA_NUM_THREADS"
        )
    runtime.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that the CPU kernels use."""
    from fastgrad.kernels import runtime

    return runtime.num_threads()
