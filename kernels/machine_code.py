"""Load object code, and call it: by LLVM alone, so that what comes from the cache needs no Numba.

Each piece is linked by itself, as a library of one function, `ENTRY`. So nothing in it meets what has the same name in
another piece, whichever processes compiled them.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

ENTRY = "fastgrad_entry"

# What the interpreter exports to compiled extensions, and python_function of compiler.py calls.
_PYTHON = (
    "PyBool_FromLong",
    "PyErr_BadArgument",
    "PyErr_Occurred",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyFloat_FromDouble",
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
)
_METH_FASTCALL = 0x80
# What Numba calls for math.frexp and math.ldexp: the C library's, behind a check for numbers that are not finite.
_MATH = {"numba_frexp": "frexp", "numba_ldexp": "ldexp"}


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


@functools.cache
def _symbols() -> dict[str, int]:
    """Return the addresses of what object code may refer to, besides what LLVM finds in the process."""
    math = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    python = {name: _address(ctypes.pythonapi, name) for name in _PYTHON}
    return python | {name: _address(math, plain) for name, plain in _MATH.items()}


@functools.cache
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    return llvm.create_lljit_compiler(machine, suppress_errors=True)


_numbers = itertools.count()


def load(code: bytes) -> Any:
    """Load object code; the result holds it, and its [ENTRY] is the address of the function.

    Raises:
        RuntimeError: it is no object code, or refers to what is not there.
    """
    from llvmlite.binding import JITLibraryBuilder

    library = JITLibraryBuilder().add_object_img(code).export_symbol(ENTRY).add_current_process()
    for name, address in _symbols().items():
        library.import_symbol(name, address)
    return library.link(_linker(), f"fastgrad{next(_numbers)}")


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_kept: list[Any] = []  # a function of the interpreter refers to its code without holding it


def load_python(code: bytes, name: str) -> Callable[..., Any]:
    """Load object code of `python_function` as what Python calls: 0.1 us a call, where one by ctypes takes 0.6."""
    library = load(code)
    method = _Method(name.encode(), library[ENTRY], _METH_FASTCALL, None)
    _kept.append((library, method))
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    return new(method, None, None)
