"""Run CPU kernels over blocks on all cores: compiled, or loaded from the cache.

A kernel is a Python function `kernel(block, pointers)` that Numba compiles to a C function:

    block     int64    which block of the work; blocks are independent of each other and of the number of threads
    pointers  int64[]  addresses, sizes and strides; what each entry means is the kernel's own contract

`run(kernel, blocks, pointers)` is the one door: it runs all blocks, in parallel where asked.

What is around it: tables.py and objects.py (what kernels are given), inner.py (what they call), threads.py, cache.py,
compiler.py (Numba, imported only where something has to be compiled), machine_code.py (what runs it).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
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
from .objects import LENGTH, kinds_of, lay, readable, release_lock, scratch, take_lock
from .tables import address, addresses, numbers_of
from .threads import (
    NumbaLayer,
    OpenMP,
    layer,
    max_threads,
    num_threads,
    pool_lost,
    set_num_threads,
    threading_layer,
)

__all__ = [
    "TOGETHER", "Build", "CacheState", "Factory", "Inner", "Kernel", "Launch", "Pointers", "Queue", "address",
    "addresses", "as_double", "builds", "cache_folder", "cache_state", "call_with", "compiled", "factories", "flushing",
    "folder_beside", "inner", "kernel", "max_threads", "member_of", "members_of", "num_threads", "peek", "peek_double",
    "poke", "poke_double", "pool_lost", "prepare", "run", "run_block", "run_in_turn", "set_num_threads", "source_hash",
    "target", "team_size", "threading_layer",
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


class Kernel(int):
    """A compiled kernel: the address of a C function (block, pointers). Create it with `kernel`.

    define : returns its Python function; called where that has to be compiled
    """

    name: str
    _code: Any  # owns the machine code

    def __new__(
        cls, define: Callable[[], Callable[..., None]], name: str, source: str, arguments: str = KERNEL_ARGUMENTS
    ) -> Kernel:
        def compile_() -> bytes:
            from . import compiler

            return compiler.c_function(define(), arguments)

        with _built(name, source, compile_) as code:
            loaded = load(code)
        self = super().__new__(cls, loaded[ENTRY])
        self.name, self._code = name, loaded
        return self


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


@instruction("void(int64)")
def _meet(builder, address):
    """Call the C function `void f(void)` at `address`, a barrier."""
    _call(builder, address, VOID)


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


TOGETHER = 2  # a launch's `parallel`: see `run`
_MEMBERS = 32  # bits of `block` from which on it holds the number of threads


@inner
def member_of(block):
    """Return the place of this thread among those that run a kernel together."""
    return block & ((1 << _MEMBERS) - 1)


@inner
def members_of(block):
    """Return how many threads run a kernel together."""
    return block >> _MEMBERS


@inner
def _run_alone(launch, flush):
    # launch: the kernel's address, how many blocks, the address of its table, how it is spread
    first, last = 0, peek(launch, 1)
    if peek(launch, 3) == TOGETHER:
        first = 1 << _MEMBERS
        last = first + 1
    for block in range(first, last):
        run_block(peek(launch, 0), block, peek(launch, 2), flush)


def _run_in_turn(launches, kinds, flush, table):
    # launches: a tuple of (kernel, blocks, pointers, ...); or, without kinds, how many there are in a finished table
    # table: where to lay the tables and run nothing, or 0
    count = launches
    if kinds != 0:
        only_lay = table != 0
        if not only_lay:
            table = scratch()
        if not lay(launches, kinds, table):
            return False
        if only_lay:
            return True
        count = peek(launches + LENGTH, 0)
    thread = release_lock()
    for k in range(count):
        _run_alone(peek(table, k), flush)
    take_lock(thread)
    return True


# With the lock at first, for the objects that it reads.
_in_turn = compiled(_run_in_turn, nogil=False, returns=bool)


@inner
def _run_share(launch, thread, threads, flush):
    # launch: the kernel's address, how many blocks, the address of its table
    blocks = peek(launch, 1)
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        run_block(peek(launch, 0), block, peek(launch, 2), flush)


def _run_in_team(team):
    # What each thread of a team does. team: its start, barrier, what tells a thread's place and what tells the size,
    # this function, whether to flush, how many launches, their table
    thread, threads = _ask(peek(team, 2)), _ask(peek(team, 3))
    flush, launches, table = peek(team, 5), peek(team, 6), peek(team, 7)
    spread_before = False
    for k in range(launches):
        launch = peek(table, k)
        spread = peek(launch, 3) != 0
        if k > 0 and (spread or spread_before):
            _meet(peek(team, 1))
        spread_before = spread
        if peek(launch, 3) == TOGETHER:
            run_block(peek(launch, 0), thread | threads << _MEMBERS, peek(launch, 2), flush)
        elif spread:
            _run_share(launch, thread, threads, flush)
        elif thread == 0:
            _run_alone(launch, flush)


def _run_by_team(launches, kinds, flush, team, threads):
    # launches: as of _run_in_turn; or, without kinds, the address of two numbers, how many and where their table is
    # team: the first five numbers of a team
    table, own = scratch(), scratch()
    if kinds != 0:
        if not lay(launches, kinds, table):
            return False
        count = peek(launches + LENGTH, 0)
    else:
        count, table = peek(launches, 0), peek(launches, 1)
    for k in range(5):
        poke(own, k, peek(team, k))
    poke(own, 5, flush)
    poke(own, 6, count)
    poke(own, 7, table)
    thread = release_lock()
    _start_team(peek(team, 0), peek(team, 4), own, threads)
    take_lock(thread)
    return True


_by_team = compiled(_run_by_team, nogil=False, returns=bool)


def _run_for_numba(arguments, sizes, strides, task):
    # arguments[0]: address of the number of this share, of sizes[0] when it all began
    _run_share(task, peek(peek(arguments, 0), 0), peek(task, 4), peek(task, 3))


@functools.cache
def _share(openmp: bool) -> Kernel:
    """Return the C function that runs the share of one thread, for OpenMP or for a layer of Numba's."""
    function, arguments = (_run_in_team, "int64") if openmp else (_run_for_numba, "int64, int64, int64, int64")
    return Kernel(lambda: function, f"runtime.{function.__name__}", __file__, arguments)


