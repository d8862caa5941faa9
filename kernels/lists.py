"""Check lists of arrays in compiled code, and keep the tables of their addresses from call to call.

What the check of a well-formed list looks at stands in the objects themselves, in NumPy's public struct, where every
compiled extension reads it: type, address, shape, dtype, flags. A compiled loop reads all of it anew in each call, in
6 us for 800 arrays where Python takes 150, and writes the addresses into a `Plan` kept from an earlier call. Only one
verdict is carried over: which memory overlaps follows from addresses, sizes and dtype alone, so it is worked out again
when one of those has changed. A plan can't be stale, whoever has reallocated, reshaped or replaced an array.

The check passes C-contiguous aligned arrays of one float dtype; for whatever else `Plan.read` says no, and the caller
examines the lists in Python. `all_within` does the same for integers, such as class numbers.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import sysconfig

import numpy as np

from . import runtime
from .runtime import peek, poke
from .streams import BLOCK, Held, Row, Table

# Offsets in bytes. Those behind the header are of PyArrayObject_fields and PyArray_Descr in ndarraytypes.h.
HEADER = object.__basicsize__
TYPE = HEADER - 8  # ob_type
DATA, NDIM, SHAPE, DESCR, FLAGS = HEADER, HEADER + 8, HEADER + 16, HEADER + 40, HEADER + 48
ITEMS = HEADER + 8  # ob_item of a list
KIND = HEADER + 8  # of a dtype: kind, type, byteorder, a byte of flags, type_num

INT32 = 0xFFFFFFFF
KIND_BITS = ~(0xFF << 24)  # all of KIND but the flags
READ, WRITE = 0x1 | 0x100, 0x400  # NPY_ARRAY_C_CONTIGUOUS and ALIGNED; WRITEABLE

# Lists of one layout may take turns: the gradients of two models, or of a loop that gets new arrays in each step. A
# plan of 800 arrays takes 36 KB.
PLANS_KEPT = 4
LAYOUTS_KEPT = 16

# A layout: for each set of lists how many lists, how many arrays in each, and a bit for each list that is written.
Layout = tuple[tuple[int, int, int], ...]

REFUSED, AS_BEFORE, ANEW = range(3)  # what reading lists comes to

# The memory of a plan, int64: its head, then one entry for each set, then their tables.
PASSED, SETS, SCRATCH, NDARRAY, SINGLE, DOUBLE, HEAD = range(7)
LISTS, LENGTH, WRITTEN, ADDRESSES, SIZES, STARTS, BLOCKS, ELEMENTS, ENTRY = range(9)


@runtime.inner
def _merge(source, target, first, middle, last):
    """Merge two runs of pairs, sorted by their first number, from one buffer into another."""
    left, right = first, middle
    for place in range(first, last):
        take_left = right >= last
        if left < middle and right < last:
            take_left = peek(source, 2 * left) <= peek(source, 2 * right)
        chosen = left if take_left else right
        poke(target, 2 * place, peek(source, 2 * chosen))
        poke(target, 2 * place + 1, peek(source, 2 * chosen + 1))
        left += take_left
        right += not take_left


@runtime.inner
def _apart(plan, itemsize):
    """Say whether no array that is written shares memory with another one."""
    total = 0
    for k in range(peek(plan, SETS)):
        total += peek(plan, HEAD + k * ENTRY + LISTS) * peek(plan, HEAD + k * ENTRY + LENGTH)
    here, there = peek(plan, SCRATCH), peek(plan, SCRATCH) + total * 16
    count = 0
    for k in range(peek(plan, SETS)):
        entry = plan + (HEAD + k * ENTRY) * 8
        length = peek(entry, LENGTH)
        for i in range(peek(entry, LISTS) * length):
            size = peek(peek(entry, SIZES), i % length)
            if size > 0:
                low = peek(peek(entry, ADDRESSES), i)
                # The end and whether it is written in one number: addresses leave a bit free.
                poke(here, 2 * count, low)
                poke(here, 2 * count + 1, (low + size * itemsize) * 2 + (peek(entry, WRITTEN) >> (i // length) & 1))
                count += 1
    width = 1
    while width < count:
        for first in range(0, count, 2 * width):
            _merge(here, there, first, min(first + width, count), min(first + 2 * width, count))
        here, there = there, here
        width *= 2
    written_end = any_end = 0
    for i in range(count):
        low, end = peek(here, 2 * i), peek(here, 2 * i + 1) >> 1
        written = peek(here, 2 * i + 1) & 1
        if low < (any_end if written else written_end):
            return False
        any_end = max(any_end, end)
        if written:
            written_end = max(written_end, end)
    return True


@runtime.inner
def _plain(array, ndarray, kind, flags):
    """Say whether an object is an ndarray, of this kind of dtype, with all of these flags."""
    if peek(array + TYPE, 0) != ndarray:
        return False  # whatever it is, no further byte of it is read
    if peek(peek(array + DESCR, 0) + KIND, 0) & KIND_BITS != kind:
        return False
    return peek(array + FLAGS, 0) & flags == flags


@runtime.inner
def _size_if_alike(items, k, length, lists, ndarray, kind, written):
    """Return the size of entry k of every list, or -1 where one is not plain or has another shape."""
    first = peek(items, k)
    if not _plain(first, ndarray, kind, READ | (WRITE if written & 1 else 0)):
        return -1
    rank, shape = peek(first + NDIM, 0) & INT32, peek(first + SHAPE, 0)
    size = 1
    for axis in range(rank):
        size *= peek(shape, axis)
    for j in range(1, lists):
        other = peek(items, j * length + k)
        if not _plain(other, ndarray, kind, READ | (WRITE if written >> j & 1 else 0)):
            return -1
        if peek(other + NDIM, 0) & INT32 != rank:
            return -1
        other_shape = peek(other + SHAPE, 0)
        for axis in range(rank):
            if peek(other_shape, axis) != peek(shape, axis):
                return -1
    return size


def _read_lists(arrays, plan):
    # arrays: address of the list object that holds all arrays of the plan, set by set and list by list
    items, ndarray = peek(arrays + ITEMS, 0), peek(plan, NDARRAY)
    if peek(peek(items, 0) + TYPE, 0) != ndarray:
        return REFUSED
    kind = peek(peek(peek(items, 0) + DESCR, 0) + KIND, 0) & KIND_BITS
    itemsize = 4 if kind == peek(plan, SINGLE) else 8
    if itemsize == 8 and kind != peek(plan, DOUBLE):
        return REFUSED
    unchanged = peek(plan, PASSED) == kind
    poke(plan, PASSED, 0)
    for s in range(peek(plan, SETS)):
        entry = plan + (HEAD + s * ENTRY) * 8
        lists, length, addresses = peek(entry, LISTS), peek(entry, LENGTH), peek(entry, ADDRESSES)
        sizes, starts = peek(entry, SIZES), peek(entry, STARTS)
        blocks = elements = 0
        for k in range(length):
            size = _size_if_alike(items, k, length, lists, ndarray, kind, peek(entry, WRITTEN))
            if size < 0:
                return REFUSED
            unchanged = unchanged and size == peek(sizes, k)
            poke(sizes, k, size)
            poke(starts, k, blocks)
            blocks += (size + BLOCK - 1) // BLOCK
            elements += size
            for j in range(lists):
                data = peek(peek(items, j * length + k) + DATA, 0)
                unchanged = unchanged and data == peek(addresses, j * length + k)
                poke(addresses, j * length + k, data)
        poke(starts, length, blocks)
        poke(entry, BLOCKS, blocks)
        poke(entry, ELEMENTS, elements)
        items += lists * length * 8
    if not unchanged and not _apart(plan, itemsize):
        return REFUSED
    poke(plan, PASSED, kind)
    return AS_BEFORE if unchanged else ANEW


def _all_within(numbers, count, low, high, other):
    within = True
    for i in range(count):
        number = peek(numbers, i)
        within &= (low <= number) & (number < high) | (number == other)
    return within


_within_checker = runtime.compiled(_all_within, returns=bool)


def all_within(numbers: np.ndarray, low: int, high: int, other: int) -> bool:
    """Say whether int64 numbers, C-contiguous and aligned, are all in [low, high), or `other`."""
    return _within_checker()(runtime.address(numbers), numbers.size, low, high, other)


# With the GIL: nobody replaces or frees an object while it is read.
_reader = runtime.compiled(_read_lists, nogil=False, returns=int)


def _number(address: int) -> int:
    return ctypes.c_ssize_t.from_address(address).value


def _kind(dtype: np.dtype) -> int:
    return _number(id(dtype) + KIND) & KIND_BITS


_FLOATS = {_kind(dtype): dtype for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


@functools.cache
def readable() -> bool:
    """Say whether objects of this interpreter and this NumPy look as the compiled check expects, by trying some."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False

    number = _number
    frozen = np.zeros((2, 3), np.float32)
    frozen.flags.writeable = False
    probes: list[np.ndarray] = [
        np.zeros(3),
        np.zeros(()),
        np.zeros((0, 4)),
        np.zeros((5, 2), np.float32),
        frozen,
        frozen[1:, ::2],
    ]
    items = number(id(probes) + ITEMS)
    for k, probe in enumerate(probes):
        here = number(items + 8 * k)
        if here != id(probe) or number(here + TYPE) != id(np.ndarray) or number(here + DESCR) != id(probe.dtype):
            return False
        seen = (number(here + DATA), number(here + NDIM) & INT32, number(here + FLAGS) & INT32)
        if seen != (probe.__array_interface__["data"][0], probe.ndim, probe.flags.num):
            return False
        shape = number(here + SHAPE)
        if tuple(number(shape + 8 * axis) for axis in range(probe.ndim)) != probe.shape:
            return False
    f4, f8 = np.dtype("f4"), np.dtype("f8")
    others: list[np.dtype] = [
        f8,
        f4.newbyteorder(),
        f8.newbyteorder(),
        *(np.dtype(name) for name in ("f2", "i4", "i8", "c8", "U1")),
    ]
    return _kind(np.dtype("f4", copy=True)) == _kind(f4) and all(_kind(other) != _kind(f4) for other in others)


