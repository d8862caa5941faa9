"""What kernels are given: tables of addresses and numbers, and the addresses of arrays.

What is read here stands in the objects themselves, where every compiled extension reads it: a call on a small array
has a few microseconds in all.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence

import numpy as np

HEADER = object.__basicsize__  # in bytes; what follows it in an array is the pointer to its elements

# The pointer to an array's elements follows the object header in NumPy's public struct, where every compiled extension
# reads it (PyArray_DATA): 0.1 us against 0.8 for __array_interface__.
_number_at = ctypes.c_ssize_t.from_address


def _address_in_object(array: np.ndarray) -> int:
    return _number_at(id(array) + HEADER).value


def _address_by_interface(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _readable() -> bool:
    probe = np.empty(3)
    return sys.implementation.name == "cpython" and _address_in_object(probe) == _address_by_interface(probe)


address: Callable[[np.ndarray], int] = _address_in_object if _readable() else _address_by_interface
"""Return the address of an array's first element."""


# A table of twelve entries takes 0.1 us so; an array of them takes 0.4, and its address another 0.1.
_PACKERS = [struct.Struct(f"{entries}q").pack for entries in range(128)]
_to_int, _from_double = struct.Struct("q").unpack, struct.Struct("d").pack


def table(*entries: int) -> bytes:
    """Return the table of pointers of a kernel: addresses, sizes, strides, and doubles as `bits`."""
    return _PACKERS[len(entries)](*entries)


_DOUBLE_PACKERS = [struct.Struct(f"{count}d").pack for count in range(16)]


def doubles(*numbers: float) -> bytes:
    """Return numbers one behind the other, for a kernel that is given the `address_of` them."""
    return _DOUBLE_PACKERS[len(numbers)](*numbers)


def bits(number: float) -> int:
    """Return a double as an entry of a table, for the kernel to take by `as_double`."""
    return _to_int(_from_double(number))[0]


# The bytes of an object stand at the end of its header, with a NUL behind them.
_BYTES_HEADER = bytes.__basicsize__ - 1


def _place_in_object(content: bytes) -> int:
    return id(content) + _BYTES_HEADER


def _place_by_interface(content: bytes) -> int:
    return _address_by_interface(np.frombuffer(content, np.uint8))


def _bytes_readable() -> bool:
    probe = table(*range(5))
    return _readable() and _place_in_object(probe) == _place_by_interface(probe)


address_of: Callable[[bytes], int] = _place_in_object if _bytes_readable() else _place_by_interface
"""Return the address of a `table` or of `doubles`."""


handle: Callable[[np.ndarray], int] = id if address is _address_in_object else address
"""Return what stands for an array at the beginning of a table: an address takes 0.1 us, this 0.02."""


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the addresses of the first elements of many arrays, int64 (len(arrays),)."""
    return np.fromiter(map(address, arrays), np.int64, len(arrays))
