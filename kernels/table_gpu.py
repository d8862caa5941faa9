"""Tables of addresses, by which one launch reaches any lists of tensors on a device; see lists.cuh.

A table depends on nothing but the addresses and sizes in it. Those are its key, so that arrays allocated anew are
noticed, whoever has them now, and a table that is there is never wrong. It is uploaded by one copy of pinned memory,
in the order of the stream, without waiting.

A launch that is being captured into a graph bakes in the address of its table. A table can't be made then, since the
copy would read its pinned memory anew in each replay: a call outside of the capture, on the same stream and with the
same arrays, has to come first. Arrays of a list that are not contiguous are copied into new memory in each call, whose
table is never there: leave them out of graphs.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import cuda

Array = Any

CHUNK = 16384  # as in lists.cuh
TERMS = 3  # doubles that a chunk or a tensor leaves in a norm, at most
COUNTS = 5  # numbers more that it leaves in health.cu
TABLES_KEPT = 64  # one of 4 times 148 tensors and 124 million elements takes 70 KB, its scratch 190

_lock = threading.Lock()
_tables: OrderedDict[Any, Table] = OrderedDict()  # in the order of use, the latest at the end


class Table:
    """Lists of arrays on a device: the first three arguments of a kernel, and scratch for norms over it.

    head : table, streams, tensors, as kernels take them
    chunks : blocks that cover all elements of a stream
    partial, counts, totals, norms, norm, coefficients, arrived : scratch of the norm kernels and of health.cu, for the
        stream in whose order the table was made
    """

    def __init__(self, device: cuda.Device, lists: Sequence[Sequence[Array]], addresses: list[int], numbers: list[int]):
        sizes = [a.size for a in lists[0]]
        tensors = len(sizes)
        counts = [-(-size // CHUNK) for size in sizes]
        starts = [0, *itertools.accumulate(counts)]
        owners = np.repeat(np.arange(tensors), counts)
        host = np.concatenate([np.array([*addresses, *sizes, *numbers, *starts], np.int64), owners])
        self.device, self.dtype, self.tensors, self.chunks = device, lists[0][0].dtype, tensors, starts[-1]
        xp = device.xp
        self.head = (xp.asarray(host), len(lists), tensors)
        self.arrived = xp.zeros(1, np.uint32)
        self.totals, self.norms, self.norm, self.coefficients = (
            xp.empty(size, np.float64) for size in (TERMS * tensors, tensors, 1, tensors + 2)
        )
        self.partial = xp.empty(TERMS * self.chunks, np.float64)
        self.counts = xp.empty(COUNTS * self.chunks, np.int64)

    def result(self, shape: int | tuple[int, ...]) -> Array:
        """Return a new float64 array for what a call returns."""
        with self.device.here():
            return self.device.xp.empty(shape, np.float64)

    def launch(self, kernel: cuda.Kernel, lists: Sequence[Sequence[Array]], *args: Any, **variant: Any) -> None:
        """Run a kernel that takes a chunk a block; `lists` are those of the table."""
        touches = list(itertools.chain.from_iterable(lists))
        block = cuda.threads(self.device)
        kernel(self.device, self.dtype, self.chunks, block, *self.head, *args, touches=touches, **variant)


def current_stream(device: cuda.Device) -> Any:
    """Return the stream on which a device runs what is launched now."""
    with device.here():
        return device.xp.cuda.get_current_stream()


def refuse_capture(device: cuda.Device, what: str) -> None:
    """Raise RuntimeError where the current stream is being captured: `what` can't be made then."""
    with device.here():
        recording = device.capturing()
    if recording:
        raise RuntimeError(
            f"{what} can't be made while a graph is captured; make the same call with the same arrays once before, "
            f"on the same stream"
        )


def table_of(lists: Sequence[Sequence[Array]], numbers: Sequence[int] | None = None) -> Table:
    """Return the table of lists that are alike in dtype and sizes, at least one array each; made now if need be.

    numbers : one for each tensor, for the use of the kernel; 0, 1, ... without

    Raises:
        RuntimeError: there is none yet, and the stream is being captured.
    """
    first = lists[0]
    device = cuda.device_of(first[0])
    addresses = [a.data.ptr for arrays in lists for a in arrays]
    own = list(range(len(first))) if numbers is None else list(numbers)
    key = (device, current_stream(device).ptr, first[0].dtype, len(lists), *addresses, *(a.size for a in first), *own)
    with _lock:
        table = _tables.get(key)
        if table is not None:
            _tables.move_to_end(key)
    if table is None:
        refuse_capture(device, "the table of these arrays")
        with device.here():
            table = Table(device, lists, addresses, own)
        with _lock:
            _tables[key] = table
            if len(_tables) > TABLES_KEPT:
                _tables.popitem(last=False)
    return table
