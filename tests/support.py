"""What several tests share: random arrays, memory layouts and the float64 oracle."""

from __future__ import annotations

import numpy as np

import fastgrad

SHAPES = [(), (0,), (0, 3), (3, 0), (1,), (7,), (1, 1), (13, 17), (2, 3, 5), (4097,), (65537,), (1031, 3), (5, 8193)]


def random(seed: int, shape, dtype=np.float64, scale: float = 1.0) -> np.ndarray:
    """Return distinct normal numbers, none of them 0."""
    values = np.random.default_rng(seed).normal(scale=scale, size=shape)
    return np.asarray(np.where(values == 0, scale, values), dtype=dtype)


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """Return the same numbers in several memory layouts."""
    offset = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    offset[...] = array
    strided = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    strided[...] = array
    reversed_ = array[::-1].copy()[::-1]
    misaligned = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    misaligned[...] = array
    return {
        "fortran": np.asfortranarray(array),
        "offset": offset,
        "strided": strided,
        "reversed": reversed_,
        "misaligned": misaligned,
    }


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def oracle(function, *args, **kwargs):
    """Call a public function on the reference kernels, its float arrays (also in lists) in float64."""

    def wide(value):
        if isinstance(value, list):
            return [wide(v) for v in value]
        return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    with fastgrad.backend("reference"):
        return function(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
