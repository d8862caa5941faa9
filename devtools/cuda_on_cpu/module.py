"""Compile CUDA C++ with g++ and launch its kernels on NumPy arrays."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastgrad.kernels import runtime

HERE = Path(__file__).parent
MODULES_KEPT = 2000  # in the cache, of some 100 KB each

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_TOTAL = 2**28  # threads of a launch: not the device's limit, but some 30 s here
SHARED_BYTES = 48 * 1024  # of a block, unless the launch asks for more
MAX_SHARED_BYTES = 227 * 1024  # of compute capability 9.0

# -fno-gnu-unique: variables of two modules that are named alike are two. Kernels read floats as float4, which C++ would
# forbid: -fno-strict-aliasing. A frame must fit the stack of a fiber (fiber.h).
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing",
         "-fno-gnu-unique", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]  # fmt: skip
KERNEL_FLAGS = [*FLAGS, "-O1", "-g1", "-Werror=frame-larger-than=65536"]
CHECK_FLAGS = ["-fsanitize=thread,alignment,bounds", "-fno-sanitize-recover=all", "-Wno-tsan"]
MODES = {"plain": ([], []), "check": (CHECK_FLAGS, ["-DCHECKED"])}  # flags for the kernel, flags for the engine

_DYNAMIC = re.compile(
    r"^([^\n]*?)extern\s+__shared__\s+((?:__align__|alignas)\s*\([^)]*\)\s*)?([\w:]+(?:\s+\w+)*?)\s+"
    r"((?:__align__|alignas)\s*\([^)]*\)\s*)?(\w+)\s*\[\s*\]\s*;",
    re.MULTILINE,
)


class CompileError(RuntimeError):
    """g++ is missing or refused the code."""


class LaunchError(RuntimeError):
    """A launch that a device would refuse, or in which a kernel did what it must not."""


def why_unavailable() -> str | None:
    """Say why no kernel can run here, or return None."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        return "kernels run on the CPU under Linux, on x86-64 and arm64 only"
    if not all(map(shutil.which, ("g++", "readelf", "addr2line"))):
        return "g++ is not on the PATH; `apt-get install g++` or the like brings it"
    return None


# --- building


@functools.cache
def _compiler() -> tuple[str, ...]:
    """Return g++, its version and the flags for this processor."""
    why = why_unavailable()
    if why:
        raise CompileError(why)
    version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    # fmaf is one instruction instead of a call; where the processor lacks it, the C library's is as exact.
    flags = ["-mfma"] if re.search(r"^flags\s*:.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE) else []
    return "g++", version, *flags


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CompileError(result.stderr[:8000])


@functools.cache
def _cache_folder() -> Path:
    folder = runtime.folder_beside("cuda-on-cpu")
    return folder if folder is not None else Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))


def _built(name: str, make: Any) -> Path:
    """Return the cached file of this name. `make(path)` writes it, aside: processes may build the same one at once."""
    file = _cache_folder() / name
    if file.exists():
        with contextlib.suppress(OSError):
            os.utime(file)
    else:
        with tempfile.TemporaryDirectory(dir=file.parent) as aside:
            make(Path(aside) / name)
            for made in Path(aside).iterdir():
                os.replace(made, file.parent / made.name)
    return file


def _prune() -> None:
    aged = []
    for module in _cache_folder().glob("*.so"):
        with contextlib.suppress(FileNotFoundError):  # another process may be at it too
            aged.append((module.stat().st_mtime, module))
    for _, old in sorted(aged)[:-MODULES_KEPT]:
        for file in (old, old.with_suffix(".json")):
            file.unlink(missing_ok=True)


@functools.cache
def _sources() -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(HERE.iterdir()) if path.suffix in (".h", ".cpp", ".py"))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr((*_compiler(), *parts)).encode() + _sources()).hexdigest()[:24]


def _engine(mode: str) -> Path:
    gpp, _, *native = _compiler()

    def make(path: Path) -> None:
        _run([gpp, *FLAGS, *native, "-O2", *MODES[mode][1], "-c", str(HERE / "engine.cpp"), "-o", str(path)])

    return _built(f"engine-{_hash(mode)}.o", make)


