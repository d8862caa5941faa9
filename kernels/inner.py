"""What kernels call: functions that are compiled into them, and single instructions.

Importing Numba takes a quarter of a second, half of what a first training step may take, and a kernel that comes from
the cache needs nothing of it. So these stand here for what Numba knows them as, until it compiles something that
calls them and asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

I64, DOUBLE, POINTER = ir.IntType(64), ir.DoubleType(), ir.PointerType()


class Inner:
    """A function for use inside kernels.

    py_func : as it was written
    make : py_func -> what Numba takes for it
    """

    def __init__(self, py_func: Callable[..., Any], make: Callable[[Callable[..., Any]], Any]):
        self.py_func, self._make = py_func, make
        self.__name__, self.__doc__ = py_func.__name__, py_func.__doc__

    @functools.cached_property
    def _made(self) -> Any:
        return self._make(self.py_func)

    @functools.cached_property
    def _numba_type_(self) -> Any:
        # Numba's own protocol for the values that it meets as globals and free variables of what it compiles.
        from .compiler import type_of

        return type_of(self._made)

    def __deepcopy__(self, memo: dict[int, Any]) -> Inner:
        return self  # Numba copies the statements that name it

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)  # from Python it is what was written


def inner(function: Callable[..., Any]) -> Inner:
    """Have a function compiled into the kernels that call it."""

    def make(function: Callable[..., Any]) -> Any:
        from . import compiler

        return compiler.inner(function)

    return Inner(function, make)


def intrinsic(define: Callable[..., Any]) -> Inner:
    """Turn `define(typingctx, *types)`, which returns a signature and a code generator, into an instruction."""

    def make(define: Callable[..., Any]) -> Any:
        from . import compiler

        return compiler.intrinsic(define)

    return Inner(define, make)


def instruction(signature: str) -> Callable[[Callable[..., ir.Value | None]], Inner]:
    """Turn `emit(builder, *values)` into an instruction of this signature, in Numba's notation."""

    def make(emit: Callable[..., ir.Value | None]) -> Any:
        from . import compiler

        return compiler.instruction(emit, signature)

    return lambda emit: Inner(emit, make)


def _entry(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, type_: ir.Type) -> ir.Value:
    return builder.gep(builder.inttoptr(address, POINTER), [index], source_etype=type_)


@instruction("int64(int64, int64)")
def peek(builder, address, index):
    """Return the int64 number `index` of the table at `address`."""
    return builder.load(_entry(builder, address, index, I64), typ=I64)


@instruction("void(int64, int64, int64)")
def poke(builder, address, index, value):
    """Write int64 number `index` of the table at `address`."""
    builder.store(value, _entry(builder, address, index, I64))


@instruction("float64(int64, int64)")
def peek_double(builder, address, index):
    """Return double number `index` of the table at `address`."""
    return builder.load(_entry(builder, address, index, DOUBLE), typ=DOUBLE)


@instruction("void(int64, int64, float64)")
def poke_double(builder, address, index, value):
    """Write double number `index` of the table at `address`."""
    builder.store(value, _entry(builder, address, index, DOUBLE))


@instruction("float64(int64)")
def as_double(builder, entry):
    """Return the double whose bits are an int64 number: what `bits` put into a table."""
    return builder.bitcast(entry, DOUBLE)
