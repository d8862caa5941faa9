"""What compiled code reads of Python's objects, so that Python need not: most of the time of a call on 64 elements.

The offsets are those of public structs, where every compiled extension reads them: of tuples, floats and lists, and of
PyArrayObject_fields and PyArray_Descr in ndarraytypes.h. `readable` tries them before anything relies on them. Whoever
reads an object holds the interpreter's lock meanwhile, so that nobody replaces or frees it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from typing import Any

import numpy as np
from llvmlite import ir

from .inner import inner, instruction, peek, poke

# Offsets in bytes.
HEADER = object.__basicsize__
TYPE = HEADER - 8  # ob_type
DATA, NDIM, SHAPE, DESCR, FLAGS = HEADER, HEADER + 8, HEADER + 16, HEADER + 40, HEADER + 48
LENGTH = HEADER  # ob_size of a list or a tuple
ITEMS = HEADER + 8  # ob_item of a list, a pointer
ENTRIES = tuple.__basicsize__  # ob_item of a tuple, the objects themselves
NUMBER = HEADER  # ob_fval of a float
KIND = HEADER + 8  # of a dtype: kind, type, byteorder, a byte of flags, type_num

INT32 = 0xFFFFFFFF
KIND_BITS = ~(0xFF << 24)  # all of KIND but the flags

TABLES, TABLE_ENTRIES = 64, 1024  # of one call: tables, and entries of all of them
TABLE_NUMBERS = TABLE_ENTRIES + 2 * TABLES


I64, VOID, POINTER = ir.IntType(64), ir.VoidType(), ir.PointerType()


def _python(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    declared = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(declared, arguments)


@instruction("int64(int64)")
def _whole_number(builder, item):
    """Return the value of an int at an address, modulo 2^64: by the function that never raises for an int."""
    return _python(builder, "PyLong_AsUnsignedLongLongMask", I64, builder.inttoptr(item, POINTER))


@instruction("int64()")
def scratch(builder):
    """Return the address of TABLE_NUMBERS numbers on the stack of the calling function."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(I64, TABLE_NUMBERS))
    return builder.ptrtoint(memory, I64)


@instruction("int64()")
def release_lock(builder):
    """Let other Python threads run; return what `take_lock` wants."""
    return builder.ptrtoint(_python(builder, "PyEval_SaveThread", POINTER), I64)


@instruction("void(int64)")
def take_lock(builder, thread):
    """Hold the interpreter's lock again."""
    _python(builder, "PyEval_RestoreThread", VOID, builder.inttoptr(thread, POINTER))


@inner
def lay(entries, kinds, table):
    """Lay the table of a tuple; say whether that was possible.

    An array becomes the address of its first element, an int itself, a float its bits, None 0, and a tuple the address
    of a table of its own, further on. It is impossible where there is something else among them, or too much.

    kinds : address of the addresses of these types, see `kinds_of`
    table : address of TABLE_NUMBERS numbers
    """
    # Tuples to be laid with their places. No recursion: Numba can't load a function that calls itself from a cache.
    tuples = table + TABLE_ENTRIES * 8
    poke(tuples, 0, entries)
    poke(tuples, 1, table)
    known, done, used = 1, 0, peek(entries + LENGTH, 0)
    if used > TABLE_ENTRIES:
        return False
    while done < known:
        entries, here = peek(tuples, 2 * done), peek(tuples, 2 * done + 1)
        done += 1
        for k in range(peek(entries + LENGTH, 0)):
            item = peek(entries + ENTRIES, k)
            kind = peek(item + TYPE, 0)
            if kind == peek(kinds, 0):
                value = peek(item + DATA, 0)
            elif kind == peek(kinds, 1) or kind == peek(kinds, 2) or kind == peek(kinds, 3):
                value = _whole_number(item)
            elif kind == peek(kinds, 4):
                value = peek(item + NUMBER, 0)
            elif item == peek(kinds, 6):
                value = 0
            elif kind == peek(kinds, 5):
                value = table + used * 8
                used += peek(item + LENGTH, 0)
                if known == TABLES or used > TABLE_ENTRIES:
                    return False
                poke(tuples, 2 * known, item)
                poke(tuples, 2 * known + 1, value)
                known += 1
            else:
                return False
            poke(here, k, value)
    return True


def kinds_of(kernel: type) -> np.ndarray:
    """Return what `lay` goes by; kernel: the type of int that kernels are."""
    return np.array([*map(id, (np.ndarray, int, bool, kernel, float, tuple, None))], np.int64)


number_at = ctypes.c_ssize_t.from_address


def number(address: int) -> int:
    """Return the number at an address."""
    return number_at(address).value


def kind_of(dtype: np.dtype) -> int:
    """Return a number that two dtypes share only where they are the same."""
    return number(id(dtype) + KIND) & KIND_BITS


def _fits(probe: Any, place: int) -> bool:
    """Say whether an array lies at `place`, and looks as its attributes say."""
    if place != id(probe) or number(place + TYPE) != id(np.ndarray) or number(place + DESCR) != id(probe.dtype):
        return False
    seen = (number(place + DATA), number(place + NDIM) & INT32, number(place + FLAGS) & INT32)
    if seen != (probe.__array_interface__["data"][0], probe.ndim, probe.flags.num):
        return False
    shape = number(place + SHAPE)
    return tuple(number(shape + 8 * axis) for axis in range(probe.ndim)) == probe.shape


@functools.cache
def readable() -> bool:
    """Say whether objects of this interpreter and this NumPy look as compiled code expects, by trying some."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
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
    objects: tuple[Any, ...] = (*probes, 0.25)
    if (number(id(probes) + LENGTH), number(id(objects) + LENGTH)) != (len(probes), len(objects)):
        return False
    items = number(id(probes) + ITEMS)
    for k, probe in enumerate(probes):
        if number(id(objects) + ENTRIES + 8 * k) != id(probe) or not _fits(probe, number(items + 8 * k)):
            return False
    fraction = number(id(objects) + ENTRIES + 8 * len(probes))
    if number(fraction + TYPE) != id(float) or ctypes.c_double.from_address(fraction + NUMBER).value != 0.25:
        return False
    f4, f8 = np.dtype("f4"), np.dtype("f8")
    others: list[np.dtype] = [
        f8,
        f4.newbyteorder(),
        f8.newbyteorder(),
        *(np.dtype(name) for name in ("f2", "i4", "i8", "c8", "U1")),
    ]
    return kind_of(np.dtype("f4", copy=True)) == kind_of(f4) and all(kind_of(other) != kind_of(f4) for other in others)
