"""The one door to the GPU: make a kernel of kernels/<source>.cu and launch it over arrays on a device.

CuPy checks nothing that a kernel is given: a Python float travels as a double and an int as a long long, a view is
taken for its base, and an included header is no part of the key of its compile cache. So every launch goes through
`Kernel`, which knows the parameters' C types, casts every scalar, checks every array, and hands the compiler one text
with all headers put in place.

A .cu file is written for two types: `storage_t`, what lies in memory, and `real_t`, what is computed with. They and
whatever else a variant depends on (`FG_KIND`) are #defines before the text, and only what is called gets compiled.
Compiled without contraction (-fmad=false): where a multiplication and an addition are to be one rounding the source
says fma, and the same source on another processor gives the same bits. CuPy always adds -ftz=true: on float32 arrays
subnormal numbers are taken for 0 and results below the normal range become 0.

Where the arrays lie decides on which `Device` a kernel runs: CuPy's here; tests register one that runs on the CPU.

A graph captures addresses and owns nothing: memory that a captured call allocates and lets go would be somebody else's
when the graph is replayed. So whatever a launch or a product is given while its stream is captured is kept for as long
as the process lives, here, whoever allocated it; `keep` does the same for what only the array module writes, which
`copy`, `zeros` and `fill` call. (CUDA could tie memory to the life of a graph, by user objects, which CuPy does not
have: a program that captures anew again and again grows. What is captured allocates: CuPy's default mode of capture,
relaxed, lets it.)
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "-fmad=false")
BLOCK = 256  # threads a block where a kernel has no reason for another number
WARP = 32
LARGEST_BLOCK = 1024
# Bytes of dynamic shared memory that a block may have without its kernel being told: 48 KB less what is static.
SHARED_UNASKED = (48 << 10) - (4 << 10)
LARGEST_GRID = (2**31 - 1, 65535, 65535)

# The types of the arithmetic and of the arrays of a kernel, by the dtype of its arrays.
TYPES = {"float32": ("float", "float"), "float64": ("double", "double")}
SUFFIXES = {"float32": "f32", "float64": "f64"}

# C types of parameters that do not depend on the dtype, with NumPy's name for each.
SCALARS = {"i32": np.int32, "u32": np.uint32, "i64": np.int64, "u64": np.uint64, "f32": np.float32, "f64": np.float64}
POINTERS = {**{f"{name}*": np.dtype(kind) for name, kind in SCALARS.items()}, "u8*": np.dtype(np.uint8)}

NULL = np.uint64(0)  # a null pointer among the arguments of a launch: CuPy's None is no argument at all

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


class Launch(Protocol):
    """A compiled kernel, called as CuPy's are."""

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int
    ) -> None: ...


