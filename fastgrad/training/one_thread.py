"""One thread for networks whose layers are too small for two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run kernels and NumPy's products on one thread, and put back what was before.

    A layer of 64 units and 128 rows takes some 20 us. Two threads made training 1.5 times slower on two idle cores, and
    ten times slower where another program had one of them, since each waits for the other in every layer.
    """
    from threadpoolctl import threadpool_limits

    from fastgrad.threads import get_num_threads, set_num_threads

    before = get_num_threads()
    set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        set_num_threads(before)
