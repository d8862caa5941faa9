"""The sizes and arrays that the benchmarks share.

FASTGRAD_BENCH_QUICK=1 makes everything small: it shows that the benchmarks run, its times mean nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]

QUICK = os.environ.get("FASTGRAD_BENCH_QUICK", "0") not in ("", "0")

# Rows and columns of the elementwise benchmarks: 64 MiB an array, larger than the caches of most machines.
MATRIX: Shape = (64, 256) if QUICK else (8192, 2048)
# Rows and columns of the product whose rate is the limit of recurrent layers.
PRODUCT = 128 if QUICK else 2048
ONE_TENSOR: list[Shape] = [(1 << 16,)] if QUICK else [(1 << 25,)]
SMALL_TENSORS: list[Shape] = [(1000,)] * 200


def gpt2_shapes(vocabulary: int, context: int, width: int, blocks: int) -> list[Shape]:
    """Return the shapes of GPT-2's parameters in the order of its state_dict: 12 a block, and 4."""
    block: list[Shape] = [
        (width,),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        (width,),
        (width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    return [(vocabulary, width), (context, width), *block * blocks, (width,), (width,)]


# GPT-2 small: 148 tensors, 124,439,808 parameters.
GPT2_SMALL = gpt2_shapes(997, 64, 32, 12) if QUICK else gpt2_shapes(50257, 1024, 768, 12)

LISTS: dict[str, list[Shape]] = {"gpt2-small": GPT2_SMALL, "200x1000": SMALL_TENSORS}

# (T, B, I, H): time, batch, input, hidden.
SEQUENCES: list[tuple[int, int, int, int]] = (
    [(5, 4, 16, 16)] if QUICK else [(64, 32, 256, 256), (35, 20, 650, 650), (100, 1, 128, 128), (256, 16, 64, 64)]
)
# Those of `compare.py` beyond these: seconds for a call of naive NumPy.
LONG_SEQUENCES: list[tuple[int, int, int, int]] = [] if QUICK else [(128, 64, 512, 512), (1024, 16, 768, 768)]
# The layer of the character model that `fastgrad train` trains by default.
TRAINER_SEQUENCE = (5, 4, 8, 16) if QUICK else (64, 32, 64, 256)
# (B, H) of one step of a cell, I = H.
CELL = (4, 16) if QUICK else (32, 256)


def count(shapes: Sequence[Shape]) -> int:
    """Return the number of elements of arrays of these shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    """Return float32 numbers from N(0, scale^2)."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if scale != 1.0:
        values *= np.float32(scale)
    return values


def normals(seed: int, shapes: Sequence[Shape], scale: float = 1.0) -> list[Array]:
    """Return one float32 array of N(0, scale^2) for each shape, each in memory of its own."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    for array in arrays:
        array *= np.float32(scale)
    return arrays


def copies(arrays: Sequence[Array]) -> list[Array]:
    """Return copies in memory of their own."""
    return [array.copy() for array in arrays]


def zeros(shapes: Sequence[Shape]) -> list[Array]:
    """Return float32 zeros, their pages already mapped, which np.zeros leaves to the first write."""
    return [np.full(shape, 0.0, np.float32) for shape in shapes]


def name_of(shapes: Sequence[Shape]) -> str:
    """Return "8192x2048" for one shape, "148 tensors, 124,439,808 floats" for several."""
    if len(shapes) == 1:
        return "x".join(map(str, shapes[0]))
    return f"{len(shapes)} tensors, {count(shapes):,} floats"
