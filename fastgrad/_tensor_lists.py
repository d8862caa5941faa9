"""Checks of lists of tensors, as optimizers and clipping take them: one table for all entries where all is well."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad._arrays import Array, assign, contiguous_copy, is_array, ready, writeable
from fastgrad._checks import FLOATS, byte_range, compiled_lists, distinct, other_dtype, overlap, same_kind, wrong_dtype
from fastgrad._device_lists import plain
from fastgrad._dispatch import get_backend, wrong_array


def tensor_list(name: str, value: Any) -> list[Array]:
    """Return one array, or a list or tuple of arrays, as a list; the entries are not looked at.

    Raises:
        TypeError: something else, such as a generator or a dictionary.
    """
    if type(value) is list:
        return value
    if isinstance(value, np.ndarray) or is_array(value):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    raise TypeError(f"{name}: expected an array or a list of arrays, got {type(value).__qualname__}")


Group = tuple[str, Any, bool]


def _plan(sets: Sequence[Sequence[Group]]) -> Any:
    """Return a plan of the compiled check with these lists in it, or None where `_examine` must have its say.

    A set: lists of the same length and shapes, each with its name and whether it is written.
    """
    if get_backend() == "reference":
        return None
    arrays: list[Array] = []
    shapes = []
    for groups in sets:
        length = len(groups[0][1])
        written, bit = 0, 1
        for _, entries, is_written in groups:
            if len(entries) != length:
                return None
            arrays += entries
            if is_written:
                written |= bit
            bit += bit
        shapes.append((len(groups), length, written))
    return compiled_lists().take(tuple(shapes), arrays) if arrays and type(arrays[0]) is np.ndarray else None


def _plan_of(values: tuple[Any, ...], written: int) -> Any:
    """The same for one set of lists, or of single arrays; a bit of `written` for each that is."""
    if get_backend() == "reference":
        return None
    first = values[0]
    if type(first) is np.ndarray:
        return compiled_lists().take(((len(values), 1, written),), list(values))
    if type(first) is not list or not first or type(first[0]) is not np.ndarray:
        return None
    length = len(first)
    arrays: list[Array] = []
    for entries in values:
        if type(entries) is not list or len(entries) != length:
            return None
        arrays += entries
    return compiled_lists().take(((len(values), length, written),), arrays)


def _examine(groups: Sequence[Group]) -> None:
    """Raise the error of the first array that is wrong."""
    first_name, first, _ = groups[0]
    like: tuple[str, Array] | None = None
    for name, arrays, written in groups:
        if len(arrays) != len(first):
            raise ValueError(f"{name}: expected {len(first)} arrays, as many as {first_name}, got {len(arrays)}")
        for k, a in enumerate(arrays):
            label = f"{name}[{k}]"
            if not is_array(a):
                raise wrong_array(label, a)
            if a.dtype not in FLOATS:
                raise wrong_dtype(label, a.dtype)
            if like is None:
                like = (label, a)
            same_kind(label, a, *like)
            if a.dtype != like[1].dtype:
                raise other_dtype(label, a.dtype, like[0], like[1].dtype)
            if a.shape != first[k].shape:
                wanted = f"the shape of {first_name}[{k}], {first[k].shape}"
                raise ValueError(f"{label}: expected {wanted}, got {a.shape}")
            if written and not writeable(a):
                raise ValueError(f"{label}: the array is read-only, but this call writes it; pass a writable one")
            if written and a.size and not distinct(a):
                raise ValueError(
                    f"{label}: several entries share one place in memory (a broadcast view); pass a plain array"
                )
    _check_apart(groups)


def _check_apart(groups: Sequence[Group]) -> None:
    ranges = []
    for name, arrays, written in groups:
        for k, a in enumerate(arrays):
            if a.size:
                low, high = byte_range(a)
                ranges.append((low, high, written, name, k, a))
    ranges.sort(key=operator.itemgetter(0))
    # Ranges that reach past the start of the next one: of overlapping inputs or strided views, else none.
    active: list[tuple] = []
    for entry in ranges:
        active = [other for other in active if other[1] > entry[0]]
        for other in active:
            if (entry[2] or other[2]) and overlap(entry[5], other[5]):
                one, two = sorted(f"{e[3]}[{e[4]}]" for e in (other, entry))
                raise ValueError(f"{one} and {two} overlap in memory; this call needs arrays of their own")
        active.append(entry)


class TensorSets:
    """Checked sets of lists of arrays of one call, contiguous, with what it takes to write results back.

    On the CPU kernels the lists of a well-formed call are rows of tables of addresses kept from earlier calls.

    Args:
        sets: each of groups (name, an array or a list of arrays, whether the kernel writes them). A set's first group
            decides its lengths and shapes, the very first array the dtype of all. Every written array must not overlap
            any other array of the call; arrays that are only read may overlap.

    Raises:
        TypeError: an entry is not an array, not float32 or float64, or not of the same dtype as the others.
        ValueError: lengths or shapes differ, a written array is read-only, or arrays overlap.
    """

    __slots__ = ("_copies", "_plan", "sets")

    def __init__(self, sets: Sequence[Sequence[Group]]) -> None:
        self._copies: list[tuple[Array, Array]] = []
        sets = [[(name, tensor_list(name, value), written) for name, value, written in groups] for groups in sets]
        self._plan = _plan(sets)
        if self._plan is not None:
            self.sets = self._plan.sets
            return
        if plain(sets):
            self.sets = [[arrays for _, arrays, _ in groups] for groups in sets]
            return
        if len(sets) > 1:
            # The sets behind one another, as far as all have a list, for what holds from one set to another.
            joined = list(zip(*sets, strict=False))
            _examine([(same[0][0], [a for group in same for a in group[1]], same[0][2]) for same in joined])
        for groups in sets:
            _examine(groups)
        self.sets = [[self._contiguous(arrays, written) for _, arrays, written in groups] for groups in sets]

    def _contiguous(self, arrays: list[Array], written: bool) -> list[Array]:
        result = []
        for a in arrays:
            if ready(a):
                result.append(a)
            else:
                copy = contiguous_copy(a)
                result.append(copy)
                if written:
                    self._copies.append((a, copy))
        return result

    @property
    def tabled(self) -> bool:
        """Say whether the lists are rows of tables: what the CPU kernels take fastest."""
        return self._plan is not None

    def done(self) -> None:
        """End the call: copy what the kernel wrote into the caller's strided arrays, and give the table back."""
        for target, copy in self._copies:
            assign(target, copy)
        if self._plan is not None:
            self._plan.give_back()


@functools.cache
def _names(words: str) -> tuple[list[tuple[str, bool]], int]:
    """Return each name with whether it is written, and a bit for each that is."""
    names = [(word.rstrip("!"), word.endswith("!")) for word in words.split()]
    return names, sum(written << k for k, (_, written) in enumerate(names))


class TensorGroups(TensorSets):
    """One set of lists, or of single arrays; see `TensorSets`.

    Args:
        words: their names, with a "!" behind those that the kernel writes: "params! grads".
    """

    __slots__ = ()

    def __init__(self, words: str, *values: Any) -> None:
        names, written = _names(words)
        self._copies = []
        self._plan = _plan_of(values, written)
        if self._plan is not None:
            self.sets = self._plan.sets
        else:
            groups = [(name, value, is_written) for (name, is_written), value in zip(names, values, strict=True)]
            TensorSets.__init__(self, (groups,))

    @property
    def lists(self) -> list[Any]:
        """The checked list of each group, in their order."""
        return self.sets[0]
