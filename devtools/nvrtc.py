"""Compile CUDA C++ for any GPU with NVRTC, which needs none: exactly as CuPy's RawModule(code=...) would.

    compiled = compile(code, "sm_90")
    compiled.image, compiled.log

NVRTC is that of the wheel nvidia-cuda-nvrtc, which CuPy uses too, or else of the system.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Multiplications are contracted where the source says fmaf, and nowhere else: else each compiler would give other bits.
OPTIONS = ("--std=c++17", "-fmad=false")
# CuPy appends them, -ftz=true to whatever the caller asks for: of two, the last one counts.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

_PLACES = ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12")  # in the wheels
_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")


class CompileError(RuntimeError):
    """NVRTC refused the code; the text is its log."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What NVRTC made of a source: a cubin or PTX, and what it said."""

    image: bytes
    log: str

    @property
    def ptx(self) -> str:
        return self.image.rstrip(b"\0").decode()


def wheel_files(*patterns: str) -> list[Path]:
    """Return the files of NVIDIA's wheels that match the patterns, in their order."""
    try:
        import nvidia
    except ImportError:
        return []
    return [path for pattern in patterns for root in nvidia.__path__ for path in sorted(Path(root).glob(pattern))]


@functools.cache
def _library() -> ctypes.CDLL | None:
    for path in wheel_files(*_PLACES):
        # libnvrtc opens it by its bare name, which finds it once it is loaded.
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        return _declared(ctypes.CDLL(str(path)))
    for name in _NAMES:
        try:
            return _declared(ctypes.CDLL(name))
        except OSError:
            continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def why_unavailable() -> str | None:
    """Say why nothing can be compiled, or return None."""
    return None if _library() else 'NVRTC is not installed; `pip install "fastgrad[cuda-dev]"` brings it'


def _call(name: str, *arguments: object) -> None:
    library = _library()
    if library is None:
        raise CompileError(why_unavailable())
    status = library[name](*arguments)
    if status:
        raise CompileError(f"{name}: {library.nvrtcGetErrorString(status).decode()}")


def version() -> tuple[int, int]:
    """Return NVRTC's version, (13, 0) for example."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, text)
    return text.raw


def compile(code: str, arch: str, options: Sequence[str] = (), name: str = "kernel.cu") -> Compiled:
    """Compile a source for "sm_90", to a cubin, or for "compute_90", to PTX.

    options : beyond those that fastgrad and CuPy give: -DNAME=VALUE
    name : of the source, for lines of the log that no #line directive names

    The log holds the warnings; an error raises CompileError.
    """
    words = [*OPTIONS, *options, *CUPY_OPTIONS[:1], f"-arch={arch}", *CUPY_OPTIONS[1:]]
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), code.encode(), name.encode(), 0, None, None)
    try:
        array = (ctypes.c_char_p * len(words))(*[word.encode() for word in words])
        failure = None
        try:
            _call("nvrtcCompileProgram", program, len(words), array)
        except CompileError as error:
            failure = error
        log = _text(program, "ProgramLog").rstrip(b"\0").decode()
        if failure:
            raise CompileError(log or str(failure))
        return Compiled(_text(program, "PTX" if arch.startswith("compute") else "CUBIN"), log)
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s[^,]*?\.align\s+\d+\s+)?\w+(\[\d+\])?")


def parameters(ptx: str) -> dict[str, list[str]]:
    """Return the types of each kernel's parameters, as PTX writes them.

    Pointers and long long are u64, int u32, float f32, double f64, bool u8 or s8; a struct of 24 bytes is b8[24].
    """
    found: dict[str, list[str]] = {}
    for kernel, text in _ENTRY.findall(ptx):
        found[kernel] = [kind + size for kind, size in _PARAMETER.findall(text)]
    return found
