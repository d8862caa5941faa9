"""Numbers at addresses, for compiled code: tables of int64 and of doubles."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def peek(typingctx, address, index):
    """Return the int64 number `index` of the table at `address`."""

    def generate(context, builder, signature, values):
        table = builder.inttoptr(values[0], ir.PointerType())
        return builder.load(builder.gep(table, [values[1]], source_etype=ir.IntType(64)), typ=ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def poke(typingctx, address, index, value):
    """Write int64 number `index` of the table at `address`."""

    def generate(context, builder, signature, values):
        table = builder.inttoptr(values[0], ir.PointerType())
        builder.store(values[2], builder.gep(table, [values[1]], source_etype=ir.IntType(64)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def peek_double(typingctx, address, index):
    """Return double number `index` of the table at `address`."""

    def generate(context, builder, signature, values):
        table = builder.inttoptr(values[0], ir.PointerType())
        return builder.load(builder.gep(table, [values[1]], source_etype=ir.DoubleType()), typ=ir.DoubleType())

    return types.float64(types.int64, types.int64), generate


@intrinsic
def poke_double(typingctx, address, index, value):
    """Write double number `index` of the table at `address`."""

    def generate(context, builder, signature, values):
        table = builder.inttoptr(values[0], ir.PointerType())
        builder.store(values[2], builder.gep(table, [values[1]], source_etype=ir.DoubleType()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate


@intrinsic
def as_double(typingctx, entry):
    """Return the double whose bits are an int64 number: what a table has where a float was given."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], ir.DoubleType())

    return types.float64(types.int64), generate
