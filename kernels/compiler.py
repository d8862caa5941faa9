"""Compile Python functions to object code, by Numba: the one module that imports it.

Nothing is run here. What comes out is loaded by machine_code.py, whether it was compiled just now or for an earlier
process.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import compiler, registry, sigutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.extending import intrinsic

from .machine_code import ENTRY

# No fast-math flag anywhere: nnan and ninf would let the compiler assume away what this library must report, and
# contraction is written out as fma where it is wanted (see simd.py).
OPTIONS: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": False}

RETURNS: dict[type | None, Any] = {None: types.void, int: types.int64, float: types.float64, bool: types.boolean}
I32, I64, VOID, POINTER = ir.IntType(32), ir.IntType(64), ir.VoidType(), ir.PointerType()
LONG = ir.IntType(8 * ctypes.sizeof(ctypes.c_long))


# --- what kernels call


class _Compiler(_FunctionCompiler):
    def _customize_flags(self, flags: Any) -> Any:
        # The function alone: what calls it from outside is written below, before all of it is optimised.
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
        return flags


def _compiler(function: Callable[..., Any]) -> _Compiler:
    return _Compiler(function, registry.cpu_target, dict(OPTIONS), {}, compiler.Compiler)


def _keep_from_engine(library: Any) -> None:
    """Let a library end as an optimised module: Numba would make it into machine code, and load that."""
    library._finalize_final_module = lambda: setattr(library, "_finalized", True)


class _Inner(registry.CPUDispatcher):
    """A function inside kernels: linked into what calls it, and not to be called by itself."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function, targetoptions=dict(OPTIONS))
        self._compiler = _compiler(function)

    def add_overload(self, made: Any) -> None:
        _keep_from_engine(made.library)
        key = object()  # in place of a function of the interpreter
        self.targetctx.insert_user_function(key, made.fndesc, [made.library])
        self.overloads[tuple(made.signature.args)] = made._replace(entry_point=key)


def inner(function: Callable[..., Any]) -> Any:
    """Return what Numba takes for a function inside kernels."""
    return _Inner(function)


def type_of(made: Any) -> Any:
    """Return the type that Numba gives to what is made here."""
    context = registry.cpu_target.typing_context
    context.refresh()  # new intrinsics are registered, but not with the context that is at work already
    return context.resolve_value_type(made)


def instruction(emit: Callable[..., ir.Value | None], signature: str) -> Any:
    """Return what Numba takes for `emit(builder, *values)` of this signature."""
    arguments, returned = sigutils.normalize_signature(signature)

    def define(typingctx, *_):
        def generate(context, builder, signature, values):
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        return returned(*arguments), generate

    # Numba reads the number of arguments off the signature.
    parameters = list(inspect.signature(emit).parameters.values())[1:]
    first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    define.__name__ = emit.__name__
    return intrinsic(define)


# --- object code


class _Unit:
    """A function on its way to object code, and the module of the function `ENTRY` that calls it."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], returns: Any):
        target = registry.cpu_target
        made = _compiler(function).compile(arguments, returns)
        self.library, self.descriptor, self.context = made.library, made.fndesc, target.target_context
        self.module = self.library.create_ir_module("entry")

    def enter(self, returns: ir.Type, *arguments: ir.Type) -> tuple[ir.IRBuilder, ir.Function]:
        entry = ir.Function(self.module, ir.FunctionType(returns, arguments), ENTRY)
        return ir.IRBuilder(entry.append_basic_block()), entry

    def call(self, builder: ir.IRBuilder, arguments: list[ir.Value]) -> ir.Value:
        """Call the function; it raises nothing (error_model is numpy, and nothing here has a raise)."""
        callee = self.context.declare_function(self.module, self.descriptor)
        status, result = self.context.call_conv.call_function(
            builder, callee, self.descriptor.restype, self.descriptor.argtypes, arguments, attrs=("noinline",)
        )
        with builder.if_then(status.is_error, likely=False):
            builder.call(ir.Function(self.module, ir.FunctionType(VOID, []), "llvm.trap"), [])
        return result

    def finish(self) -> bytes:
        self.library.add_ir_module(self.module)
        _keep_from_engine(self.library)
        self.library.finalize()
        return self.context.codegen()._tm.emit_object(self.library._final_module)


@global_compiler_lock
def c_function(function: Callable[..., None], arguments: str) -> bytes:
    """Return the object code of a C function of these arguments, in Numba's notation, without a result."""
    types_, returned = sigutils.normalize_signature(f"void({arguments})")
    unit = _Unit(function, types_, returned)
    builder, entry = unit.enter(VOID, *[POINTER if isinstance(type_, types.CPointer) else I64 for type_ in types_])
    unit.call(builder, list(entry.args))
    builder.ret_void()
    return unit.finish()


@global_compiler_lock
def python_function(function: Callable[..., Any], nogil: bool, returns: type | None) -> bytes:
    """Return the object code of a function of int64 arguments, to be called by the interpreter as METH_FASTCALL."""
    count = function.__code__.co_argcount
    unit = _Unit(function, (types.int64,) * count, RETURNS[returns])
    builder, entry = unit.enter(POINTER, POINTER, POINTER, I64)  # (self, arguments, how many) -> object

    def python(name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        declared = unit.module.globals.get(name) or ir.Function(unit.module, kind, name)
        return builder.call(declared, arguments)

    null = ir.Constant(POINTER, None)
    with builder.if_then(builder.icmp_signed("!=", entry.args[2], I64(count)), likely=False):
        python("PyErr_BadArgument", I32)
        builder.ret(null)
    numbers = []
    for k in range(count):
        place = builder.gep(entry.args[1], [I64(k)], source_etype=POINTER)
        numbers.append(python("PyLong_AsLongLong", I64, builder.load(place, typ=POINTER)))
    with builder.if_then(builder.icmp_unsigned("!=", python("PyErr_Occurred", POINTER), null), likely=False):
        builder.ret(null)
    thread = python("PyEval_SaveThread", POINTER) if nogil else None
    result = unit.call(builder, numbers)
    if thread is not None:
        python("PyEval_RestoreThread", VOID, thread)
    if returns is float:
        builder.ret(python("PyFloat_FromDouble", POINTER, result))
    elif returns is int:
        builder.ret(python("PyLong_FromLongLong", POINTER, result))
    else:  # None comes out as False
        builder.ret(python("PyBool_FromLong", POINTER, builder.zext(result, LONG) if returns is bool else LONG(0)))
    return unit.finish()
