"""Launch the table look-up and the gradient of the table on a device; see embedding.cu.

Backward takes 3 launches up to 2,048 indices, and one more for each doubling. A row of the table adds up its rows of dy
one after the other: where one index makes up most of many, that chain is what takes time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda

Array = Any

CHUNK = 2048  # as in embedding.cu
LARGEST = 2**32 - 1  # a key has 32 bits each for an index and its position

_FORWARD = cuda.Kernel(
    "embedding", "fg_embedding", "weight: T*, indices: i64*, y: T*, n: i64, V: i64, E: i64, vectors: i32"
)
_SORT = cuda.Kernel("embedding", "fg_embedding_sort", "indices: i64*, keys: u64*, n: i64, V: i64")
_MERGE = cuda.Kernel("embedding", "fg_embedding_merge", "from: u64*, to: u64*, n: i64, run: i64")
_BACKWARD = cuda.Kernel(
    "embedding", "fg_embedding_backward", "dy: T*, keys: u64*, dweight: T*, n: i64, E: i64, vectors: i32"
)


def _rows(device: cuda.Device, E: int, *arrays: Array) -> tuple[int, tuple[int, int]]:
    """Return how many columns a thread takes, and a block: threads along a row, and rows."""
    width = 16 // arrays[0].itemsize
    if E % width or any(a.data.ptr % 16 for a in arrays):
        width = 1
    along = min(cuda.WARP, 1 << (cuda.blocks(E, width) - 1).bit_length())
    return width, (along, cuda.threads(device) // along)


def forward(weight: Array, indices: Array, out: Array) -> None:
    """Write the chosen rows into `out` (n, E); NaN where an index is not from 0 to V - 1."""
    if out.size == 0:
        return
    V, E = weight.shape
    n = indices.size
    device = cuda.device_of(out)
    width, block = _rows(device, E, weight, out)
    _FORWARD(device, out.dtype, cuda.blocks(n, block[1]), block, weight, indices, out, n, V, E, width > 1)


def backward(dy: Array, indices: Array, dweight: Array) -> None:
    """Write (not add) the sum of dy over the uses of each row into dweight (V, E); rows not used get 0.

    Sums are in the order of the indices. One that is not from 0 to V - 1 is left out.
    """
    cuda.fill(0, dweight)
    V, E = dweight.shape
    n = indices.size
    if dy.size == 0 or V == 0:
        return
    if max(n, V) >= LARGEST:
        raise ValueError(f"embedding: {n} indices into {V} rows, expected less than {LARGEST} of both")
    device = cuda.device_of(dy)
    keys = _sorted(device, dy.dtype, indices, n, V)
    width, block = _rows(device, E, dy, dweight)
    grid = cuda.blocks(n, block[1]) * cuda.blocks(E, block[0] * width)
    _BACKWARD(device, dy.dtype, grid, block, dy, keys, dweight, n, E, width > 1)


def _sorted(device: cuda.Device, dtype: np.dtype, indices: Array, n: int, V: int) -> Array:
    keys = device.xp.empty(n, np.uint64)
    block = cuda.threads(device)
    _SORT(device, dtype, cuda.blocks(n, CHUNK), block, indices, keys, n, V)
    run = CHUNK
    other = device.xp.empty(n, np.uint64) if n > run else None
    while run < n:
        _MERGE(device, dtype, cuda.blocks(n, block), block, keys, other, n, run)
        keys, other = other, keys
        run *= 2
    return keys