@functools.cache
def _team(openmp: OpenMP) -> np.ndarray:
    return numbers_of(openmp.start, openmp.barrier, openmp.place, openmp.size, _share(True))


def _run_on_threads(threads: int, launches: Sequence[Launch]) -> None:
    runs = layer()
    if isinstance(runs, OpenMP):
        team = address(_team(runs))
        if not (_READABLE and _by_team()(id(launches), _KINDS_AT, flushing(), team, threads)):
            tables = _tables_of(launches)
            table = numbers_of(len(launches), address(tables[0]))
            _by_team()(address(table), 0, flushing(), team, threads)
        return
    for launch in launches:
        if launch[3] and launch[3] != TOGETHER:
            _run_on_layer(runs, threads, *launch[:3])
        else:
            _run_here((launch,))


_turn = threading.Lock()


def _run_on_layer(numba: NumbaLayer, threads: int, kernel: Kernel, blocks: int, pointers: Pointers) -> None:
    tables = _table_of(pointers)
    task = numbers_of(kernel, blocks, address(tables[0]), flushing(), threads)
    shares = numbers_of(*range(threads))
    arguments = numbers_of(address(shares)), numbers_of(threads), numbers_of(8), task
    # Numba's workqueue can't be entered from two Python threads at once.
    with _turn if numba.name == "workqueue" else contextlib.nullcontext():
        numba.start(_share(False), *map(address, arguments), 0, 1, threads)


def prepare(parallel: bool = True) -> None:
    """Make ready what runs kernels: the loops over blocks, and what the modules imported so far have `compiled`.

    parallel : also what starts the threads, where there is more than one
    """
    for helper in _helpers:
        if helper is not _by_team:
            helper()
    if parallel and max_threads() > 1:
        openmp = isinstance(layer(), OpenMP)
        _share(openmp)
        if openmp:
            _by_team()


