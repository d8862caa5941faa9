"""Sums of doubles in NumPy's order, in compiled code: a call of np.sum takes 0.8 us, and np.errstate another 0.7."""

from __future__ import annotations

from . import runtime
from .runtime import peek_double


@runtime.inner
def pairwise(values, count):
    """Sum doubles in NumPy's order: eight totals in each run of 128, and a tree of those."""
    if count < 8:
        total = -0.0
        for i in range(count):
            total += peek_double(values, i)
        return total
    if count > 128:
        half = count // 2 - count // 2 % 8
        return pairwise(values, half) + pairwise(values + half * 8, count - half)
    a, b, c, d = peek_double(values, 0), peek_double(values, 1), peek_double(values, 2), peek_double(values, 3)
    e, f, g, h = peek_double(values, 4), peek_double(values, 5), peek_double(values, 6), peek_double(values, 7)
    whole = count - count % 8
    for i in range(8, whole, 8):
        a += peek_double(values, i)
        b += peek_double(values, i + 1)
        c += peek_double(values, i + 2)
        d += peek_double(values, i + 3)
        e += peek_double(values, i + 4)
        f += peek_double(values, i + 5)
        g += peek_double(values, i + 6)
        h += peek_double(values, i + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, count):
        total += peek_double(values, i)
    return total


def _sum(values, count):
    return pairwise(values, count)


_summer = runtime.compiled(_sum, returns=float)


def total(values: int, count: int) -> float:
    """Return the sum of `count` doubles at an address."""
    return _summer()(values, count)
