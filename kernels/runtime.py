"""Compile the CPU kernels, keep them on disk, and run them over blocks on all cores.

A kernel is a Python function `kernel(block, pointers)` that Numba compiles to a C function:

    block     int64    which block of the work; blocks are independent of each other and of the number of threads
    pointers  int64[]  addresses, sizes and strides; what each entry means is the kernel's own contract

`run(kernel, blocks, pointers)` is the one door: it runs all blocks, in parallel where asked.

The compile cache can't serve a stale kernel: the name of its folder is a hash of every source file in this package, of
the versions of Numba and LLVM, and of the processor. It lies in $FASTGRAD_CACHE_DIR, else in the user's cache folder,
else in a private folder under the temporary one. A filled one that can't be written is read; where there is none, each
process compiles anew. Code is loaded from nothing that other users could have written (root excepted).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.extending import intrinsic

from fastgrad._subnormals import get_subnormals

from .fpcontrol import FLUSH, read_control, write_control
from .memory import as_double as as_double
from .memory import peek as peek
from .memory import peek_double as peek_double
from .memory import poke as poke
from .memory import poke_double as poke_double
from .objects import DATA, LENGTH, TABLE_NUMBERS, kinds_of, lay, number_at, readable, release_lock, scratch, take_lock

# No fast-math flag anywhere: nnan and ninf would let the compiler assume away what this library must report, and
# contraction is written out as fma where it is wanted (see simd.py).
OPTIONS: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": False}
INNER: dict[str, Any] = {k: v for k, v in OPTIONS.items() if k != "nopython"}  # njit options of functions in kernels
SIGNATURE = types.void(types.int64, types.CPointer(types.int64))
CHECKSUM_BYTES = hashlib.sha256().digest_size
GENERATIONS_KEPT = 4  # folders of earlier sources left in the cache


@intrinsic
def _call_kernel(typingctx, address, block, pointers):
    """Call the C function at `address` with (block, pointers), the latter given as an address."""

    def generate(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), cgutils.voidptr_t])
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, [values[1], builder.inttoptr(values[2], cgutils.voidptr_t)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


# --- compile cache


def target() -> tuple[str, str, str]:
    """Return the triple, the name and the features of the processor that Numba compiles for."""
    return numba.core.registry.cpu_target.target_context.codegen().magic_tuple()


@functools.cache
def source_hash() -> str:
    """Return a hash of all that compiled code is made of: these sources, the compilers, the processor."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr((target(), numba.__version__, llvmlite.__version__, np.__version__, sys.version)).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class CacheState:
    """Where compiled kernels are kept.

    folders : of these sources, to load from; where there are several, the first that has the kernel serves
    written : the one of them that new kernels are put into, or None
    trouble : for each folder that was passed over or can't be written, why
    """

    folders: tuple[Path, ...]
    written: Path | None
    trouble: tuple[str, ...]


def _distrust(status: os.stat_result) -> str | None:
    """Say why no code may be loaded from a file or folder: others than this user and root could have written it."""
    if not hasattr(os, "getuid"):
        return None
    own = status.st_uid == os.getuid()
    if not own and status.st_uid != 0:
        return f"belongs to another user (uid {status.st_uid})"
    others = stat.S_IWOTH if own else stat.S_IWOTH | stat.S_IWGRP
    # In a sticky folder others can add files, which are looked at one by one, but not replace any.
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        return f"can be written by other users (mode {stat.S_IMODE(status.st_mode):o}); chmod go-w makes it usable"
    return None


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _unusable(root: Path, folder: Path) -> str | None:
    """Create `folder` below `root`, private to this user, where it is missing; say why it can't be read."""
    try:
        for path in (root, folder):
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            distrust = _distrust(path.stat())
            if distrust:
                return f"{path} {distrust}"
    except OSError as error:
        return f"{folder} can't be made: {error.strerror}"
    return None


def _roots() -> list[Path]:
    if "FASTGRAD_CACHE_DIR" in os.environ:
        return [Path(os.environ["FASTGRAD_CACHE_DIR"])]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [Path(home) / "fastgrad", Path(tempfile.gettempdir()) / f"fastgrad-{user}"]


