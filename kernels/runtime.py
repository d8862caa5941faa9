"""Run CPU kernels over blocks on all cores: compiled, or loaded from the cache.

A kernel is a Python function `kernel(block, pointers)` that Numba compiles to a C function:

    block     int64    which block of the work; blocks are independent of each other and of the number of threads
    pointers  int64[]  addresses, sizes and strides; what each entry means is the kernel's own contract

`run(kernel, blocks, pointers)` is the one door: it runs all blocks, in parallel where asked.

What is around it: tables.py (what kernels are given), inner.py (what they call), threads.py, cache.py, compiler.py
(Numba, imported only where something has to be compiled), machine_code.py (what runs it).
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from fastgrad._subnormals import get_subnormals

from .cache import CacheState, Entry, cache_folder, cache_state, folder_beside, source_hash, target
from .fpcontrol import FLUSH, read_control, write_control
from .inner import Inner, as_double, inner, instruction, peek, peek_double, poke, poke_double
from .machine_code import ENTRY, load, load_python
from .tables import HEADER, address, address_of, addresses, bits, doubles, handle, table
from .threads import (
    OpenMP,
    layer,
    max_threads,
    num_threads,
    pool_lost,
    set_num_threads,
    threading_layer,
)

__all__ = [
    "Build", "CacheState", "Factory", "Inner", "Kernel", "Launch", "Queue", "address", "address_of", "addresses",
    "as_double", "bits", "builds", "cache_folder", "cache_state", "compiled", "doubles", "factories", "flushing",
    "folder_beside", "handle", "inner", "kernel", "max_threads", "num_threads", "peek", "peek_double", "poke",
    "poke_double", "pool_lost", "prepare", "run", "run_block", "run_in_turn", "set_num_threads", "source_hash", "table",
    "target", "threading_layer",
]  # fmt: skip

KERNEL_ARGUMENTS = "int64, CPointer(int64)"


@dataclass(frozen=True, slots=True)
class Build:
    """A function made ready to run: compiled, or else loaded from the cache. seconds : what that took."""

    name: str
    compiled: bool
    seconds: float


builds: list[Build] = []  # all of this process, in their order


@contextlib.contextmanager
def _built(name: str, source: str, compile_: Callable[[], bytes]) -> Iterator[bytes]:
    """Give the object code of a function, from the cache or else compiled, and record what is done with it."""
    start = time.perf_counter()
    entry = Entry(name, source)
    cached = entry.load()
    code = compile_() if cached is None else cached
    yield code
    if cached is None:
        entry.save(code)
    builds.append(Build(name, cached is None, time.perf_counter() - start))


# --- kernels


class Kernel:
    """A compiled kernel: the address of a C function (block, pointers). Create it with `kernel`.

    define : returns its Python function; called where that has to be compiled
    """

    def __init__(
        self, define: Callable[[], Callable[..., None]], name: str, source: str, arguments: str = KERNEL_ARGUMENTS
    ):
        self.name = name

        def compile_() -> bytes:
            from . import compiler

            return compiler.c_function(define(), arguments)

        with _built(name, source, compile_) as code:
            self._code = load(code)  # owns the machine code
        self.address: int = self._code[ENTRY]


@dataclass(frozen=True, slots=True)
class Factory:
    """What makes the kernels of one kind.

    get : get(*key) returns the kernel of a key
    source : file that it was written in
    parameters : names of what a key holds -> their types
    values : parameter -> what programs give, where that does not follow from its type
    kernels : those that this process has, by key
    """

    name: str
    get: Callable[..., Kernel]
    source: str
    parameters: dict[str, str]
    values: dict[str, Sequence[Hashable]]
    kernels: dict[Hashable, Kernel]

    def kernel_name(self, key: Sequence[Hashable]) -> str:
        return f"{self.name}({','.join(k.name if isinstance(k, np.dtype) else str(k) for k in key)})"

    def is_cached(self, key: Sequence[Hashable]) -> bool:
        """Say whether the cache has a kernel."""
        return Entry(self.kernel_name(key), self.source).exists()


factories: dict[str, Factory] = {}  # of the modules imported so far, by name


Define = Callable[..., Callable[..., None]]


def kernel(function: Define | None = None, /, **values: Sequence[Hashable]) -> Any:
    """Make a factory of kernels compile each of its kernels once.

    `function(*key)` returns the Python function of the kernel for that key: a dtype, a kind of activation, ...
    `@kernel(width=(1, 2))` says which values programs give to a parameter whose type does not tell, for `warmup`.
    """
    if function is None:
        return lambda function: _register(function, values)
    return _register(function, values)


def _register(function: Define, values: dict[str, Sequence[Hashable]]) -> Callable[..., Kernel]:
    lock = threading.Lock()
    kernels: dict[Hashable, Kernel] = {}
    source = function.__code__.co_filename

    @functools.wraps(function)
    def get(*key: Hashable) -> Kernel:
        found = kernels.get(key)
        if found is None:
            with lock:
                found = kernels.get(key)
                if found is None:
                    found = kernels[key] = Kernel(lambda: function(*key), factory.kernel_name(key), source)
        return found

    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    parameters = {name: type_ for name, type_ in function.__annotations__.items() if name != "return"}
    factory = factories[name] = Factory(name, get, source, parameters, values, kernels)
    return get


_helpers: list[Callable[[], Callable[..., Any]]] = []  # of the modules imported so far


def compiled(
    function: Callable[..., Any], nogil: bool = True, returns: type | None = None
) -> Callable[[], Callable[..., Any]]:
    """Return what gives `function`, of int64 arguments, compiled for calls from Python: when it is first asked.

    nogil : run it without the interpreter's lock
    returns : int, float or bool, if it returns anything
    """
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"

    def compile_() -> bytes:
        from . import compiler

        return compiler.python_function(function, nogil, returns)

    @functools.cache
    def get() -> Callable[..., Any]:
        with _built(name, function.__code__.co_filename, compile_) as code:
            return load_python(code, name)

    _helpers.append(get)
    return get


# --- loops over blocks


def _call(builder: ir.IRBuilder, address: ir.Value, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


I32, I64, VOID, POINTER = ir.IntType(32), ir.IntType(64), ir.VoidType(), ir.PointerType()


@instruction("void(int64, int64, int64)")
def _call_kernel(builder, address, block, pointers):
    """Call the C function at `address` with (block, pointers), the latter given as an address."""
    _call(builder, address, VOID, block, builder.inttoptr(pointers, POINTER))


@instruction("int64(int64)")
def _ask(builder, address):
    """Return what the C function `int f(void)` at `address` returns."""
    return builder.sext(_call(builder, address, I32), I64)


@instruction("void(int64, int64, int64, int64)")
def _start_team(builder, address, function, task, threads):
    """Call `GOMP_parallel(function, task, threads, 0)`: each thread of a team runs function(task)."""
    places = [builder.inttoptr(value, POINTER) for value in (function, task)]
    _call(builder, address, VOID, *places, builder.trunc(threads, I32), I32(0))


@inner
def run_block(address, block, pointers, flush):
    """Run one block of the kernel at `address`."""
    # The thread is the caller's, Numba's or OpenMP's: it gets its register back. Reading it takes 4 ns a block, writing
    # it twice 4 more (Zen 5), of the 2,000 and more that a block of 64 KB takes. With "keep" it is read as well: what
    # is loaded with -ffast-math, or torch.set_flush_denormal, leaves it set to flush.
    before = read_control()
    wanted = before | FLUSH if flush else before & ~FLUSH
    if wanted != before:
        write_control(wanted)
    _call_kernel(address, block, pointers)
    if wanted != before:
        write_control(before)


@inner
def _find(pointers, arrays):
    # handles of arrays -> their addresses
    for k in range(arrays):
        poke(pointers, k, peek(peek(pointers, k) + HEADER, 0))


def _run_serial(address, blocks, pointers, flush, arrays):
    _find(pointers, arrays)
    for block in range(blocks):
        run_block(address, block, pointers, flush)


_serial = compiled(_run_serial)


def _run_in_turn(launches, count, flush):
    # launches: for each the kernel's address, how many blocks, the address of its table, how many arrays
    for k in range(0, 4 * count, 4):
        _find(peek(launches, k + 2), peek(launches, k + 3))
        for block in range(peek(launches, k + 1)):
            run_block(peek(launches, k), block, peek(launches, k + 2), flush)


_in_turn = compiled(_run_in_turn)


@inner
def _run_share(task, thread, threads):
    # task: the kernel's address, how many blocks, the address of its table, whether to flush
    blocks = peek(task, 1)
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        run_block(peek(task, 0), block, peek(task, 2), peek(task, 3))


def _run_in_team(task):
    # behind the task: what tells the place in the team, and what tells its size
    _run_share(task, _ask(peek(task, 4)), _ask(peek(task, 5)))


def _run_parallel(start, function, task, threads, pointers, arrays):
    _find(pointers, arrays)
    _start_team(start, function, task, threads)


_parallel = compiled(_run_parallel)


def _run_for_numba(arguments, sizes, strides, task):
    # arguments[0]: address of the number of this share, of sizes[0] when it all began: entry 4 of the task
    _run_share(task, peek(peek(arguments, 0), 0), peek(task, 4))


@functools.cache
def _share(openmp: bool) -> Kernel:
    """Return the C function that runs the share of one thread, for OpenMP or for a layer of Numba's."""
    function, arguments = (_run_in_team, "int64") if openmp else (_run_for_numba, "int64, int64, int64, int64")
    return Kernel(lambda: function, f"runtime.{function.__name__}", __file__, arguments)


