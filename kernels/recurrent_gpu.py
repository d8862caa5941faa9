"""What the LSTM and GRU launchers share, and the choice between their two ways through the steps.

"stepwise": a product and a kernel for each step. Every launch may be captured into a graph, which takes the launches'
time off the host. "persistent": one kernel for all steps, which keeps W_hh on the chip.
"""

from __future__ import annotations

from typing import Any

from . import cuda
from .activation_gpu import column_sums, column_tile
from .matmul_gpu import matmul

Array = Any

STEP_BLOCK = 128  # threads: a step has few cells, which are to reach all multiprocessors

_ZERO_PADDING = cuda.Kernel(
    "recurrent", "fg_zero_padding", "x: T*, lengths: i64*, out: T*, steps: i64, batch: i64, inputs: i64"
)
_SUM_ROWS = cuda.Kernel("recurrent", "fg_sum_rows", "x: T*, partial: A*, rows: i64, columns: i64, vectors: i32")


def zeroed_padding(x: Array, lengths: Array | None) -> Array:
    """Return x (T, B, I) with zeros past each length; x itself without lengths."""
    if lengths is None:
        return x
    device = cuda.device_of(x)
    out = device.xp.empty(x.shape, x.dtype)
    block = cuda.threads(device)
    grid = min(cuda.blocks(x.size, block), 16 * device.multiprocessors)
    _ZERO_PADDING(device, x.dtype, grid, block, x, lengths, out, *x.shape)
    return out


def flat(array: Array) -> Array:
    """Return (T, B, N) as the matrix (T B, N) of the same memory."""
    steps, batch, columns = array.shape
    return array.reshape(steps * batch, columns)


def input_products(x: Array, weight_ih: Array) -> Array:
    """Return x W_ih^T for all steps at once, (T, B, gates)."""
    products = cuda.device_of(x).xp.empty((*x.shape[:2], weight_ih.shape[0]), x.dtype)
    matmul(flat(x), weight_ih, flat(products), transpose_b=True)
    return products


def states(initial: Array, steps: int, reverse: bool) -> Array:
    """Return (T + 1, B, H) with the initial state in the slot before the first step."""
    result = cuda.device_of(initial).xp.empty((steps + 1, *initial.shape), initial.dtype)
    result[steps if reverse else 0] = initial
    return result


def own_or_zeros(gradient: Array | None, like: Array) -> Array:
    """Return a copy that may be written, or zeros in the shape of `like`."""
    return cuda.device_of(like).xp.zeros(like.shape, like.dtype) if gradient is None else gradient.copy()


def sum_rows(matrix: Array) -> Array:
    """Return the sum of a matrix (rows, N) over its rows, in a fixed order."""
    device = cuda.device_of(matrix)
    rows, columns = matrix.shape
    out = device.xp.empty((columns,), matrix.dtype)
    tile = column_tile(device, rows, columns, matrix.dtype, (matrix,))
    partial = device.xp.empty((tile.row_blocks, columns), matrix.dtype)
    _SUM_ROWS(
        device, matrix.dtype, tile.grid, tile.block, matrix, partial, rows, columns, tile.width > 1,
        shared=tile.block[0] * tile.block[1] * tile.width * matrix.itemsize,
    )  # fmt: skip
    column_sums(partial, out)
    return out


class StepShape:
    """How the cells of one step are spread over threads.

    Attributes:
        vectors: each thread takes 16 bytes of units.
        grid, block: blocks, threads.
    """

    __slots__ = ("block", "grid", "vectors")

    def __init__(self, device: cuda.Device, state: Array, arrays: tuple[Array | None, ...]) -> None:
        batch, hidden = state.shape[-2:]
        width = 16 // state.itemsize
        self.vectors = hidden % width == 0 and not any(a.data.ptr % 16 for a in arrays if a is not None)
        self.block = cuda.threads(device, STEP_BLOCK)
        self.grid = cuda.blocks(batch * hidden // (width if self.vectors else 1), self.block)
