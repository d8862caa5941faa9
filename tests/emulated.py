"""A stand-in for CuPy without a GPU: arrays of a type of their own, on which the CUDA sources run on the CPU.

`ndarray` answers to what the library asks of a cupy.ndarray and refuses what CuPy refuses: to become a NumPy array
unasked, or to be mixed with one. Every kernel is checked while it runs, see devtools/cuda_on_cpu. What fills new arrays
is NaN, so that an entry which no kernel writes is seen.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import time
from typing import Any, ClassVar

import numpy as np
from fastgrad.kernels import cuda

from fastgrad import _arrays

_SCALARS = (int, float, bool, np.number, np.bool_)


class _Memory:
    device_id = 0

    def __init__(self, address: int, owner: np.ndarray) -> None:
        self.ptr, self.owner = address, owner


class _Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


def _bare(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple):
        return type(value)(map(_bare, value))
    return value


class _At:
    """Memory at an address, for NumPy."""

    def __init__(self, memory: _Memory, **interface: Any) -> None:
        self.memory = memory
        self.__array_interface__ = {"version": 3, "data": (memory.ptr, False), **interface}


def _placed(host: np.ndarray) -> np.ndarray:
    # A kernel of CuPy's that reads or writes it would fail, and all later calls of the process with it.
    if not host.flags.aligned:
        raise RuntimeError("cudaErrorMisalignedAddress: misaligned address")
    return host


class ndarray:
    """A device array that lies in host memory."""

    __array_ufunc__ = None  # NumPy's operators turn to ours, which refuse

    def __init__(self, host: Any, dtype: Any = None, memptr: Any = None, strides: Any = None) -> None:
        if memptr is not None:  # CuPy's way: a shape and where the numbers lie
            host = np.asarray(_At(memptr, shape=host, typestr=np.dtype(dtype).str, strides=strides))
        self._host = host

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    T = property(lambda self: ndarray(self._host.T))
    base = property(lambda self: None if self._host.base is None else ndarray(self._host.base))
    flags = property(lambda self: _Flags(self._host.flags))
    data = property(lambda self: _Memory(self._host.__array_interface__["data"][0], self._host))

    def get(self) -> np.ndarray:
        return self._host.copy()

    def set(self, values: np.ndarray) -> None:
        self._host[...] = values

    def item(self) -> Any:
        return self._host.item()

    def tolist(self) -> Any:
        return self._host.tolist()

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(np.asarray(self._host[_bare(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        _placed(self._host)
        if isinstance(value, ndarray):
            _placed(value._host)
        self._host[_bare(key)] = _bare(value)

    def __len__(self) -> int:
        return len(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __repr__(self) -> str:
        return f"emulated.{self._host!r}"


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> ndarray:
        return ndarray(np.asarray(getattr(self._host, name)(*map(_bare, args), **kwargs)))

    return method


def _operator(function: Any, swapped: bool = False) -> Any:
    def method(self: ndarray, other: Any) -> ndarray:
        if not isinstance(other, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        operands = (_bare(other), self._host) if swapped else (self._host, _bare(other))
        return ndarray(np.asarray(function(*operands)))

    return method


def _in_place(function: Any) -> Any:
    def method(self: ndarray, other: Any) -> ndarray:
        self._host[...] = function(self._host, _bare(other))
        return self

    return method


for _name in ("reshape", "ravel", "transpose", "astype", "copy", "sum", "any", "all", "max", "min", "view", "swapaxes"):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    _function = getattr(operator, _name)
    setattr(ndarray, f"__{_name}__", _operator(_function))
    setattr(ndarray, f"__r{_name}__", _operator(_function, swapped=True))
    setattr(ndarray, f"__i{_name}__", _in_place(_function))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name)))
ndarray.__hash__ = None  # type: ignore[assignment]
ndarray.__neg__ = lambda self: ndarray(np.asarray(-self._host))  # type: ignore[attr-defined]
ndarray.fill = lambda self, value: self._host.fill(value)  # type: ignore[attr-defined]


class _Stream:
    ptr = 0
    capturing = False

    def __init__(self) -> None:
        self.recorded: list[Event] = []

    def is_capturing(self) -> bool:
        return self.capturing

    def synchronize(self) -> None:
        for event in self.recorded:
            event.done = True
        self.recorded.clear()


STREAM = _Stream()


class Event:
    """An event that is done once somebody has waited for it, or for what came after it."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time: float | None = None
        self.done = True  # one that was never recorded has nothing to wait for

    def record(self, stream: _Stream | None = None) -> None:
        self.time, self.done = time.perf_counter(), False
        STREAM.recorded.append(self)

    def synchronize(self) -> None:
        if self in STREAM.recorded:
            last = STREAM.recorded.index(self) + 1
            for event in STREAM.recorded[:last]:
                event.done = True
            del STREAM.recorded[:last]


def get_elapsed_time(start: Event, end: Event) -> float:
    if start.time is None or end.time is None:
        raise RuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    if not (start.done and end.done):
        raise RuntimeError("cudaErrorNotReady: device not ready")
    return float(np.float32((end.time - start.time) * 1e3))  # milliseconds, as a float of 32 bits


class _Nvtx:
    available = True
    open: ClassVar[list[str]] = []  # ranges begun and not ended
    names: ClassVar[list[str]] = []  # of all ranges begun

    @classmethod
    def RangePush(cls, message: str, id_color: int = -1) -> None:
        cls.open.append(message)
        cls.names.append(message)

    @classmethod
    def RangePop(cls) -> None:
        cls.open.pop()