# --- running


def flushing() -> bool:
    """Say whether kernels are to take subnormal numbers for zero."""
    return get_subnormals() == "flush"


Pointers = tuple[Any, ...] | np.ndarray
Launch = tuple[Kernel, int, Pointers, bool | int]  # the arguments of `run`


def run(kernel: Kernel, blocks: int, pointers: Pointers, parallel: bool | int = True) -> None:
    """Run `kernel` for every block in range(blocks).

    pointers : what each call is given: a table int64 (n,); or a tuple, of which an array becomes the address of its
        first element, an int itself, a float its bits, None 0, and a tuple the address of a table of its own. What
        addresses in it point to must stay alive until the return.
    parallel : spread the blocks over the threads; otherwise run them here, one after the other. With TOGETHER each
        thread calls the kernel once, all at the same time, and `block` says which thread it is, and of how many
        (`member_of`, `members_of`): as many as there are, or one; `blocks` are to be 2 or more.
    """
    run_in_turn((kernel, blocks, pointers, parallel))


def run_in_turn(*launches: Launch) -> None:
    """Run launches one after the other, in one compiled call, on a team of threads that meet between them.

    A call takes 0.3 us, of the 3 or 4 of a small product or reduction.
    """
    if (threads := num_threads()) > 1:
        for _, blocks, _, parallel in launches:
            if parallel and blocks > 1:
                break
        else:
            threads = 1
    if threads == 1:
        _run_here(launches)
    else:
        _run_on_threads(threads, launches)


def _run_here(launches: Sequence[Launch]) -> None:
    if not (_READABLE and _in_turn()(id(launches), _KINDS_AT, flushing(), 0)):
        tables = _tables_of(launches)
        _in_turn()(len(launches), 0, flushing(), address(tables[0]))


def team_size() -> int:
    """Return how many threads can run a kernel together and wait for each other."""
    return num_threads() if num_threads() > 1 and isinstance(layer(), OpenMP) else 1


def call_with(function: Callable[[int, int, int], Any], task: tuple[Any, ...], otherwise: Any) -> Any:
    """Return what a compiled function(task, kinds, flush) makes of a tuple, which it will `lay`; or `otherwise`."""
    return function(id(task), _KINDS_AT, flushing()) if _READABLE else otherwise


def _tables_of(launches: Sequence[Launch]) -> list[np.ndarray]:
    """Return the table of launches, and behind it those that it refers to: where `lay` can't read what they hold."""
    tables = [_table_of(pointers) for _, _, pointers, _ in launches]
    heads = [
        numbers_of(kernel, blocks, address(table[0]), parallel)
        for (kernel, blocks, _, parallel), table in zip(launches, tables, strict=True)
    ]
    return [addresses(heads), *heads, *itertools.chain(*tables)]


def _table_of(pointers: Pointers) -> list[np.ndarray]:
    """Return the table that `lay` would lay, and behind it the tables of tuples in it."""
    if isinstance(pointers, np.ndarray):
        return [pointers]
    inner: list[np.ndarray] = []
    entries: list[int] = []
    for entry in pointers:
        if isinstance(entry, tuple):
            tables = _table_of(entry)
            inner += tables
            entry = tables[0]
        if isinstance(entry, np.ndarray):
            entry = address(entry)
        elif isinstance(entry, float):
            entry = int(np.float64(entry).view(np.int64))
        entry = 0 if entry is None else int(entry) % (1 << 64)
        entries.append(entry - (entry >> 63 << 64))
    return [np.array(entries, np.int64), *inner]


class Queue:
    """Launches to be run in turn."""

    __slots__ = ("launches",)

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def run(self) -> None:
        """Run all launches, and forget them."""
        if self.launches:
            run_in_turn(*self.launches)
        self.launches = []


_READABLE = readable()
_KINDS = kinds_of(Kernel)
_KINDS_AT = address(_KINDS)