@functools.cache
def cache_state() -> CacheState:
    """Return where compiled kernels are kept, settled at the first call in a process."""
    folders: list[Path] = []
    trouble: list[str] = []
    for root in _roots():
        folder = root / source_hash()
        why = _unusable(root, folder)
        if why is None:
            folders.append(folder)
            if _writable(folder):
                _prune(root, folder)
                return CacheState(tuple(folders), folder, tuple(trouble))
            why = f"{folder} can't be written"
        trouble.append(why)
    return CacheState(tuple(folders), None, tuple(trouble))


def cache_folder() -> Path | None:
    """Return the folder that new kernels are put into, or None where nothing can be written."""
    return cache_state().written


def folder_beside(name: str) -> Path | None:
    """Return a folder for other things to keep, private to this user, or None where none can be written."""
    for root in _roots():
        folder = root / name
        if _unusable(root, folder) is None and _writable(folder):
            return folder
    return None


def _prune(root: Path, current: Path) -> None:
    """Delete all but the newest generations."""
    try:
        os.utime(current)
        folders = [p for p in root.iterdir() if p.is_dir() and len(p.name) == len(current.name)]
        generations = sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)
        for old in generations[GENERATIONS_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        pass  # another process is pruning, or the folder is read-only: nothing depends on it


class _Cache:
    """Numba's cache protocol over one file per compiled function: a checksum, then the pickled code.

    name : of the kernel, with all that it was specialised for
    source : file that it was written in, if that is not in this package, whose sources name the folder
    """

    def __init__(self, name: str, source: str | None = None):
        self.name = name
        self.loaded = False
        self.salt = b""
        if source is not None and Path(source).parent != Path(__file__).parent:
            self.salt = Path(source).read_bytes()

    def _file(self, signature: object) -> str:
        digest = hashlib.sha256(f"{self.name}{signature}".encode() + self.salt).hexdigest()[:24]
        return f"{self.name.split('(')[0]}-{digest}.bin"

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                if _distrust(os.fstat(file.fileno())):
                    return None
                content = file.read()
        except OSError:
            return None
        checksum, payload = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        # A damaged file: compile anew, and replace it.
        return payload if hashlib.sha256(payload).digest() == checksum else None

    def has(self, signature: object) -> bool:
        """Say whether there is a file to load."""
        return any((folder / self._file(signature)).exists() for folder in cache_state().folders)

    def load_overload(self, signature: object, target_context: Any) -> Any:
        for folder in cache_state().folders:
            payload = self._read(folder / self._file(signature))
            if payload is not None:
                target_context.refresh()  # defines the symbols that the code may refer to
                self.loaded = True
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
        return None

    def save_overload(self, signature: object, result: Any) -> None:
        written = cache_state().written
        if written is None or result.library.has_dynamic_globals:
            return
        payload = pickle.dumps(result._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
        # Written aside and renamed: processes that compile at the same time don't see each other's half. A full disk
        # costs the next process a compilation, not this one its result.
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=written) as folder:
            file = Path(folder) / self._file(signature)
            file.write_bytes(hashlib.sha256(payload).digest() + payload)
            os.replace(file, written / file.name)


@dataclass(frozen=True, slots=True)
class Build:
    """A function made ready to run: compiled, or else loaded from the cache. seconds : what that took."""

    name: str
    compiled: bool
    seconds: float


builds: list[Build] = []  # all of this process, in their order


@contextlib.contextmanager
def _recorded(cache: _Cache) -> Iterator[None]:
    start = time.perf_counter()
    yield
    builds.append(Build(cache.name, not cache.loaded, time.perf_counter() - start))


# --- kernels


def unique_symbol(function: Callable[..., None], name: str) -> Callable[..., None]:
    """Name a function's machine code after what it was specialised for, and return it.

    Numba numbers functions of one name within a process. Code that two processes put into the cache may carry the same
    number, and a third one that loads both would run one in place of the other.
    """
    function.__qualname__ = f"{function.__name__}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return function


class Kernel(int):
    """A compiled kernel: the address of a C function (block, pointers). Create it with `kernel`."""

    name: str
    _compiled: CFunc  # owns the machine code

    def __new__(cls, function: Callable[..., None], name: str) -> Kernel:
        unique_symbol(function, name)
        compiled = CFunc(function, (SIGNATURE.args, SIGNATURE.return_type), locals={}, options=dict(OPTIONS))
        compiled._cache = cache = _Cache(name, function.__code__.co_filename)  # type: ignore[attr-defined]
        with _recorded(cache):
            compiled.compile()
        self = super().__new__(cls, compiled.address)  # type: ignore[arg-type]
        self.name = name
        self._compiled = compiled
        return self


@dataclass(frozen=True, slots=True)
class Factory:
    """What makes the kernels of one kind.

    get : get(*key) returns the kernel of a key
    parameters : names of what a key holds -> their types
    values : parameter -> what programs give, where that does not follow from its type
    kernels : those that this process has, by key
    """

    name: str
    get: Callable[..., Kernel]
    parameters: dict[str, str]
    values: dict[str, Sequence[Hashable]]
    kernels: dict[Hashable, Kernel]

    def kernel_name(self, key: Sequence[Hashable]) -> str:
        return f"{self.name}({','.join(k.name if isinstance(k, np.dtype) else str(k) for k in key)})"

    def is_cached(self, key: Sequence[Hashable]) -> bool:
        """Say whether the cache has a kernel of this package."""
        return _Cache(self.kernel_name(key)).has(SIGNATURE)


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

    @functools.wraps(function)
    def get(*key: Hashable) -> Kernel:
        found = kernels.get(key)
        if found is None:
            with lock:
                found = kernels.get(key)
                if found is None:
                    found = kernels[key] = Kernel(function(*key), factory.kernel_name(key))
        return found

    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    parameters = {name: type_ for name, type_ in function.__annotations__.items() if name != "return"}
    factory = factories[name] = Factory(name, get, parameters, values, kernels)
    return get


# --- running

# OpenMP's threads spin for some milliseconds between launches, and that is left so. Told to sleep after 0.2 to 1 ms
# (GOMP_SPINCOUNT), a step of the trainer took as long on a quiet machine and a fifth less beside a busy process; but
# now and then the scheduler kept waking both threads on one core, where each launch waits for a whole spin.


@numba.njit(**INNER)
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


def _run_parallel(address, blocks, pointers, flush):
    for block in prange(blocks):
        run_block(address, block, pointers, flush)


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
        launch = peek(table, k)
        kernel, pointers = peek(launch, 0), peek(launch, 2)
        for block in range(peek(launch, 1)):
            run_block(kernel, block, pointers, flush)
    take_lock(thread)
    return True


def _compile(
    function: Callable[..., Any], parallel: bool, nogil: bool, returns: Any = types.void
) -> Callable[..., Any]:
    dispatcher = numba.njit(**{**INNER, "nogil": nogil}, parallel=parallel)(function)
    dispatcher._cache = cache = _Cache(f"{function.__module__.rpartition('.')[2]}.{function.__name__}")
    with _recorded(cache):
        dispatcher.compile(returns(*[types.int64] * function.__code__.co_argcount))
    dispatcher.disable_compile()
    (overload,) = dispatcher.overloads.values()
    return overload.entry_point  # which the dispatcher would find after a look at the types, in 0.1 us of 0.25


_helpers: list[Callable[[], Callable[..., Any]]] = []  # of the modules imported so far


def compiled(
    function: Callable[..., Any], nogil: bool = True, returns: Any = types.void
) -> Callable[[], Callable[..., Any]]:
    """Return what gives `function`, of int64 arguments, compiled for calls from Python: when it is first asked.

    nogil : run it without the interpreter's lock
    returns : Numba's type of what it returns
    """
    get = functools.cache(lambda: _compile(function, False, nogil, returns))
    _helpers.append(get)
    return get


# With the lock at first, for the objects that it reads.
_in_turn = compiled(_run_in_turn, nogil=False, returns=types.boolean)


@functools.cache
def _parallel_runner() -> Callable[[int, int, int, int], None]:
    return _compile(_run_parallel, parallel=True, nogil=True)


_parallel_lock = threading.Lock()


@functools.cache
def threading_layer() -> str:
    """Return which of Numba's threading layers runs the threads: tbb, omp or workqueue."""
    _parallel_runner()
    return numba.threading_layer()


@functools.cache
def _needs_lock() -> bool:
    """Say whether the threading layer can't be entered from two Python threads at once."""
    return threading_layer() == "workqueue"


def prepare(parallel: bool = True) -> None:
    """Make ready what runs kernels: the loops over blocks, and what the modules imported so far have `compiled`.

    parallel : also the loop that starts the threads, where there is more than one
    """
    if parallel and max_threads() > 1:
        _parallel_runner()
    for helper in _helpers:
        helper()


_pool_lost = False  # in the child of a fork, which has none of its parent's threads


def _after_fork_in_child() -> None:
    global _pool_lost
    _pool_lost = _in_turn.cache_info().currsize > 0  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    # OpenMP's pool does not survive a fork: using it there ends the process. The child computes on one thread instead.
    os.register_at_fork(after_in_child=_after_fork_in_child)


def pool_lost() -> bool:
    """Say whether this process was forked from one that had run kernels, and computes on one thread."""
    return _pool_lost


_threads: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def max_threads() -> int:
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def set_num_threads(n: int) -> None:
    global _threads
    _threads = n


def num_threads() -> int:
    """Return how many threads a parallel run uses."""
    return 1 if _pool_lost else _threads


def flushing() -> bool:
    """Say whether kernels are to take subnormal numbers for zero."""
    return get_subnormals() == "flush"


Pointers = tuple[Any, ...] | np.ndarray
Launch = tuple[Kernel, int, Pointers, bool]  # the arguments of `run`


def run(kernel: Kernel, blocks: int, pointers: Pointers, parallel: bool = True) -> None:
    """Run `kernel` for every block in range(blocks).

    pointers : what each call is given: a table int64 (n,); or a tuple, of which an array becomes the address of its
        first element, an int itself, a float its bits, None 0, and a tuple the address of a table of its own. What
        addresses in it point to must stay alive until the return.
    parallel : spread the blocks over the threads; otherwise run them here, one after the other
    """
    run_in_turn((kernel, blocks, pointers, parallel))


def run_in_turn(*launches: Launch) -> None:
    """Run launches one after the other: in one compiled call, where none of them is spread over threads.

    A call takes 0.3 us, of the 3 or 4 of a small product or reduction.
    """
    if (threads := num_threads()) > 1:
        for _, blocks, _, parallel in launches:
            if parallel and blocks > 1:
                break
        else:
            threads = 1
    if threads == 1:
        if not (_READABLE and _in_turn()(id(launches), _KINDS_AT, flushing(), 0)):
            _run_tables(launches)
        return
    for launch in launches:
        if launch[3] and launch[1] > 1:
            _run_threads(threads, *launch[:3])
        else:
            run_in_turn(launch)


def call_with(function: Callable[[int, int, int], Any], task: tuple[Any, ...], otherwise: Any) -> Any:
    """Return what a compiled function(task, kinds, flush) makes of a tuple, which it will `lay`; or `otherwise`."""
    return function(id(task), _KINDS_AT, flushing()) if _READABLE else otherwise


def _run_tables(launches: Sequence[Launch]) -> None:
    """Run launches on this thread by tables made here: where `lay` can't read what they hold."""
    tables = [_table_of(pointers) for _, _, pointers, _ in launches]
    entries = zip(launches, tables, strict=True)
    heads = [np.array([kernel, blocks, address(table[0])], np.int64) for (kernel, blocks, *_), table in entries]
    places = np.array(list(map(address, heads)), np.int64)
    _in_turn()(len(heads), 0, flushing(), address(places))


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


def _run_threads(threads: int, kernel: Kernel, blocks: int, pointers: Pointers) -> None:
    memory = np.empty(TABLE_NUMBERS, np.int64)
    tables = [memory]
    if not (_READABLE and type(pointers) is tuple and _in_turn()(id(pointers), _KINDS_AT, 0, address(memory))):
        tables = _table_of(pointers)
    arguments = kernel, blocks, address(tables[0]), flushing()
    with _parallel_lock if _needs_lock() else contextlib.nullcontext():
        before = numba.get_num_threads()
        if before == threads:
            _parallel_runner()(*arguments)
            return
        # Numba's setting belongs to the Python thread and to whatever else runs there: it is put back.
        numba.set_num_threads(threads)
        try:
            _parallel_runner()(*arguments)
        finally:
            numba.set_num_threads(before)


# --- addresses


def _address_in_object(array: np.ndarray) -> int:
    return number_at(id(array) + DATA).value


def _address_by_interface(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


_READABLE = readable()
_KINDS = kinds_of(Kernel)
_KINDS_AT = _address_by_interface(_KINDS)

address: Callable[[np.ndarray], int] = _address_in_object if _READABLE else _address_by_interface
"""Return the address of an array's first element: 0.1 us by the object, 0.8 by __array_interface__."""


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the addresses of the first elements of many arrays, int64 (len(arrays),)."""
    return np.fromiter(map(address, arrays), np.int64, len(arrays))