class Device(Protocol):
    """Where kernels run."""

    xp: Any  # the module of its arrays: empty, zeros, array
    name: str  # as its maker calls it
    multiprocessors: int
    shared_memory: int  # bytes that a block may ask for
    block_limit: int  # threads a block at most; tests make it small
    cache: int  # bytes of its last cache, L2

    def function(self, text: str, name: str, large: bool) -> Callable[..., None]:
        """Return the kernel `name` of a source text, compiled once.

        large : whether its launches may ask for more shared memory than SHARED_UNASKED
        It is called as f(grid, block, arguments, shared, touches, cooperative).
        """
        ...

    def here(self) -> Any:
        """Return a context in which this is the current device."""
        ...

    def matmul(self, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, accumulate: bool) -> None:
        """Write op(a) op(b) into `out`, or add it; called by matmul_gpu.matmul, which checks."""
        ...

    def mark(self) -> Any:
        """Return an event behind the work that the current stream was given so far."""
        ...

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the time between two events on the device; waits for the second one."""
        ...

    def synchronize(self) -> None:
        """Wait for the current stream."""
        ...

    def capturing(self) -> bool:
        """Say whether the current stream records launches for a graph."""
        ...

    def push_range(self, name: str) -> None:
        """Begin a named range, which Nsight Systems shows; `pop_range` ends the one begun last."""
        ...

    def pop_range(self) -> None: ...


class StreamTools:
    """The part of a Device that times and names what its streams do, over `xp.cuda` as CuPy has it."""

    xp: Any

    def mark(self) -> Any:
        event = self.xp.cuda.Event()
        event.record(self.xp.cuda.get_current_stream())
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(begin, end) * 1e-3

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def capturing(self) -> bool:
        return self.xp.cuda.get_current_stream().is_capturing()

    # Which builds of CuPy have NVTX differs: without it there are no names, and nothing else is missing.
    def push_range(self, name: str) -> None:
        if self.xp.cuda.nvtx.available:
            self.xp.cuda.nvtx.RangePush(name)

    def pop_range(self) -> None:
        if self.xp.cuda.nvtx.available:
            self.xp.cuda.nvtx.RangePop()


class _CuPyDevice(StreamTools):
    """A GPU through CuPy, on the stream that is current."""

    block_limit = LARGEST_BLOCK

    def __init__(self, ordinal: int) -> None:
        import cupy

        self.xp = cupy
        self.ordinal = ordinal
        properties = cupy.cuda.runtime.getDeviceProperties(ordinal)
        self.name: str = properties["name"].decode()
        self.multiprocessors: int = properties["multiProcessorCount"]
        self.shared_memory: int = properties["sharedMemPerBlockOptin"]
        self.cache: int = properties["l2CacheSize"]
        self._modules: dict[str, Any] = {}
        self._lock = threading.Lock()

    def here(self) -> Any:
        return self.xp.cuda.Device(self.ordinal)

    def matmul(self, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, accumulate: bool) -> None:
        from . import cublas

        stream = self.xp.cuda.get_current_stream()
        capture = cublas.capture_number(stream.ptr) if stream.is_capturing() else 0
        self._cublas.matmul(stream.ptr, a, b, out, transpose_a, transpose_b, accumulate, capture)

    @functools.cached_property
    def _cublas(self) -> Any:
        from . import cublas

        library = cublas.load(self.xp.cuda.runtime.runtimeGetVersion() // 1000)
        return cublas.Cublas(library, lambda size: self.xp.empty(size, np.uint8))

    def function(self, text: str, name: str, large: bool) -> Callable[..., None]:
        with self._lock, self.here():
            module = self._modules.get(text)
            if module is None:
                module = self._modules[text] = self.xp.RawModule(code=text, options=OPTIONS)
            kernel = module.get_function(name)
            if large:
                # The attribute is the kernel's, whoever got it: a value that fits one launch would refuse a larger one.
                kernel.max_dynamic_shared_size_bytes = self.shared_memory - kernel.shared_size_bytes
        compiled = kernel.kernel  # a RawKernel looks up its device anew in each call
        room: dict[tuple[int, int], int] = {}

        def launch(grid: Any, block: Any, args: Any, shared: int, touches: Any, cooperative: bool) -> None:
            if cooperative:
                shape = math.prod(block), shared
                if shape not in room:
                    room[shape] = self._blocks_at_once(compiled, *shape)
                if math.prod(grid) > room[shape]:
                    # CuPy would launch fewer, which wait for the rest for ever.
                    raise RuntimeError(
                        f"{name}: {math.prod(grid)} blocks of {shape[0]} threads and {shared} bytes of shared memory "
                        f"must run at the same time, and the device has room for {room[shape]}"
                    )
            compiled(grid, block, args, shared_mem=shared, enable_cooperative_groups=cooperative)

        return launch

    def _blocks_at_once(self, compiled: Any, threads: int, shared: int) -> int:
        each = self.xp.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(compiled.ptr, threads, shared)
        return each * self.multiprocessors


@functools.cache
def _cupy_device(ordinal: int) -> _CuPyDevice:
    return _CuPyDevice(ordinal)


# Types of arrays that stand in for CuPy's in tests, with their device.
registered: dict[type, Device] = {}


def device_of(array: Array) -> Device:
    """Return the device on which a device array lies."""
    device = registered.get(type(array))
    return device if device is not None else _cupy_device(array.data.device_id)


@functools.cache
def _file(name: str) -> str:
    return (FOLDER / name).read_text()


def source_text(source: str, defines: Sequence[tuple[str, str]] = ()) -> str:
    """Return the whole text of a kernel: #defines, then kernels/<source>.cu with each header in its place, once."""
    seen: set[str] = set()

    def placed(name: str) -> str:
        text, parts, end = _file(name), [f'#line 1 "{name}"\n'], 0
        for match in _INCLUDE.finditer(text):
            parts.append(text[end : match.start()])
            if match[1] not in seen:
                seen.add(match[1])
                parts.append(placed(match[1]) + "\n")
            parts.append(f'#line {text.count(chr(10), 0, match.start()) + 2} "{name}"')
            end = match.end()
        return "".join([*parts, text[end:]])

    return "".join(f"#define {name} {value}\n" for name, value in defines) + placed(f"{source}.cu")


