"""Dropout by counted random numbers: y = x / (1 - p) where the random number of an entry keeps it, else 0.

The numbers are Philox 4x32-10 of (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011): entry i of an
array in C order has word (i % 64) // 16 of the counter (16 (i // 64) + i % 16, offset), two 64-bit halves, under the
key `seed`. It depends on nothing else, so backward makes it again.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: Array, key: tuple[int, int]) -> Array:
    """Return four random words of 32 bits for each counter, uint64 (4, n) of 32 bits each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        low = np.uint64(0xFFFFFFFF)
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0), second & low,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1), first & low,
        )  # fmt: skip
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def dropout(x: Array, threshold: int, scale: float, seed: int, offset: int, out: Array) -> None:
    """Write x scale where the random number is at least `threshold`, else 0, into `out` (n,), may be x."""
    groups = np.arange(-(-x.size // 64) * 16, dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    rest = [np.full_like(groups, half) for half in (offset & 0xFFFFFFFF, offset >> 32)]
    words = philox(np.stack([groups & low, groups >> high, *rest]), (seed & 0xFFFFFFFF, seed >> 32))
    numbers = words.reshape(4, -1, 16).transpose(1, 0, 2).reshape(-1)[: x.size]
    with np.errstate(all="ignore"):
        out[...] = np.where(numbers >= np.uint64(threshold), x * x.dtype.type(scale), 0)