class PlannedTable(Table):
    """A table whose numbers lie in the memory of a plan."""

    def __init__(self, addresses: np.ndarray, sizes: np.ndarray, starts: np.ndarray):
        self._lay_out(addresses, sizes, starts)


# Both in the order of use, the latest at the end. No lock, which takes 0.13 us: each operation on them is atomic under
# the GIL, what threads make of the order is a guess spoiled at worst, and who has popped a plan has it alone.
_kept: dict[Layout, list[Plan]] = {}


class Plan:
    """The tables of some sets of lists, filled by `read`; one thread's at a time.

    first : id of the first array read last, a guess at who will want it next
    sets : for each set the rows that stand for its lists
    """

    def __init__(self, layout: Layout):
        counts = [lists * length for lists, length, _ in layout]
        room = sum(count + 2 * length + 1 for count, (_, length, _) in zip(counts, layout, strict=True))
        scratch = HEAD + ENTRY * len(layout)
        tables = scratch + 4 * sum(counts)
        self._memory = np.zeros(tables + room, np.int64)
        self._address = runtime.address(self._memory)
        self._memory[SETS], self._memory[SCRATCH] = len(layout), self._address + 8 * scratch
        self._memory[[NDARRAY, SINGLE, DOUBLE]] = id(np.ndarray), *_FLOATS
        self._head = self._memory[:scratch]
        self._entries = [HEAD + k * ENTRY for k in range(len(layout))]
        self._read = _reader()
        self.layout = layout
        self.first: int | None = None
        self._held = Held()  # apart from the plan, which would otherwise refer to itself and outlive a failed call
        self.sets: list[list[Row]] = []
        self._tables: list[PlannedTable] = []
        first, place = 0, tables
        for k, (lists, length, written) in enumerate(layout):
            ends = np.cumsum([place, counts[k], length, length + 1])
            parts = [self._memory[a:b] for a, b in itertools.pairwise(ends)]
            entry = self._entries[k]
            self._memory[entry : entry + ENTRY] = (lists, length, written, *map(runtime.address, parts), 0, 0)
            table = PlannedTable(*parts)
            self._tables.append(table)
            self.sets.append([Row(table, j, self._held, first + j * length) for j in range(lists)])
            first, place = first + counts[k], int(ends[-1])

    def read(self, arrays: list[np.ndarray]) -> bool:
        """Check `arrays`, those of all sets one behind the other, and table them; say whether all is plain.

        Plain is: ndarrays, C-contiguous and aligned, all float32 or all float64, the lists of a set alike in shape, and
        what is written writable and sharing no memory with anything else.
        """
        found = self._read(id(arrays), self._address)
        if found == REFUSED:
            return False
        self._held.arrays = arrays
        if found == ANEW:
            head = self._head.tolist()
            for table, entry in zip(self._tables, self._entries, strict=True):
                table.filled(_FLOATS[head[PASSED]], head[entry + BLOCKS], head[entry + ELEMENTS])
        return True

    def give_back(self) -> None:
        """Let go of the arrays, and keep the plan for a later call."""
        self._held.arrays = []
        plans = _kept.pop(self.layout, None) or []
        plans.append(self)
        if len(plans) > PLANS_KEPT:
            del plans[:-PLANS_KEPT]
        _kept[self.layout] = plans
        if len(_kept) > LAYOUTS_KEPT:
            for layout in list(_kept)[:-LAYOUTS_KEPT]:
                _kept.pop(layout, None)


def _likely(plans: list[Plan] | None, first: int) -> Plan | None:
    """Take the plan that has read the array `first` last, or else one that is old, if there are many."""
    if not plans:
        return None
    try:
        if plans[-1].first == first:
            return plans.pop()
        for k, plan in enumerate(plans):
            if plan.first == first:
                return plans.pop(k)
        return plans.pop(0) if len(plans) >= PLANS_KEPT else None
    except IndexError:  # another thread was faster
        return None


def take(layout: Layout, arrays: list[np.ndarray]) -> Plan | None:
    """Return a plan that has read `arrays`, the caller's until it gives it back; None where they are not plain."""
    if not readable():
        return None
    first = id(arrays[0])
    plan = _likely(_kept.get(layout), first) or Plan(layout)
    plan.first = first
    return plan if plan.read(arrays) else None