_turn = threading.Lock()


def _run_threads(threads: int, kernel: int, blocks: int, pointers: int, flush: bool, arrays: int) -> None:
    team = layer()
    if isinstance(team, OpenMP):
        task = table(kernel, blocks, pointers, flush, team.place, team.size)
        _parallel()(team.start, _share(True).address, address_of(task), threads, pointers, arrays)
        return
    _serial()(kernel, 0, pointers, flush, arrays)  # for the handles
    task, numbers = table(kernel, blocks, pointers, flush, threads), table(*range(threads))
    places, sizes, strides = table(address_of(numbers)), table(threads), table(8)
    # Numba's workqueue can't be entered from two Python threads at once.
    with _turn if team.name == "workqueue" else contextlib.nullcontext():
        team.start(_share(False).address, *map(address_of, (places, sizes, strides, task)), 0, 1, threads)


def prepare(parallel: bool = True) -> None:
    """Make ready what runs kernels: the loops over blocks, and what the modules imported so far have `compiled`.

    parallel : also what starts the threads, where there is more than one
    """
    for helper in _helpers:
        if helper is not _parallel:
            helper()
    if parallel and max_threads() > 1:
        team = layer()
        _share(isinstance(team, OpenMP))
        if isinstance(team, OpenMP):
            _parallel()


