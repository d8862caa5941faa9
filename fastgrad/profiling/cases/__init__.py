"""What is measured: one operation at one size, and what its builders share; a module for each group of operations.

A size is the number of elements of the first array, float32; where that has two axes, of about so many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad import _arrays
from fastgrad.profiling import limits
from fastgrad.profiling.costs import Cost

Array = Any
Run = Callable[[], Any]

COLUMNS = 1024  # of a matrix that has so many elements; the sizes of layers' rows


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    inputs: host arrays. bind: given them, or the same on a device, makes the arrays for results and what comes before,
    and returns the call to be timed, which returns its results. torch: given torch and tensors, the same call there.
    changed: which inputs the call writes. limit: what the machine allows on the CPU.
    """

    shape: str
    cost: Cost
    inputs: tuple[Any, ...]
    bind: Callable[..., Run]
    limit: Callable[[], limits.Limit] | None
    torch: Callable[..., Run] | None = None
    changed: tuple[int, ...] = ()


def numbers(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values * np.float32(scale) if scale != 1.0 else values


def like(array: Array) -> Array:
    return _arrays.empty(array.shape, array.dtype, array)


def rows_of(size: int) -> tuple[int, int]:
    columns = min(COLUMNS, size)
    return max(1, size // columns), columns


def named(*shape: int) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def moving(n: int, reads: int, writes: int, in_place: bool = False) -> Callable[[], limits.Limit]:
    return lambda: limits.of_memory(limits.moving(n, reads, writes, in_place=in_place))