def stripped(text: str) -> str:
    """Return a source without comments, line numbers and white space, which change nothing of what it does."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^#line[^\n]*", " ", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def source_key(source: str) -> str:
    """Return a hash of what kernels/<source>.cu says with its headers, and of the compiler's options."""
    return hashlib.sha256("\0".join([stripped(source_text(source)), *OPTIONS]).encode()).hexdigest()[:16]


@functools.cache
def variant_text(source: str, dtype: str, defines: tuple[tuple[str, str], ...]) -> str:
    """Return the text of kernels/<source>.cu for arrays of a dtype and further defines."""
    storage, real = TYPES[dtype]
    given = [("FG_STORAGE", storage), ("FG_REAL", real), (f"FG_{SUFFIXES[dtype].upper()}", "1"), *defines]
    return source_text(source, given)


class Parameter(NamedTuple):
    """One parameter of a kernel: its name, the kind of its type, and whether a null pointer will do."""

    name: str
    kind: str  # of SCALARS or POINTERS, or "T*" (array of the dtype), "T" and "A" (storage_t, real_t), "struct"
    optional: bool


def _parameters(text: str) -> tuple[Parameter, ...]:
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, kind = (p.strip() for p in part.split(":"))
        optional = kind.endswith("?")
        kind = kind.removesuffix("?").removeprefix("const ")
        if kind not in SCALARS and kind not in POINTERS and kind not in ("T*", "A*", "T", "A", "struct"):
            raise ValueError(f"{name}: unknown kind {kind!r}")
        found.append(Parameter(name, kind, optional))
    return tuple(found)


captured: list[Any] = []  # what graphs refer to


def keep(device: Device, *arrays: Array) -> None:
    """Keep arrays for as long as the process lives where the current stream of the device is captured."""
    with device.here():
        if device.capturing():
            captured.append(arrays)


def copy(array: Array) -> Array:
    """Return a copy that a graph may write."""
    device = device_of(array)
    with device.here():
        result = array.copy()
    keep(device, array, result)
    return result


def zeros(device: Device, shape: int | tuple[int, ...], dtype: Any) -> Array:
    """Return zeros that a graph may write."""
    with device.here():
        result = device.xp.zeros(shape, dtype)
    keep(device, result)
    return result


def fill(value: float, *arrays: Array) -> None:
    """Fill arrays, in a graph as well."""
    for array in arrays:
        device = device_of(array)
        keep(device, array)
        with device.here():
            array.fill(value)


declared: list[Kernel] = []  # every kernel of the launchers imported so far