class _Runtime:
    @staticmethod
    def getDevice() -> int:
        return 0

    @staticmethod
    def getDeviceCount() -> int:
        return 1

    @staticmethod
    def getDeviceProperties(device: int) -> dict[str, Any]:
        return {"name": b"emulated GPU", "major": 9, "minor": 0, "totalGlobalMem": 10**9, "l2CacheSize": 1 << 12}


class _Cuda:
    Event = Event
    runtime = _Runtime
    get_elapsed_time = staticmethod(get_elapsed_time)
    nvtx = _Nvtx

    @staticmethod
    def get_current_stream() -> _Stream:
        return STREAM


class Module:
    """The functions of cupy that the library calls, on arrays of this type."""

    cuda = _Cuda
    ndarray = ndarray
    float32, float64, int32, int64, uint32, uint64, uint8 = (
        np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64, np.uint8,
    )  # fmt: skip

    @staticmethod
    def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
        host = np.empty(shape, dtype, order)
        host.view(np.uint8 if host.ndim else host.dtype)[...] = 0xFF if host.ndim else np.nan
        return ndarray(host)

    @classmethod
    def empty_like(cls, array: ndarray, dtype: Any = None) -> ndarray:
        return cls.empty(array.shape, dtype or array.dtype)

    @staticmethod
    def zeros(shape: Any, dtype: Any = float) -> ndarray:
        return ndarray(np.zeros(shape, dtype))

    @staticmethod
    def zeros_like(array: ndarray, dtype: Any = None, order: str = "C") -> ndarray:
        return ndarray(np.zeros(array.shape, dtype or array.dtype))

    @staticmethod
    def ones(shape: Any, dtype: Any = float) -> ndarray:
        return ndarray(np.ones(shape, dtype))

    @staticmethod
    def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
        return ndarray(np.full(shape, _bare(value), dtype))

    @staticmethod
    def array(values: Any, dtype: Any = None, order: str = "C") -> ndarray:
        host = _placed(values._host) if isinstance(values, ndarray) else values
        return ndarray(np.array(host, dtype=dtype, order=order))

    @classmethod
    def asarray(cls, values: Any, dtype: Any = None) -> ndarray:
        same = isinstance(values, ndarray) and dtype in (None, values.dtype)
        return values if same else cls.array(values, dtype)

    @staticmethod
    def asnumpy(array: Any) -> np.ndarray:
        return array.get() if isinstance(array, ndarray) else np.asarray(array)

    @staticmethod
    def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
        if out is None:
            return ndarray(np.matmul(a._host, b._host))
        np.matmul(a._host, b._host, out=out._host)
        return out

    @staticmethod
    def concatenate(arrays: Any, axis: int = 0, out: ndarray | None = None) -> ndarray:
        joined = np.concatenate([a._host for a in arrays], axis=axis)
        if out is None:
            return ndarray(joined)
        out._host[...] = joined
        return out

    @staticmethod
    def stack(arrays: Any, axis: int = 0) -> ndarray:
        return ndarray(np.stack([a._host for a in arrays], axis=axis))

    @staticmethod
    def isfinite(array: ndarray) -> ndarray:
        return ndarray(np.asarray(np.isfinite(array._host)))

    @staticmethod
    def split(array: ndarray, sections: int, axis: int = 0) -> list[ndarray]:
        return [ndarray(part) for part in np.split(array._host, sections, axis=axis)]

    @staticmethod
    def ascontiguousarray(array: ndarray) -> ndarray:
        return ndarray(np.ascontiguousarray(array._host))


class EmulatedDevice(cuda.StreamTools):
    """The checker as a device: few and small blocks, so that small arrays already need several."""

    xp = Module
    multiprocessors = 3
    shared_memory = 227 << 10
    block_limit = 64
    cache = 1 << 12
    policy = 2  # order of threads and blocks: 0 ascending, 1 descending, from 2 on random
    mode = os.environ.get("FASTGRAD_EMULATION", "check")

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}

    def here(self) -> Any:
        return contextlib.nullcontext()

    def matmul(
        self, a: ndarray, b: ndarray, out: ndarray, transpose_a: bool, transpose_b: bool, accumulate: bool
    ) -> None:
        product = (a._host.T if transpose_a else a._host) @ (b._host.T if transpose_b else b._host)
        out._host[...] = out._host + product if accumulate else product

    def function(self, text: str, name: str, large: bool) -> Any:
        from devtools.cuda_on_cpu import CpuModule

        module = self._modules.get(text)
        if module is None:
            names = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)', text)
            module = self._modules[text] = CpuModule(text, names, mode=self.mode)
        kernel = module.get_function(name)
        if large:
            kernel.max_dynamic_shared_size_bytes = self.shared_memory - kernel.shared_size_bytes

        def launch(grid: Any, block: Any, args: Any, shared: int, touches: Any, cooperative: bool) -> None:
            hosts = tuple(a._host if isinstance(a, ndarray) else None if a is cuda.NULL else a for a in args)
            reached = [a._host for a in touches]
            kernel(
                grid, block, hosts, shared_mem=shared, policy=self.policy, touches=reached,
                **({"cooperative": True} if cooperative else {}),
            )  # fmt: skip

        return launch


DEVICE = EmulatedDevice()


def register() -> None:
    """Let the library take these arrays for device arrays."""
    _arrays._device_modules[ndarray] = Module
    cuda.registered[ndarray] = DEVICE
