"""Elementwise kernels over any list of tensors, in one launch.

A kernel reads some streams of elements, applies a formula and writes some streams. All tensors of a list are cut into
blocks of BLOCK elements, and one launch runs the blocks of all of them: 200 tensors of 1,000 elements cost one launch.
Within a block, 256 bytes are taken of one stream before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import runtime
from .simd import Machine, Value, traced

SUM_LANES = 16  # doubles that the squares of a change are added up in
BLOCK = 16384  # elements: 64 KB of float32, a multiple of every vector
PARALLEL_SIZE = 65536  # elements in all below which handing work to threads costs more than it gains
STREAMING_BYTES = 1 << 25  # an output of this size has left the caches before anyone reads it

Formula = Callable[[Machine, list[Value], list[Value]], tuple[Value, ...]]


@runtime.inner
def tensor_of_block(starts, tensors, block):
    """Return which tensor a block belongs to; starts: address of the blocks before each tensor."""
    low, high = 0, tensors - 1
    while low < high:
        middle = (low + high + 1) // 2
        if runtime.peek(starts, middle) <= block:
            low = middle
        else:
            high = middle - 1
    return low


def streams_kernel(
    formula: Formula,
    dtype: np.dtype,
    reads: tuple[int, ...],
    writes: tuple[int, ...],
    scalars: int = 0,
    per_tensor: bool = False,
    streaming: bool = False,
    change: bool = False,
) -> Any:
    """Return the Python function of a kernel that writes formula(m, inputs, scalars) to its outputs.

    reads, writes : the streams (columns of the table) that the formula's inputs come from and its outputs go to; an
        output may be one of the inputs
    scalars : how many doubles it takes, each rounded to the dtype and spread over a vector
    per_tensor : append one further scalar that each tensor has of its own
    streaming : store past the caches
    change : also sum up, in double, the squares of what the first output changes its stream by, and of what stood there
        before; two doubles for each block, in place of `own`. An Adam step of GPT-2 small takes no longer for it.
    """
    item = dtype.itemsize
    count = max(*reads, *writes) + 1
    assert not change or (reads[0] == writes[0] and not streaming and not per_tensor)

    def chunk(m, table, tensors, tensor, first, last, numbers, own):
        bases = [m.load_int(table + (tensors * stream + tensor) * 8) for stream in range(count)]
        constants = [m.splat(m.load_double(numbers + i * 8)) for i in range(scalars)]
        if per_tensor:
            constants.append(m.splat(m.load_double(own + tensor * 8)))

        def body(index: Value, mask: Value | None) -> tuple[Value, Value]:
            inputs = [m.load_ahead(bases[stream] + index * item, mask) for stream in reads]
            outputs = formula(m, inputs, constants)
            for stream, value in zip(writes, outputs, strict=True):
                m.store(bases[stream] + index * item, value, mask, streaming and mask is None)
            return inputs[0], outputs[0]

        def measured(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            before, after = body(index, mask)
            moved = after - before
            # What a formula makes of the zeros past the end need not be zero.
            moved = moved if mask is None else m.select(mask, moved, 0.0)
            return [_add_squares(m, *pair) for pair in zip(state, (moved, before), strict=True)]

        if change:
            totals = m.fold(first, last, [m.with_lanes(SUM_LANES, np.float64).zero()] * 2, measured)
            for k, total in enumerate(totals):
                m.store_double(own + k * 8, m.reduce(total, lambda a, b: a + b))
            return
        m.over(first, last, lambda index, mask: body(index, mask) and None, bases[writes[0]] if streaming else None)
        if streaming:
            m.fence()

    run_chunk = traced(chunk, dtype)
    step = 16 if change else 0

    def kernel(block, pointers):
        # pointers: table (streams, tensors), tensors, blocks before each tensor (tensors + 1), sizes, scalars, own ones
        tensors, starts = pointers[1], pointers[2]
        tensor = tensor_of_block(starts, tensors, block)
        first = (block - runtime.peek(starts, tensor)) * BLOCK
        last = min(first + BLOCK, runtime.peek(pointers[3], tensor))
        run_chunk(pointers[0], tensors, tensor, first, last, pointers[4], pointers[5] + block * step)

    return kernel


def within_bounds(formula: Formula) -> Formula:
    """Return the formula with its first output clamped to [low, high], its last two scalars; NaN stays NaN."""

    def bounded(m: Machine, inputs: list[Value], scalars: list[Value]) -> tuple[Value, ...]:
        *own, low, high = scalars
        first, *rest = formula(m, inputs, own)
        return m.minimum(m.maximum(first, low), high), *rest

    return bounded


def _add_squares(m: Machine, total: Value, value: Value) -> Value:
    # Into few accumulators: 64 doubles for each of two sums would not leave registers for the formula.
    sums = m.with_lanes(SUM_LANES, np.float64)
    for part in m.split(value, SUM_LANES):
        x = m.convert(part, np.float64)
        total = sums.fma(x, x, total)
    return total


def _fold_changes(results, starts, tensors, found):
    # results (blocks, 2), found (2, tensors): the blocks of each tensor in their order
    for k in range(tensors):
        moved = before = 0.0
        for block in range(runtime.peek(starts, k), runtime.peek(starts, k + 1)):
            moved += runtime.peek_double(results, 2 * block)
            before += runtime.peek_double(results, 2 * block + 1)
        runtime.poke_double(found, k, moved)
        runtime.poke_double(found, tensors + k, before)


_changes_folder = runtime.compiled(_fold_changes)


class Table:
    """Where the elements of lists of tensors lie: the argument of a streams kernel.

    lists : one list of arrays per stream, all with the same sizes in the same order
    """

    def __init__(self, lists: Sequence[Sequence[np.ndarray]]):
        addresses = runtime.addresses([a for arrays in lists for a in arrays])
        sizes = np.array([a.size for a in lists[0]], np.int64)
        starts = np.zeros(sizes.size + 1, np.int64)
        np.cumsum(-(-sizes // BLOCK), out=starts[1:])
        self._lay_out(addresses, sizes, starts)
        self.filled(lists[0][0].dtype, int(starts[-1]), int(sizes.sum()))

    def _lay_out(self, addresses: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.tensors = sizes.size
        self.addresses, self.sizes, self.starts = addresses, sizes, starts
        self._start, self.starts_at, self._sizes_at = map(runtime.address, (addresses, starts, sizes))

    def filled(self, dtype: np.dtype, blocks: int, elements: int) -> None:
        """Say what the numbers of the table add up to."""
        self.dtype, self.blocks, self.elements = dtype, blocks, elements

    def run(
        self, kernel: runtime.Kernel, scalars: Sequence[float] = (), own: np.ndarray | None = None, stream: int = 0
    ) -> None:
        """Run a streams kernel over every element; `own` (tensors,) float64 are the scalars of each tensor."""
        numbers = runtime.doubles(*scalars)
        self.launch(kernel, runtime.address_of(numbers), 0 if own is None else runtime.address(own), stream)

    def run_measured(self, kernel: runtime.Kernel, scalars: Sequence[float], stream: int = 0) -> np.ndarray:
        """Run a streams kernel made with `change`; return the sums of squares for each tensor, float64 (2, tensors)."""
        results, found = np.empty((self.blocks, 2)), np.empty((2, self.tensors))
        self.run(kernel, scalars, results, stream)
        _changes_folder()(runtime.address(results), self.starts_at, self.tensors, runtime.address(found))
        return found

    def launch(self, kernel: runtime.Kernel, results: int, own: int, stream: int = 0) -> None:
        """Run a kernel over all blocks."""
        pointers = runtime.table(*self.pointers(results, own, stream))
        runtime.run(kernel, self.blocks, pointers, self.elements > PARALLEL_SIZE)

    def pointers(self, results: int, own: int, stream: int = 0) -> tuple[int, ...]:
        """Return what a kernel is given: the table from `stream` on, tensors, starts, sizes, and these two."""
        first = self._start + stream * self.tensors * 8
        return first, self.tensors, self.starts_at, self._sizes_at, results, own


class Held:
    """The arrays of a table while a call goes on."""

    __slots__ = ("arrays",)

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []


class Row(Sequence):
    """A list of arrays that is one stream of a table made earlier: those of `held` from place `first` on."""

    __slots__ = ("first", "held", "stream", "table")

    def __init__(self, table: Table, stream: int, held: Held, first: int):
        self.table, self.stream, self.held, self.first = table, stream, held, first

    def __len__(self) -> int:
        return self.table.tensors

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.held.arrays[self.first : self.first + self.table.tensors])


def table_of(lists: Sequence[Sequence[np.ndarray]]) -> tuple[Table, int]:
    """Return the table that holds these lists as neighbouring streams, made now if need be, and the first's number."""
    first = lists[0]
    if type(first) is not Row:
        return Table(lists), 0
    table, stream = first.table, first.stream
    if len(lists) > 1:
        for k, other in enumerate(lists):
            if type(other) is not Row or other.table is not table or other.stream != stream + k:
                return Table(lists), 0
    return table, stream


def run_single(kernel: runtime.Kernel, arrays: Sequence[np.ndarray], scalars: Sequence[float] = ()) -> None:
    """Run a streams kernel over one array for each stream: a `Table` of lists of one, at a quarter of its cost.

    A call on 64 elements takes 5 us in all, of which this is half.
    """
    size = arrays[0].size
    blocks = -(-size // BLOCK)
    # starts (2,), sizes (1,), table (streams, 1)
    inner = runtime.table(0, blocks, size, *map(runtime.address, arrays))
    numbers = runtime.doubles(*scalars)
    at = runtime.address_of(inner)
    pointers = runtime.table(at + 24, 1, at, at + 16, runtime.address_of(numbers), 0)
    runtime.run(kernel, blocks, pointers, parallel=size > PARALLEL_SIZE)


def may_stream(out: np.ndarray, inputs: Sequence[np.ndarray]) -> bool:
    """Say whether an output is written faster past the caches: it is large, and none of the inputs."""
    if out.nbytes < STREAMING_BYTES:
        return False
    start = runtime.address(out)
    return start % out.itemsize == 0 and all(runtime.address(a) != start for a in inputs)
