"""Checks of arguments: a few attribute look-ups where all is well, a precise message once something is not."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fastgrad._arrays import (
    Array,
    array_module,
    assign,
    contiguous_copy,
    device_module,
    empty,
    is_array,
    kind_name,
    layout,
    ready,
    writeable,
)
from fastgrad._dispatch import get_backend, wrong_array

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_INT64 = np.dtype(np.int64)


def wrong_dtype(name: str, dtype: np.dtype) -> TypeError:
    """Return the error for an array of a dtype that no kernel takes."""
    if dtype.newbyteorder("=") in FLOATS:
        return TypeError(f"{name}: expected native byte order, got {dtype.str}; use {name}.astype({dtype.name!r})")
    return TypeError(f"{name}: expected float32 or float64, got {dtype}; convert it with {name}.astype(...)")


def other_dtype(name: str, dtype: np.dtype, like_name: str, like: np.dtype) -> TypeError:
    """Return the error for an array whose dtype is not that of another."""
    return TypeError(
        f"{name} is {dtype} but {like_name} is {like}; all arrays of one call share one dtype, "
        f"convert with {name}.astype({like.name!r})"
    )


def same_kind(name: str, value: Array, like_name: str, like: Array) -> None:
    """Raise TypeError unless both are NumPy arrays, or both CuPy's."""
    if type(value) is not type(like):
        here, there = kind_name(value), kind_name(like)
        convert = f"cupy.asarray({name})" if there == "CuPy" else f"cupy.asnumpy({name})"
        raise TypeError(
            f"{name} is a {here} array but {like_name} is a {there} array; all arrays of one call lie on one device, "
            f"pass {convert}"
        )


def float_array(name: str, value: Any) -> Array:
    """Return `value`, a float32 or float64 array, C-contiguous and aligned (a copy where it is not).

    Raises:
        TypeError: not an array, or another dtype.
    """
    if type(value) is np.ndarray and value.dtype in FLOATS and value.flags.carray:
        return value
    if not is_array(value):
        raise wrong_array(name, value)
    if value.dtype not in FLOATS:
        raise wrong_dtype(name, value.dtype)
    return value if ready(value) else contiguous_copy(value)


def float_array_like(name: str, value: Any, like_name: str, like: Array, shape: tuple[int, ...] | None = None) -> Array:
    """Return `value` as `float_array` does, once its dtype equals that of `like` and its shape equals `shape`.

    Args:
        shape: the shape expected; None stands for the shape of `like`.

    Raises:
        TypeError: not an array, not of the kind of `like` (NumPy, CuPy), or not of its dtype.
        ValueError: another shape.
    """
    if (
        type(value) is type(like) is np.ndarray
        and value.dtype is like.dtype
        and value.shape == (like.shape if shape is None else shape)
        and value.flags.carray
        and value.dtype in FLOATS
    ):
        return value
    array = float_array(name, value)
    same_kind(name, array, like_name, like)
    if array.dtype != like.dtype:
        raise other_dtype(name, array.dtype, like_name, like.dtype)
    if shape is None:
        if array.shape != like.shape:
            raise ValueError(f"{name}: expected the shape of {like_name}, {like.shape}, got {array.shape}")
    elif array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def sized_array(
    name: str, value: Any, letters: str, sizes: dict[str, int], like_name: str = "", like: Array | None = None
) -> Array:
    """Return `value` as `float_array` does, once it fits a shape written in letters, such as "T B I" or "4H I".

    Args:
        letters: one word per axis: a size's letter, with a factor in front where there is one.
        sizes: sizes known so far; a letter that is new is added.
        like: array whose dtype is expected, called `like_name` in the error.

    Raises:
        TypeError: not an array, not of the kind of `like` (NumPy, CuPy), or not of its dtype.
        ValueError: another shape.
    """
    array = float_array(name, value)
    if like is not None and (type(array) is not type(like) or array.dtype is not like.dtype):
        same_kind(name, array, like_name, like)
        if array.dtype != like.dtype:
            raise other_dtype(name, array.dtype, like_name, like.dtype)
    axes = _axes(letters)
    shape = array.shape
    fits = len(shape) == len(axes)
    if fits:
        known = sizes.copy()
        for (letter, factor), size in zip(axes, shape, strict=True):
            if letter not in known and size % factor == 0:
                known[letter] = size // factor
            if known.get(letter, -1) * factor != size:
                fits = False
    if not fits:
        words = letters.split()
        wanted = "(" + ", ".join(words) + ("," if len(words) == 1 else "") + ")"
        values = ", ".join(f"{letter} = {sizes[letter]}" for letter in dict(axes) if letter in sizes)
        raise ValueError(f"{name}: expected shape {wanted}{' with ' if values else ''}{values}, got {array.shape}")
    sizes.update(known)
    return array