def _shared_variables(module: Path) -> list[tuple[int, int, str]]:
    """Return offset, bytes and name of the static shared memory of a module."""
    text = subprocess.run(["readelf", "-sW", "-C", str(module)], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in text.splitlines():
        words = line.split(None, 7)
        if len(words) == 8 and words[3] == "TLS" and words[6] != "UND" and words[7] != "cuda_on_cpu::anchor":
            found.add((int(words[1], 16), int(words[2], 0), words[7]))
    return sorted(found)


def _dynamic_shared(found: re.Match[str]) -> str:
    before, _, kind, _, name = found.groups()
    if not before and not found[0].startswith((" ", "\t")):
        raise CompileError(f"`{found[0].strip()}`: declare dynamic shared memory in the kernel that uses it")
    return f"{before}{kind}* {name} = static_cast<{kind}*>(cuda_on_cpu::dynamic_shared());"


def _build(code: str, kernels: Sequence[str], mode: str, options: Sequence[str]) -> Path:
    gpp, _, *native = _compiler()

    def make(path: Path) -> None:
        source = path.with_suffix(".cpp")
        glue = "".join(
            f'extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_launch_{i}'
            f"(const cuda_on_cpu::Launch* launch) {{ return cuda_on_cpu::launch({name}, *launch); }}\n"
            for i, name in enumerate(kernels)
        )
        text = _DYNAMIC.sub(_dynamic_shared, code)
        source.write_text(f'#include "device.h"\n#line 1 "kernel.cu"\n{text}\n#line 1 "launches"\n{glue}')
        kernel = path.with_suffix(".o")
        checks = MODES[mode][0]
        _run([gpp, *KERNEL_FLAGS, *native, *checks, *options, f"-I{HERE}", "-c", str(source), "-o", str(kernel)])
        _run([gpp, "-shared", "-Wl,-Bsymbolic", str(kernel), str(_engine(mode)), "-o", str(path)])
        variables = _shared_variables(path)
        path.with_suffix(".json").write_text(json.dumps(variables))
        source.unlink()
        kernel.unlink()

    name = f"{_hash(code, list(kernels), mode, list(options))}.so"
    if not (_cache_folder() / name).exists():
        _prune()
    return _built(name, make)


# --- launching


class _Launch(ctypes.Structure):
    """Launch in engine.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_size_t),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("kinds", ctypes.c_char_p),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
        ("policy", ctypes.c_int),
        ("cooperative", ctypes.c_int),
        ("flush", ctypes.c_int),
    ]


_lock = threading.Lock()  # a module holds the state of one launch


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """Return the address of the first byte of an array, in memory, and the number of bytes up to its last."""
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    low = array.ctypes.data + sum(r for r in reach if r < 0)
    return low, sum(map(abs, reach)) + array.itemsize


def _shape(name: str, given: Sequence[int] | int, most: Sequence[int]) -> tuple[int, int, int]:
    shape = (given,) if isinstance(given, int) else tuple(given)
    if not 1 <= len(shape) <= 3 or not all(1 <= n <= m for n, m in zip(shape, most, strict=False)):
        raise LaunchError(f"{name} is {shape}; 1 to 3 numbers from 1 up to {tuple(most)} were expected")
    x, y, z = map(int, (*shape, 1, 1)[:3])
    return x, y, z


def _value(argument: Any) -> np.ndarray:
    """Return a scalar or struct as CuPy passes it: Python's numbers have 64 bits."""
    kind = {bool: np.bool_, int: np.int64, float: np.float64}.get(type(argument))
    if kind is not None:
        return np.array(argument, kind)
    value = np.array(argument)
    if value.dtype.kind not in "fiubV":
        raise LaunchError(f"an argument is {type(argument).__name__}: expected an array, a number, a struct, or None")
    return value


class CpuFunction:
    """A kernel. Call it with grid, block and arguments, as a RawKernel of CuPy.

    max_dynamic_shared_size_bytes : set it to launch with more than 48 KB of shared memory, up to 227 KB
    """

    def __init__(self, module: CpuModule, name: str, launch: Any):
        self.name = name
        self.max_dynamic_shared_size_bytes = SHARED_BYTES
        self._module = module
        self._launch = launch
        self._launch.restype = ctypes.c_char_p

    @property
    def shared_size_bytes(self) -> int:
        """Return the bytes of static shared memory of a block."""
        return self._module.static_shared_bytes(self.name)

    def __call__(
        self,
        grid: Sequence[int] | int,
        block: Sequence[int] | int,
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        policy: int = 0,
        touches: Sequence[np.ndarray] = (),
        cooperative: bool = False,
        resident: int | None = None,
    ) -> None:
        """Launch the kernel, and return when it has ended.

        args : arrays, NumPy's numbers, Python's numbers (int64, float64, bool), structs (structured arrays of size 1),
            or None for a null pointer
        policy : order in which threads and blocks run: 0 ascending, 1 descending, from 2 on random with that seed
        touches : arrays that the kernel reaches by addresses in other arrays
        cooperative : run all blocks together, so that they may wait for each other
        resident : how many blocks of a cooperative launch the device would hold

        Raises LaunchError for what a device would refuse, for arguments of other kinds than the kernel takes, and for
        what the checker finds.
        """
        blocks = _shape("grid", grid, MAX_GRID)
        threads = _shape("block", block, MAX_BLOCK)
        self._check(blocks, threads, shared_mem, cooperative, resident)
        kinds, sizes, values = "", [], []
        arrays = [(f"array {i} reached by pointer", array) for i, array in enumerate(touches)]
        for i, argument in enumerate(args):
            if argument is None:
                value = np.array(0, np.uintp)
            elif isinstance(argument, np.ndarray) and not (argument.dtype.names and argument.size == 1):
                arrays.append((f"argument {i}", argument))
                value = np.array(argument.ctypes.data, np.uintp)
            else:
                value = _value(argument)
            pointer = argument is None or (arrays and arrays[-1][1] is argument)
            kinds += "p" if pointer else {"f": "f", "V": "s"}.get(value.dtype.kind, "i")
            sizes.append(value.dtype.itemsize)
            values.append(value)
        launch = _Launch(
            grid=blocks,
            block=threads,
            shared=shared_mem,
            arguments=(ctypes.c_void_p * len(values))(*[v.ctypes.data for v in values]),
            kinds=kinds.encode(),
            sizes=(ctypes.c_size_t * len(sizes))(*sizes),
            policy=policy,
            cooperative=cooperative,
            flush=self._module.flushes([array for _, array in arrays]),
        )
        with _lock:
            for name, array in arrays:
                if array.size:
                    self._module.add_array(*_bounds(array), array.flags.writeable, name.encode())
            trouble = self._launch(ctypes.byref(launch)).decode()
        if trouble:
            raise LaunchError(f"{self.name}: {self._module.located(trouble)}")

    def _check(self, grid: tuple, block: tuple, shared_mem: int, cooperative: bool, resident: int | None) -> None:
        threads, blocks = block[0] * block[1] * block[2], grid[0] * grid[1] * grid[2]
        if threads > MAX_THREADS:
            raise LaunchError(f"{self.name}: {threads} threads in a block; a device takes {MAX_THREADS}")
        if threads * blocks > MAX_TOTAL:
            raise LaunchError(f"{self.name}: {blocks} blocks of {threads} threads are too many to run on the CPU")
        static = self.shared_size_bytes
        limit = self.max_dynamic_shared_size_bytes
        if limit <= SHARED_BYTES:
            limit = min(limit, SHARED_BYTES - static)
        if not 0 <= shared_mem <= limit <= MAX_SHARED_BYTES - static:
            raise LaunchError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory besides {static} of static; it may have "
                f"{limit}, and set max_dynamic_shared_size_bytes for more, up to {MAX_SHARED_BYTES} in all"
            )
        if cooperative and resident is not None and blocks > resident:
            raise LaunchError(f"{self.name}: a cooperative launch of {blocks} blocks, where {resident} fit the device")


