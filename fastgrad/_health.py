"""What gradients look like, tensor by tensor: contract and result."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgrad._arrays import Array, device_module
from fastgrad._dispatch import list_kernels
from fastgrad._tensor_lists import TensorGroups, tensor_list


class TensorHealth(NamedTuple):
    """One tensor of a `Health`.

    name, size: what it is called, its number of entries
    norm: l2 norm; NaN where an entry is NaN
    max_abs: largest |entry|, NaN left out
    nan, inf, zero, subnormal: how many entries are so
    update_ratio: in the report of a step, see `Health.update_ratio`
    """

    name: str
    size: int
    norm: float
    max_abs: float
    nan: int
    inf: int
    zero: int
    subnormal: int
    update_ratio: float | None = None

    @property
    def zero_share(self) -> float:
        """Return the share of entries that are zero, from 0 to 1; 0 for an empty tensor."""
        return self.zero / max(self.size, 1)

    @property
    def subnormal_share(self) -> float:
        """Return the share of entries that are subnormal, from 0 to 1; 0 for an empty tensor."""
        return self.subnormal / max(self.size, 1)


class Health:
    """What `health` or a step of an optimizer found: read-only NumPy arrays, an entry for each tensor in their order.

    `h[2]` and `h["head.weight"]` are the `TensorHealth` of one tensor, `for tensor in h` goes through all of them, and
    `str(h)` is a table. Of tensors on a GPU the first number that is read brings all of them, in one copy.

    names (n,) tuple of str, sizes (n,) int64: number of entries
    norm (n,) float64: l2 norms; NaN where an entry is NaN
    max_abs (n,) float64: largest |entry|, NaN left out; 0 where nothing is left
    nan, inf, zero, subnormal (n,) int64: how many entries are so
    update_ratio (n,) float64: in the report of a step, l2 norm of what the step changed a parameter by / l2 norm of the
        parameter before; 0 where nothing changed, infinite where only zeros did. None of other tensors. Weight decay
        is part of the change, limits of the weights are not. Squares are summed in double as they are: of float64
        parameters outside 1e-150 to 1e150 the ratio may be NaN.
    """

    __slots__ = ("_columns", "_found", "_names", "_sizes")

    def __init__(
        self,
        names: tuple[str, ...] | Callable[[], tuple[str, ...]],
        sizes: list[int],
        found: Array | Callable[[], np.ndarray],
    ) -> None:
        # found (6, n) float64: the columns after sizes, as a kernel left them on the device of the tensors; or (7, n),
        # with the update ratio. Or what brings them to the host when they are asked for.
        self._names, self._found = names, found
        self._sizes: list[int] | np.ndarray = sizes
        self._columns: tuple[np.ndarray, ...] | None = None

    def _all(self) -> tuple[np.ndarray, ...]:
        if self._columns is None:
            found: Any = self._found
            if callable(found):
                found = found()
            elif device_module(found) is not None:
                found = found.get()
            norm, largest, *counts = found[:6]
            ratio = tuple(found[6:])
            columns = self.sizes, norm, largest, *(count.astype(np.int64) for count in counts), *ratio
            for column in columns:
                column.flags.writeable = False
            self._columns = columns
        return self._columns

    @property
    def names(self) -> tuple[str, ...]:
        """Return what the tensors are called, (n,), which waits for nothing."""
        if callable(self._names):
            self._names = self._names()
        return self._names

    @property
    def sizes(self) -> np.ndarray:
        """Return the number of entries of each tensor, (n,) int64, which waits for nothing."""
        if isinstance(self._sizes, list):
            self._sizes = np.array(self._sizes, np.int64)
            self._sizes.flags.writeable = False
        return self._sizes

    norm = property(lambda self: self._all()[1])
    max_abs = property(lambda self: self._all()[2])
    nan = property(lambda self: self._all()[3])
    inf = property(lambda self: self._all()[4])
    zero = property(lambda self: self._all()[5])
    subnormal = property(lambda self: self._all()[6])
    update_ratio = property(lambda self: self._all()[7] if len(self._all()) > 7 else None)

    @property
    def zero_share(self) -> Array:
        """Return the share of entries that are zero, (n,) float64 from 0 to 1; 0 for an empty tensor."""
        return self.zero / np.maximum(self.sizes, 1)

    @property
    def subnormal_share(self) -> Array:
        """Return the share of entries that are subnormal, (n,) float64 from 0 to 1; 0 for an empty tensor."""
        return self.subnormal / np.maximum(self.sizes, 1)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, key: int | str) -> TensorHealth:
        """Return one tensor by position or by name.

        Raises:
            KeyError: no tensor has this name.
            IndexError: no tensor has this position.
            TypeError: neither a name nor a position.
        """
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"no tensor is called {key!r}")
            index = self.names.index(key)
        else:
            index = operator.index(key)
            if not -len(self) <= index < len(self):
                raise IndexError(f"tensor {index} of {len(self)}")
        return TensorHealth(self.names[index], *(column[index].item() for column in self._all()))

    def __iter__(self) -> Iterator[TensorHealth]:
        return map(TensorHealth, self.names, *(column.tolist() for column in self._all()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Health, (self.names, self.sizes.tolist(), np.array(self._all()[1:], np.float64))

    def __repr__(self) -> str:
        return f"<Health of {len(self)} tensors>"

    def __str__(self) -> str:
        rows = [["tensor", "entries", "norm", "max abs", "NaN", "Inf", "zero", "subnormal"]]
        if self.update_ratio is not None:
            rows[0].append("update/weight")
        for t in self:
            counts = [f"{n:,}" if n else "-" for n in (t.nan, t.inf)]
            shares = [_percent(t.zero, t.size), _percent(t.subnormal, t.size)]
            ratio = [] if t.update_ratio is None else [f"{t.update_ratio:.3g}"]
            rows.append([t.name, f"{t.size:,}", f"{t.norm:.4g}", f"{t.max_abs:.4g}", *counts, *shares, *ratio])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
            for name, *cells in rows
        )


def _percent(count: int, size: int) -> str:
    if count == 0:
        return "-"
    share = 100 * count / size
    return "<0.01 %" if share < 0.01 else f"{share:.2f} %"


@functools.lru_cache(maxsize=8)
def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _names(names: Any, count: int) -> tuple[str, ...]:
    if names is None:
        return _numbers(count)
    if isinstance(names, str | bytes) or not isinstance(names, Sequence):
        raise TypeError(f"names: expected a list of strings, got {type(names).__qualname__}")
    for k, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{k}]: expected a string, got {type(name).__qualname__}")
    if len(names) != count:
        raise ValueError(f"names: expected one for each of {count} arrays, got {len(names)}")
    if len(set(names)) != count:
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ValueError(f"names: {twice!r} stands there more than once; each array needs a name of its own")
    return tuple(names)


def health(arrays: Array | list[Array], names: Sequence[str] | None = None) -> Health:
    """Say of each tensor its norm, its largest entry, and how many entries are NaN, infinite, zero or subnormal.

    One pass over memory and one launch for all tensors, in about the time of `global_norm`. Norms are computed in
    double precision and scaled where needed, as there, and have the same bits in every run and for any number of
    threads. Entries are counted as they lie in memory, also under `set_subnormals("flush")`, where subnormal entries
    add nothing to the norm.

    Of CuPy arrays the numbers stay on the device until the first of them is read, which waits for it and takes one
    copy. Subnormal float32 entries add nothing to the norm there.

    Args:
        arrays: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; only read.
        names: one string for each array, all different; None numbers them "0", "1", ...

    Returns:
        A `Health`: NumPy arrays `norm`, `max_abs`, `nan`, `inf`, `zero`, `subnormal`, `sizes`, an entry for each
        tensor. A NaN makes its tensor's norm NaN; `max_abs` leaves NaN out, which `nan` counts. Empty tensors have
        norm 0.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others; names is no list of
            strings.
        ValueError: not as many names as arrays, or two alike.
    """
    listed = tensor_list("arrays", arrays)
    called = _names(names, len(listed))
    groups = TensorGroups("arrays", listed)
    checked = groups.lists[0]
    found = list_kernels("health", checked).health(checked) if checked else np.zeros((6, 0))
    groups.done()
    return Health(called, [a.size for a in listed], found)