# --- running


def flushing() -> bool:
    """Say whether kernels are to take subnormal numbers for zero."""
    return get_subnormals() == "flush"


def run(
    kernel: Kernel, blocks: int, pointers: bytes | np.ndarray | int, parallel: bool = True, arrays: int = 0
) -> None:
    """Run `kernel` for every block in range(blocks).

    pointers : a `table`, or (n,) int64, or the address of one: handed to each call as they are; what they point to must
        stay alive until the return
    parallel : spread the blocks over the threads; otherwise run them here, one after the other
    arrays : so many entries at the beginning are a `handle` each, in place of an address; the table serves once
    """
    if blocks <= 0:
        return
    arrays = arrays if handle is id else 0
    if isinstance(pointers, int):
        at = pointers
    else:
        at = address_of(pointers) if isinstance(pointers, bytes) else address(pointers)
    flush = flushing()
    if not parallel or blocks == 1 or (threads := num_threads()) == 1:
        _serial()(kernel.address, blocks, at, flush, arrays)
        return
    _run_threads(threads, kernel.address, blocks, at, flush, arrays)


Launch = tuple[Kernel, int, bytes, bool, int]  # the arguments of `run`, with a `table`


def run_in_turn(*launches: Launch) -> None:
    """Run launches one after the other: in one compiled call, where none of them is spread over threads.

    A call takes 0.4 us, of the 3 or 4 of a small product or reduction.
    """
    threads = num_threads()
    entries: list[int] = []
    for kernel, blocks, pointers, parallel, arrays in launches:
        if parallel and blocks > 1 and threads > 1:
            break
        entries += kernel.address, blocks, address_of(pointers), arrays if handle is id else 0
    else:
        together = table(*entries)
        _in_turn()(address_of(together), len(launches), flushing())
        return
    for launch in launches:
        run(*launch)


class Queue:
    """Launches to be run in turn, with what must live until then."""

    __slots__ = ("kept", "launches")

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.kept: list[Any] = []

    def run(self) -> None:
        """Run all launches, and forget them."""
        if self.launches:
            run_in_turn(*self.launches)
        self.launches, self.kept = [], []
