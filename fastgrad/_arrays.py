"""What all parts ask of an array, whether it is NumPy's or lies on a GPU: whose it is, where, and one more like it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from fastgrad import _memory

Array = Any  # numpy.ndarray or cupy.ndarray

# Types of arrays other than NumPy's, with what holds their functions: CuPy's own from its first array on, and what
# tests register to stand in for it. Looked up by exact type, so that a subclass is never mistaken for its base.
_device_modules: dict[type, Any] = {}


def device_module(value: Any) -> Any | None:
    """Return the array module of a device array (cupy); None for anything else. Imports nothing."""
    kind = type(value)
    if kind is np.ndarray:
        return None
    module = _device_modules.get(kind)
    if module is None and kind.__name__ == "ndarray":
        # CuPy is optional, so its arrays are recognised only where the caller has imported it.
        cupy = sys.modules.get("cupy")
        if cupy is not None and kind is getattr(cupy, "ndarray", None):
            module = _device_modules[kind] = cupy
    return module


def is_array(value: Any) -> bool:
    """Say whether this is a NumPy array or a device array, not a subclass of either."""
    return type(value) is np.ndarray or device_module(value) is not None


def array_module(array: Array) -> Any:
    """Return numpy or cupy, whichever the array belongs to."""
    return device_module(array) or np


def kind_name(array: Array) -> str:
    """Name the kind of array for an error: "NumPy" or "CuPy"."""
    return "NumPy" if type(array) is np.ndarray else "CuPy"


def ready(array: Array) -> bool:
    """Say whether a kernel can take the array as it lies: C-contiguous and aligned."""
    flags = array.flags
    if type(array) is np.ndarray:
        return flags.c_contiguous and flags.aligned
    return flags.c_contiguous and array.data.ptr % array.itemsize == 0


def writeable(array: Array) -> bool:
    """Say whether the array may be written; device arrays always."""
    return type(array) is not np.ndarray or array.flags.writeable


def _bytes(array: Array) -> Array:
    # A device array as bytes, with one more axis. CuPy copies numbers by a kernel, also where they lie contiguous; at
    # an address that is no multiple of their size it would fail, and with it all that the process does on the device.
    return array_module(array).ndarray(
        (*array.shape, array.itemsize), np.uint8, array.data, strides=(*array.strides, 1)
    )


def _misplaced(array: Array) -> bool:
    return type(array) is not np.ndarray and array.data.ptr % array.itemsize != 0


def kept_for_graphs(array: Array) -> Array:
    """Return the array, which stays where it is for a graph that is being captured; see kernels/cuda.py.

    For what the array module computes: what a kernel is given is kept without.
    """
    if type(array) is not np.ndarray:
        from fastgrad.kernels import cuda

        cuda.keep(cuda.device_of(array), array)
    return array


def contiguous_copy(array: Array) -> Array:
    """Return a new C-contiguous array of the same numbers."""
    if _misplaced(array):
        return kept_for_graphs(
            array_module(array).array(_bytes(array), order="C").view(array.dtype).reshape(array.shape)
        )
    return kept_for_graphs(array_module(array).array(array, order="C"))


def assign(target: Array, source: Array) -> None:
    """Write `source` into `target`, of the same shape and dtype, wherever that one lies; `source` is aligned."""
    if _misplaced(target):
        _bytes(target)[...] = _bytes(source)
    else:
        target[...] = source


def to_host(array: Array) -> np.ndarray:
    """Return the NumPy array itself, or a copy of a device array, which waits for the device."""
    return array if type(array) is np.ndarray else array.get()


def empty(shape: int | tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Return an uninitialised C-contiguous array of the kind of `like`, on its device."""
    if type(like) is np.ndarray:
        return _memory.empty(shape, dtype)
    return array_module(like).empty(shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Return an array of zeros of the kind of `like`, on its device."""
    return kept_for_graphs(array_module(like).zeros(shape, dtype))


def copy_like(value: Any, like: Any) -> Any:
    """Return a C-contiguous copy of any array of the dtype of `like`, where that one lies."""
    source = value if is_array(value) else np.asarray(value)
    target = array_module(like)
    if target is np:
        source = to_host(source)
    return kept_for_graphs(target.array(source, dtype=like.dtype, order="C"))


class _Addresses:
    __array_interface__: dict[str, Any]


def layout(array: Array) -> np.ndarray:
    """Return a NumPy array of the same addresses, shape and strides, to ask about overlap; never to be read."""
    if type(array) is np.ndarray:
        return array
    if math.prod(array.shape) == 0:
        return np.empty(array.shape, array.dtype)
    addresses = _Addresses()
    addresses.__array_interface__ = {
        "version": 3,
        "typestr": array.dtype.str,
        "shape": tuple(array.shape),
        "strides": tuple(array.strides),
        "data": (array.data.ptr, False),
    }
    return np.asarray(addresses)