class CpuModule:
    """CUDA C++ code compiled for the CPU, in the place of CuPy's RawModule.

    code : the whole source; #line directives in it give the names of files and the lines that errors name
    kernels : names of its __global__ functions
    mode : "check", or "plain": 2 to 20 times as fast, and blind to all but deadlocks and wrong results
    options : for g++: -DNAME=VALUE
    ftz : take subnormal numbers for zeros, as CuPy's -ftz=true does with floats. The CPU can do so for floats and
        doubles only together; None: where a launch is given arrays of float32 and none of float64
    """

    def __init__(
        self,
        code: str,
        kernels: Sequence[str],
        mode: str = "check",
        options: Sequence[str] = (),
        ftz: bool | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        self.kernels = tuple(kernels)
        self.mode = mode
        self._ftz = ftz
        with _lock:
            self._path = _build(code, self.kernels, mode, options)
            self._library = ctypes.CDLL(str(self._path))
            variables = json.loads(self._path.with_suffix(".json").read_text())
            if not self._library.cuda_on_cpu_has_shared_variables():
                for offset, size, name in variables:
                    args = ctypes.c_size_t(offset), ctypes.c_size_t(size), f"__shared__ {name}".encode()
                    self._library.cuda_on_cpu_shared_variable(*args)
        self._shared = {name: size for _, size, name in variables}
        for name, size in self._shared.items():
            if size > SHARED_BYTES:
                raise CompileError(f"__shared__ {name}: {size} bytes; a device takes {SHARED_BYTES} of static ones")
        self.add_array = self._library.cuda_on_cpu_array
        self.add_array.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p]
        self.add_array.restype = None

    def get_function(self, name: str) -> CpuFunction:
        """Return a kernel."""
        if name not in self.kernels:
            raise KeyError(f"no kernel {name!r} was asked for; there are {', '.join(self.kernels)}")
        return CpuFunction(self, name, self._library[f"cuda_on_cpu_launch_{self.kernels.index(name)}"])

    def static_shared_bytes(self, kernel: str) -> int:
        """Return the bytes of the variables declared in a kernel; those in functions that it calls are not counted."""
        return sum(size for name, size in self._shared.items() if re.match(rf"{re.escape(kernel)}(\(.*\))?::", name))

    def flushes(self, arrays: Sequence[np.ndarray]) -> bool:
        """Say whether a launch on these arrays takes subnormal numbers for zeros."""
        if self._ftz is not None:
            return self._ftz
        dtypes = {array.dtype for array in arrays}
        return np.dtype(np.float32) in dtypes and np.dtype(np.float64) not in dtypes

    def located(self, trouble: str) -> str:
        """Put lines of the source in the place of an address in the code."""
        found = re.search(r"@\+(0x[0-9a-f]+)", trouble)
        if not found:
            return trouble
        command = ["addr2line", "-i", "-s", "-e", str(self._path), found[1]]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
        own = [re.sub(r" \(discriminator.*", "", line) for line in lines if line and "device.h" not in line]
        return trouble.replace(found[0], "at " + ", called at ".join(own or ["an unknown line"]))