@functools.cache
def _axes(letters: str) -> tuple[tuple[str, int], ...]:
    """Return the letter and the factor of each axis."""
    return tuple((word[-1], int(word[:-1] or 1)) for word in letters.split())


def same_array(name: str, value: Array, like_name: str, like: Array) -> None:
    """Raise TypeError unless an array is of the kind (NumPy, CuPy) and the dtype of another."""
    same_kind(name, value, like_name, like)
    if value.dtype != like.dtype:
        raise other_dtype(name, value.dtype, like_name, like.dtype)


def overlap(a: Array, b: Array) -> bool:
    """Say whether two arrays share memory; True where finding out would take long."""
    if type(a) is not type(b):
        return False
    if type(a) is np.ndarray and a.flags.owndata and b.flags.owndata:
        return a is b and a.size > 0
    a, b = layout(a), layout(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _same_elements(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.strides == b.strides and byte_range(a) == byte_range(b)


def byte_range(a: Array) -> tuple[int, int]:
    """Return the address of the first byte of an array, and of the one behind its last."""
    a = layout(a)
    low = high = a.__array_interface__["data"][0]
    for size, stride in zip(a.shape, a.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + a.itemsize


def distinct(a: Array) -> bool:
    """Say whether every entry has a place of its own in memory, as far as strides of 0 tell."""
    return all(size <= 1 or stride != 0 for size, stride in zip(a.shape, a.strides, strict=True))


def output(
    name: str,
    value: Any,
    like_name: str,
    like: Array,
    shape: tuple[int, ...] | None = None,
    aliases: Sequence[tuple[str, Array]] = (),
    apart: Sequence[tuple[str, Array]] = (),
) -> Array:
    """Return the array that a kernel writes: `value` itself, a scratch array for a strided one, or a new one for None.

    The caller passes what comes back through `finish`, which fills a strided `value` from the scratch array.

    Args:
        shape: the shape expected; None stands for the shape of `like`.
        aliases: inputs that may be `value` itself, element for element, but may not overlap it in any other way.
        apart: arrays that may not overlap it at all.

    Raises:
        TypeError: not an array, or not the dtype of `like`.
        ValueError: another shape, read-only, or overlapping.
    """
    shape = like.shape if shape is None else shape
    if value is None:
        return empty(shape, like.dtype, like)
    if not is_array(value):
        raise wrong_array(name, value)
    same_kind(name, value, like_name, like)
    if value.dtype != like.dtype:
        # A converted copy would receive the result, and the caller's array nothing.
        raise TypeError(
            f"{name} is {value.dtype} but {like_name} is {like.dtype}; the call writes it, so pass an array of "
            f"{like.dtype}"
        )
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    if not writeable(value):
        raise ValueError(f"{name}: the array is read-only; pass a writable one")
    for other_name, other in aliases:
        if value is not other and overlap(value, other) and not _same_elements(value, other):
            raise ValueError(
                f"{name} and {other_name} overlap in memory without being the same array; pass {other_name} itself "
                f"or an array of its own"
            )
    for other_name, other in apart:
        if overlap(value, other):
            raise ValueError(f"{name} and {other_name} overlap in memory; pass an array of its own as {name}")
    if ready(value):
        return value
    if value.size and not distinct(value):
        raise ValueError(f"{name}: several entries share one place in memory (a broadcast view); pass a plain array")
    return empty(shape, like.dtype, like)


def finish(value: Array | None, written: Array) -> Array:
    """Return the result of a call: the caller's `value`, filled where a scratch array was written, or the new array."""
    if value is None or value is written:
        return written
    assign(value, written)
    return value


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    finite: bool = True,
) -> float:
    """Return a real number as a Python float, inside [low, high].

    Args:
        open_low, open_high: leave out the bound itself.
        finite: refuse infinities; NaN is always refused.

    Raises:
        TypeError: not a real number.
        ValueError: outside of the interval, NaN, or infinite.
    """
    if type(value) is not float:
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise TypeError(f"{name}: expected a number, got {type(value).__qualname__}")
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: expected a number, got {type(value).__qualname__}") from None
        except OverflowError:
            what = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__qualname__
            raise ValueError(f"{name}: expected a number that fits a float, got {what}") from None
    if (low < value < high or (value == low and not open_low)) and -math.inf < value < math.inf:
        return value
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if inside and (not finite or math.isfinite(value)):
        return value
    bounds = []
    if low > -math.inf:
        bounds.append(f"{'>' if open_low else '>='} {low:g}")
    if high < math.inf:
        bounds.append(f"{'<' if open_high else '<='} {high:g}")
    wanted = " and ".join(bounds)
    kind = "a finite number" if finite else "a number"
    raise ValueError(f"{name}: expected {kind}{' ' if wanted else ''}{wanted}, got {value!r}")


def integer(name: str, value: Any, low: int, unit: str = "") -> int:
    """Return an integer as Python's, at least `low`.

    Raises:
        TypeError: not an integer, such as 1.0 or True.
        ValueError: below `low`.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__qualname__}")
    if value < low:
        raise ValueError(f"{name}: expected {low} or more{unit}, got {value}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Return a flag as Python's bool; 0 and 1 are taken too.

    Raises:
        TypeError: something else, such as the "no" of a configuration file, which is true.
    """
    if value is True or value is False:
        return value
    if isinstance(value, bool | np.bool_ | int | np.integer) and (value == 0 or value == 1):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {value!r:.60}")


def saved_by(kind: type, value: Any, function: str) -> None:
    """Raise TypeError unless `value` is a `kind`, which `function` returns last for its backward."""
    if not isinstance(value, kind):
        raise TypeError(f"saved: expected what fastgrad.{function} returned last, got {type(value).__qualname__}")


def no_gradient(names: str) -> TypeError:
    """Return the error for a backward call without any gradient, of which the caller has most likely lost one."""
    return TypeError(
        f"{names}: expected an array for at least one of them, got None for all; pass zeros if they are zero"
    )


@functools.cache
def compiled_lists() -> ModuleType:
    """Return `fastgrad.kernels.lists`."""
    # Not imported before it is used: the checks of the reference kernels need no compiler. The statement itself, where
    # each call comes by it, takes 0.5 us.
    from fastgrad.kernels import lists

    return lists


def integers(
    name: str,
    value: Any,
    shape: tuple[int, ...] | None,
    low: int,
    high: int,
    meaning: str,
    like_name: str = "",
    like: Array | None = None,
    ignored: int | None = None,
) -> Array:
    """Return an integer array as contiguous int64, its entries inside [low, high).

    The entries of a device array are not looked at, which would wait for the device: its kernels mind the bounds.

    Args:
        shape: the shape expected; None for any.
        meaning: what the upper bound is, for the error: "the number of classes".
        like: array beside which it must lie, called `like_name` in the error.
        ignored: an entry that may be out of range.

    Raises:
        TypeError: not an array of integers, or not of the kind of `like` (NumPy, CuPy).
        ValueError: another shape, or an entry out of range.
    """
    if (
        type(value) is np.ndarray
        and value.dtype is _INT64
        and value.flags.carray
        and (shape is None or value.shape == shape)
        and (like is None or type(like) is np.ndarray)
        and get_backend() != "reference"
        # In compiled code: the smallest and the largest of few entries take NumPy 2 us.
        and compiled_lists().all_within(value, low, high, low if ignored is None else ignored)
    ):
        return value
    if not is_array(value):
        raise wrong_array(name, value)
    if like is not None and type(value) is not type(like) and is_array(like):
        same_kind(name, value, like_name, like)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {value.dtype}; convert it with {name}.astype('int64')")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    if value.size and type(value) is np.ndarray:
        counted = value if ignored is None else np.where(value == ignored, low, value)
        smallest, largest = int(counted.min()), int(counted.max())
        if smallest < low or largest >= high:
            bad = smallest if smallest < low else largest
            raise ValueError(f"{name}: expected entries from {low} to {high - 1} ({meaning}), got {bad}")
    if not ready(value):
        value = contiguous_copy(value)
    if value.dtype == np.int64:
        return value
    return array_module(value).array(value, dtype=np.int64, order="C")


def sequence_lengths(value: Any, count: int, most: int, meaning: str, like_name: str, like: Array) -> Array | None:
    """Return the lengths of sequences as int64 (count,) where `like` lies, from 0 to `most`; None for None.

    They may be a list, or a NumPy array, which is copied to a device.

    Raises:
        TypeError: no integers, or on a device while `like` is not.
        ValueError: another shape, or a length out of range.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        value = np.array(value, dtype=np.int64 if not value else None)
    checked = integers("lengths", value, (count,), 0, most + 1, meaning)
    if device_module(checked) is device_module(like):
        return checked
    if type(checked) is not np.ndarray:
        raise TypeError(f"lengths is a {kind_name(checked)} array but {like_name} a {kind_name(like)} array")
    return array_module(like).asarray(checked)
