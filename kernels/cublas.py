"""Matrix products by cuBLAS, called by ctypes.

CuPy's own binding refuses to be called while a stream is captured into a graph. cuBLAS itself does not, as long as it
needs no memory of its own: so each stream has a workspace here, handed over before every product.

A graph may be replayed beside any other work. NVIDIA's manual ("CUDA Graphs Support") leaves two ways: cuBLAS makes
memory nodes, which it says may fail in child graphs, or the caller gives a workspace by cublasSetWorkspace, which no
work that runs at the same time may share. So each capture has a workspace of its own here, and one more for every
stream that joins it, since branches of a graph run side by side. Which capture it is the driver tells by a number that
no other has. Workspaces of graphs stay for as long as the process lives, 32 MB each.

Products of float32 are computed in float32 throughout (CUBLAS_DEFAULT_MATH: no TF32), and the same call gives the same
bits each time: atomics are off and one handle works on one stream at a time.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import threading
from ctypes import addressof, byref, c_double, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

Array = Any

PLAIN, TRANSPOSED = 0, 1  # cublasOperation_t
DEFAULT_MATH = 0  # cublasMath_t
WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for compute capability 9.0, 4 MB before it

_STATUS = {
    1: "not initialized", 3: "allocation failed", 7: "invalid value", 8: "the device is too old for it",
    11: "mapping error", 13: "execution failed", 14: "internal error", 15: "not supported", 16: "license error",
}  # fmt: skip

_GEMM = {np.dtype(np.float32): ("cublasSgemm_v2_64", c_float), np.dtype(np.float64): ("cublasDgemm_v2_64", c_double)}
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (c_void_p,),
    "cublasSetMathMode": (c_void_p, c_int),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    **{
        name: (
            c_void_p, c_int, c_int, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64,
            c_void_p, c_void_p, c_int64,
        )
        for name, _ in _GEMM.values()
    },
}  # fmt: skip


class CublasError(RuntimeError):
    """cuBLAS refused a call."""


def _names(major: int) -> list[str]:
    if sys.platform == "win32":
        return [f"cublas64_{major}.dll"]
    return [f"libcublas.so.{major}"]


def _wheels(major: int) -> list[Path]:
    """Return where NVIDIA's wheels keep the library."""
    try:
        roots = list(importlib.import_module("nvidia").__path__)
    except ImportError:
        return []
    folders = (f"cu{major}/lib", f"cu{major}/bin/x86_64", "cublas/lib", "cublas/bin")
    return [Path(root) / folder / name for root in roots for folder in folders for name in _names(major)]


@functools.cache
def load(major: int) -> Any:
    """Return the cuBLAS of a CUDA major version: CuPy's where it has one, else the loader's, else the wheel's.

    Raises:
        RuntimeError: there is none.
    """
    try:
        importlib.import_module("cupy_backends.cuda.libs.cublas")  # CuPy loads it from wherever it was told to
        importlib.import_module("cupy_backends.cuda.libs").cublas  # noqa: B018
    except Exception:
        pass  # there are other places to look at
    tried = []
    for path in [*_names(major), *(str(p) for p in _wheels(major) if p.exists())]:
        try:
            return declare(ctypes.CDLL(path))
        except (OSError, AttributeError) as error:
            tried.append(f"{path}: {error}")
    raise RuntimeError(
        f"cuBLAS of CUDA {major} was not found ({'; '.join(tried)}); it comes with "
        f'pip install "fastgrad[cuda{major}]", which brings cupy-cuda{major}x[ctk]'
    )


def declare(library: Any) -> Any:
    """Give the functions of the library their parameters' types, and return it."""
    for name, kinds in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = list(kinds), c_int
    return library


class Cublas:
    """Products on one device.

    Args:
        library: what `load` returned.
        workspace: makes memory on the device, f(bytes), an array with data.ptr.
    """

    def __init__(self, library: Any, workspace: Any) -> None:
        self._library = library
        self._make_workspace = workspace
        self._workspaces: dict[tuple[int, int], Any] = {}  # by stream and capture; kept for good, as graphs use them
        self._own = threading.local()  # a handle for each thread, as they may not share one

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(self._library, name)(*args)
        if status:
            raise CublasError(f"{name}: {_STATUS.get(status, 'unknown error')} (status {status})")

    def _handle(self) -> Any:
        handle = getattr(self._own, "handle", None)
        if handle is None:
            handle = c_void_p()
            self._call("cublasCreate_v2", byref(handle))
            self._call("cublasSetMathMode", handle, DEFAULT_MATH)
            self._own.handle = handle
        return handle

    def matmul(
        self,
        stream: int,
        a: Array,
        b: Array,
        out: Array,
        transpose_a: bool,
        transpose_b: bool,
        accumulate: bool,
        capture: int = 0,
    ) -> None:
        """Write op(a) op(b) into `out`, or add it; rows contiguous, no size 0. The device must be current.

        capture : number of the capture under way on the stream, 0 where there is none
        """
        m, n = out.shape
        k = a.shape[0] if transpose_a else a.shape[1]
        handle = self._handle()
        place = stream, capture
        if place not in self._workspaces:
            self._workspaces[place] = self._make_workspace(WORKSPACE)
        # cublasSetStream takes the workspace away, so both each time.
        self._call("cublasSetStream_v2", handle, stream)
        self._call("cublasSetWorkspace_v2", handle, self._workspaces[place].data.ptr, WORKSPACE)
        gemm, kind = _GEMM[out.dtype]
        # cuBLAS goes by columns: what it sees is the transpose of each array, and out^T = op(b)^T op(a)^T.
        self._call(
            gemm, handle, TRANSPOSED if transpose_b else PLAIN, TRANSPOSED if transpose_a else PLAIN, n, m, k,
            byref(kind(1)), b.data.ptr, row_stride(b), a.data.ptr, row_stride(a),
            byref(kind(1 if accumulate else 0)), out.data.ptr, row_stride(out),
        )  # fmt: skip


@functools.cache
def _driver() -> Any:
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    # CUresult cuStreamGetCaptureInfo_v2(stream, status*, id*, graph*, dependencies**, count*), the last three optional.
    library.cuStreamGetCaptureInfo_v2.argtypes = [c_void_p] * 6
    library.cuStreamGetCaptureInfo_v2.restype = c_int
    return library


def capture_number(stream: int) -> int:
    """Return what tells the capture under way on a stream from all others of the process; 0 without one.

    Raises:
        RuntimeError: the driver refuses.
    """
    status, number = c_int(), c_uint64()
    code = _driver().cuStreamGetCaptureInfo_v2(stream, addressof(status), addressof(number), None, None, None)
    if code:
        raise RuntimeError(f"cuStreamGetCaptureInfo: CUDA error {code}")
    return number.value if status.value else 0


def row_stride(array: Array) -> int:
    """Return the elements from a row of a matrix to the next, at least the length of a row."""
    rows, columns = array.shape
    return array.strides[0] // array.itemsize if rows > 1 else max(columns, 1)
