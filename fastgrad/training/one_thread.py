"""One thread for networks whose layers are too small for two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run kernels and NumPy's products on one thread, and put back what was before.

    A layer of 64 units and 128 rows takes some 20 us. Two threads made it slower by 1.4 times on two idle cores, and
    by 20 times and more where another program had one of them, since each waits for the other in every layer.
    """
    from fastgrad.threads import get_num_threads, set_num_threads

    before = get_num_threads()
    set_num_threads(1)
    try:
        with _products():
            yield
    finally:
        set_num_threads(before)


def _products() -> Any:
    """Return the limit for BLAS, or nothing where threadpoolctl, which the extras bring, is not installed."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, "blas")