class Kernel:
    """A kernel of kernels/<source>.cu, for any dtype and any variant.

    Args:
        source: stem of the file.
        name: of the kernel.
        parameters: what it takes, in its order, "dy: const T*, n: i64, bias: T*?, slope: A": T is storage_t, A real_t,
            the others fixed types (i32 u32 i64 u64 f32 f64); a pointer with ? may be null (None).
        variants: names of the #defines that a launch must give, as FG_<NAME>.
    """

    def __init__(self, source: str, name: str, parameters: str, variants: Sequence[str] = ()) -> None:
        self.source, self.name = source, name
        self.parameters = _parameters(parameters)
        self.variants = tuple(variants)
        self._functions: dict[Any, Callable[..., None]] = {}
        declared.append(self)

    def text(self, dtype: str, **variant: Any) -> str:
        """Return the source of a variant."""
        return variant_text(self.source, dtype, self._defines(variant))

    def _defines(self, variant: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        if set(variant) != set(self.variants):
            raise TypeError(f"{self.name}: expected the variant {self.variants}, got {tuple(variant)}")
        return tuple((f"FG_{name.upper()}", str(variant[name])) for name in self.variants)

    def __call__(
        self,
        device: Device,
        dtype: np.dtype,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *args: Any,
        shared: int = 0,
        touches: Sequence[Array] = (),
        cooperative: bool = False,
        **variant: Any,
    ) -> None:
        """Launch on the current stream of a device; nothing where the grid is empty.

        Args:
            dtype: of the arrays behind T*.
            grid, block: blocks, and threads a block, along up to three axes.
            args: one for each parameter: device arrays for pointers (C-contiguous, on the device), numbers for the
                rest, which get the C type declared.
            shared: bytes of dynamic shared memory.
            touches: arrays that the kernel reaches through addresses in other arrays.
            cooperative: all blocks must run at the same time.

        Raises:
            TypeError, ValueError: an argument is not what was declared; a mistake in the launcher, not in its caller.
        """
        grid = grid if isinstance(grid, tuple) else (grid,)
        block = block if isinstance(block, tuple) else (block,)
        if 0 in grid:
            return
        self._check_shape(device, grid, block, shared)
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: expected {len(self.parameters)} arguments, got {len(args)}")
        packed = tuple(
            self._packed(device, dtype, parameter, value)
            for parameter, value in zip(self.parameters, args, strict=True)
        )
        large = shared > SHARED_UNASKED
        key = (device, dtype, large, *variant.values())
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = device.function(self.text(dtype.name, **variant), self.name, large)
        with device.here():
            if device.capturing():
                captured.append((packed, touches))
            function(grid, block, packed, shared, touches, cooperative)

    def _check_shape(self, device: Device, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        if any(size > most for size, most in zip(grid, LARGEST_GRID, strict=False)) or min(grid) < 0:
            raise ValueError(f"{self.name}: grid {grid} is beyond {LARGEST_GRID}")
        if math.prod(block) > LARGEST_BLOCK or min(block) < 1:
            raise ValueError(f"{self.name}: a block of {block} threads is beyond {LARGEST_BLOCK}")
        if shared > device.shared_memory:
            raise ValueError(f"{self.name}: {shared} bytes of shared memory, the device has {device.shared_memory}")

    def _packed(self, device: Device, dtype: np.dtype, parameter: Parameter, value: Any) -> Any:
        name, kind, optional = parameter
        if not kind.endswith("*"):
            if kind == "struct":
                return value
            scalar = SCALARS.get(kind) or dtype.type
            try:
                result = scalar(value)
                fits = kind.startswith("f") or kind in "TA" or result == value
            except OverflowError:
                fits = False
            if not fits:
                raise ValueError(f"{self.name}: {name} = {value} does not fit {kind}")
            return result
        if value is None and optional:
            return NULL
        if type(value) not in registered and type(value) is not device.xp.ndarray:
            raise TypeError(f"{self.name}: {name}: expected a device array, got {type(value).__qualname__}")
        wanted = dtype if kind in ("T*", "A*") else POINTERS[kind]
        if value.dtype != wanted:
            raise TypeError(f"{self.name}: {name}: expected {wanted}, got {value.dtype}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{self.name}: {name} is not C-contiguous")
        if device_of(value) is not device:
            raise ValueError(f"{self.name}: {name} lies on another device than the first array")
        return value


def threads(device: Device, wanted: int = BLOCK) -> int:
    """Return the threads of a block, a multiple of a warp."""
    return max(WARP, min(wanted, device.block_limit) // WARP * WARP)


def blocks(size: int, per_block: int) -> int:
    """Return how many blocks cover `size` elements."""
    return -(-size // per_block)
