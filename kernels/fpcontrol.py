"""The control register of a thread's floating-point unit: whether subnormal numbers are kept or taken for zero.

    x86-64     MXCSR, bit 15 (FTZ: subnormal results become 0) and bit 6 (DAZ: subnormal inputs are taken for 0)
    aarch64    FPCR, bit 24 (FZ: both)

A subnormal number lies between 0 and the smallest normal one: below 1.2e-38 in float32, 2.2e-308 in float64.
"""

from __future__ import annotations

from llvmlite import ir

from .cache import target
from .inner import instruction

I32, I64, VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_BITS = {"x86_64": 1 << 15 | 1 << 6, "aarch64": 1 << 24, "arm64": 1 << 24}


def architecture() -> str:
    """Return the first word of the triple that Numba compiles for."""
    return target()[0].partition("-")[0]


# The bits that flush subnormals; 0 where this module knows no such register.
FLUSH = _BITS.get(architecture(), 0)


def _function(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _place(builder: ir.IRBuilder) -> ir.Value:
    with builder.goto_entry_block():  # once, however often the code around it runs
        return builder.alloca(I32)


def emit_read(builder: ir.IRBuilder, architecture: str) -> ir.Value:
    """Return the register as i64."""
    if architecture == "x86_64":
        place = _place(builder)
        builder.call(_function(builder, "llvm.x86.sse.stmxcsr", VOID, ir.PointerType()), [place])
        return builder.zext(builder.load(place), I64)
    if architecture in _BITS:
        return builder.call(_function(builder, "llvm.aarch64.get.fpcr", I64), [])
    return I64(0)


def emit_write(builder: ir.IRBuilder, architecture: str, value: ir.Value) -> None:
    """Set the register to an i64."""
    if architecture == "x86_64":
        place = _place(builder)
        builder.store(builder.trunc(value, I32), place)
        builder.call(_function(builder, "llvm.x86.sse.ldmxcsr", VOID, ir.PointerType()), [place])
    elif architecture in _BITS:
        builder.call(_function(builder, "llvm.aarch64.set.fpcr", VOID, I64), [value])


@instruction("int64()")
def read_control(builder):
    """Return the register of this thread as int64; 0 where there is none."""
    return emit_read(builder, architecture())


@instruction("void(int64)")
def write_control(builder, value):
    """Set the register of this thread."""
    emit_write(builder, architecture(), value)
