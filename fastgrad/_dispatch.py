"""Choose the kernel module of a call: by the type of its arrays, or the reference where somebody asked for it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np

from fastgrad._arrays import is_array

BACKENDS = ("reference", "cpu")

_SUFFIX = {"reference": "ref", "cpu": "cpu"}
_OUTSIDE = "outside of every block"
_chosen: ContextVar[str | None] = ContextVar("fastgrad_backend", default=_OUTSIDE)
_default: str | None = None
_modules: dict[tuple[str, type, str], ModuleType] = {}


def _checked_name(name: str | None) -> str | None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))} or None, got {name!r}")
    return name


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Use the named kernels inside a `with` block, in this thread or task only.

    Args:
        name: "cpu" for the Numba kernels, "reference" for the definitions in plain NumPy, None to go by the type of the
            arrays, which is the default.

    Raises:
        ValueError: the name is not known.
    """
    token = _chosen.set(_checked_name(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def set_backend(name: str | None) -> None:
    """Set the kernels used by the whole process outside of every `backend` block.

    Args:
        name: as in `backend`.

    Raises:
        ValueError: the name is not known.
    """
    global _default
    _default = _checked_name(name)


def get_backend() -> str | None:
    """Return the name chosen by `backend` or `set_backend`; None means that the type of the arrays decides."""
    chosen = _chosen.get()
    return _default if chosen is _OUTSIDE else chosen


def kernels(stem: str, array: Any = None) -> ModuleType:
    """Return the kernel module of the operation `stem` for arrays of this type, imported at its first use.

    None stands for a NumPy array, where a call may have no array at hand. A device array has one set of kernels.

    Raises:
        TypeError: there are no kernels for this type of array.
        NotImplementedError: the operation has none for device arrays.
    """
    chosen = _chosen.get()
    key = (stem, type(array), (_default if chosen is _OUTSIDE else chosen) or "cpu")
    module = _modules.get(key)
    if module is None:
        module = _modules[key] = _import(stem, array, key[2])
    return module


def list_kernels(stem: str, arrays: Sequence[Any]) -> ModuleType:
    """Return `kernels` for a checked list of arrays; what is no plain list is a table of NumPy arrays."""
    return kernels(stem, arrays[0] if type(arrays) is list and arrays else None)


def on_device(arrays: Sequence[Any]) -> bool:
    """Say whether a checked list holds device arrays."""
    return type(arrays) is list and bool(arrays) and is_array(arrays[0]) and type(arrays[0]) is not np.ndarray


def _import(stem: str, array: Any, chosen: str) -> ModuleType:
    if array is None or type(array) is np.ndarray:
        return importlib.import_module(f"fastgrad.kernels.{stem}_{_SUFFIX[chosen]}")
    if not is_array(array):
        raise wrong_array("array", array)
    name = f"fastgrad.kernels.{stem}_gpu"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise NotImplementedError(f"{stem}: has no CUDA kernels yet; pass NumPy arrays, cupy.asnumpy(...)") from None


def wrong_array(name: str, value: Any) -> Exception:
    """Return the error for an argument that is exactly neither a NumPy nor a CuPy array."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, np.ndarray):
        advice = f"a subclass of it; pass numpy.asarray({name})"
    elif value is None:
        return TypeError(f"{name}: expected a numpy.ndarray or cupy.ndarray, got None")
    else:
        advice = f"convert it with numpy.asarray({name}, dtype=...)"
    return TypeError(f"{name}: expected a numpy.ndarray or cupy.ndarray, got {kind}; {advice}")
