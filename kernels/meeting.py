"""Where the threads of a team wait for each other inside a kernel, step by step of a sequence.

OpenMP's own barrier takes 1 us of two threads, this one 0.1 to 0.2: each thread writes the number of the round into a
cache line of its own and reads those of the others. Whoever waits spins for some 0.1 ms and from then on lets others
have the processor at each turn: to give it up earlier would cost a time slice in every round beside a busy process.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from .fpcontrol import architecture
from .inner import inner, instruction
from .simd import CACHE_LINE

SPINS = 2000

I32, I64, VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()


@instruction("void(int64, int64)")
def _publish(builder, address, value):
    """Write an int64 number that others read, after all that was written before."""
    builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "release", 8)


@instruction("int64(int64)")
def _observe(builder, address):
    """Read an int64 number that others write, before all that is read afterwards."""
    return builder.load_atomic(builder.inttoptr(address, I64.as_pointer()), "acquire", 8)


def _declared(builder: ir.IRBuilder, name: str, kind: ir.FunctionType) -> ir.Function:
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def emit_pause(builder: ir.IRBuilder, architecture: str) -> None:
    """Wait some 10 ns, and leave the core to its other thread meanwhile."""
    if architecture == "x86_64":
        builder.call(_declared(builder, "llvm.x86.sse2.pause", ir.FunctionType(VOID, ())), [])
    elif architecture in ("aarch64", "arm64"):  # its "yield" takes no time on most of these
        builder.call(_declared(builder, "llvm.aarch64.isb", ir.FunctionType(VOID, [I32])), [I32(15)])


@instruction("void()")
def _pause(builder):
    emit_pause(builder, architecture())


@instruction("void()")
def _let_others_run(builder):
    """Offer the processor to whoever waits for it."""
    builder.call(_declared(builder, "sched_yield", ir.FunctionType(I32, ())), [])


def flags(members: int) -> np.ndarray:
    """Return what `meet` is given, for a single launch."""
    return np.zeros(members * CACHE_LINE // 8, np.int64)


@inner
def meet(flags, member, members, round):
    """Wait until all members have come to this round, which counts from 1; their writes are seen then."""
    _publish(flags + member * CACHE_LINE, round)
    for other in range(members):
        spins = 0
        while _observe(flags + other * CACHE_LINE) < round:
            spins += 1
            if spins < SPINS:
                _pause()
            else:
                _let_others_run()
