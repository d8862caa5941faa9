"""A stand-in for CuPy without a GPU: arrays of a type of their own, on which the CUDA sources run on the CPU.

`ndarray` answers to what the library asks of a cupy.ndarray and refuses what CuPy refuses: to become a NumPy array
unasked, or to be mixed with one. Every kernel is checked while it runs, see devtools/cuda_on_cpu. What fills new arrays
is NaN, so that an entry which no kernel writes is seen.

A stream that is being captured does nothing but write down what it is given, as on a GPU, and the graph knows addresses
alone: it owns no array. Where one that it reads or writes is no more when it is launched, the memory may be anybody's
by then, and the launch fails. What needs the host to wait, or to be there again in each replay, fails in a capture.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import re
import time
import weakref
from collections.abc import Callable
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
        _wait("a copy to the host")
        return self._host.copy()

    def set(self, values: np.ndarray) -> None:
        _wait("a copy from the host")
        self._host[...] = values

    def item(self) -> Any:
        _wait("item()")
        return self._host.item()

    def tolist(self) -> Any:
        _wait("tolist()")
        return self._host.tolist()

    def __getitem__(self, key: Any) -> ndarray:
        return _computed("getitem", operator.getitem, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _placed(self._host)
        if isinstance(value, ndarray):
            _placed(value._host)
        _written("setitem", lambda host, value: operator.setitem(host, _bare(key), value), self, value)

    def __len__(self) -> int:
        return len(self._host)

    def __float__(self) -> float:
        _wait("float()")
        return float(self._host)

    def __int__(self) -> int:
        _wait("int()")
        return int(self._host)

    def __bool__(self) -> bool:
        _wait("bool()")
        return bool(self._host)

    def __repr__(self) -> str:
        return f"emulated.{self._host!r}"


def _wait(what: str) -> None:
    if current().capturing:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while the stream is being captured")


class _Ref:
    """Where a graph finds an array: an address that was good while the array was there."""

    def __init__(self, host: np.ndarray) -> None:
        self.pointer, self.shape, self.strides = host.__array_interface__["data"][0], host.shape, host.strides
        self.dtype = host.dtype
        root: Any = host
        while True:
            above = root.memory.owner if isinstance(root, _At) else root.base
            if not isinstance(above, (np.ndarray, _At)):
                break
            root = above
        self.root = weakref.ref(root)

    def array(self, what: str) -> np.ndarray:
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        root = self.root()
        if root is None:
            raise RuntimeError(f"{what}: a graph uses an array of {self.shape} that was freed after the capture")
        memory = _Memory(self.pointer, root)
        # One more axis, as NumPy copies where there is none.
        strides = (*self.strides, self.dtype.itemsize)
        return np.asarray(_At(memory, shape=(*self.shape, 1), typestr=self.dtype.str, strides=strides))[..., 0]


def _run(what: str, function: Callable[..., Any], *values: Any) -> None:
    """Do something to arrays: now, or in each replay of the graph that is being captured."""
    if not current().capturing:
        function(*_bare(values))
        return
    current().nodes.append((what, function, _noted(_bare(values))))


def _noted(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_noted, value))
    return _Ref(value) if isinstance(value, np.ndarray) else value


def _found(what: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_found(what, part) for part in value)
    return value.array(what) if isinstance(value, _Ref) else value


def _computed(what: str, function: Callable[..., Any], *values: Any) -> ndarray:
    """Return a view, or a new array that holds a result."""
    with np.errstate(all="ignore"):  # a capture computes with what is not there yet
        host = np.asarray(function(*map(_bare, values)))
    operands = [v._host for v in values if isinstance(v, ndarray)]
    if current().capturing and not any(np.may_share_memory(host, operand) for operand in operands):
        host = np.array(host)
        _run(what, lambda out, *given: operator.setitem(out, ..., function(*given)), ndarray(host), *values)
        _spoil(host)
    return ndarray(host)


def _written(what: str, function: Callable[..., Any], out: ndarray, *values: Any) -> ndarray:
    _run(what, function, out, *values)
    return out


def _spoil(host: np.ndarray) -> None:
    """Fill an array that lies in one piece with NaN, or what its dtype makes of those bits."""
    pointer = host.__array_interface__["data"][0]
    np.asarray(_At(_Memory(pointer, host), shape=(host.nbytes,), typestr="|u1"))[...] = 0xFF


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> ndarray:
        return _computed(name, lambda host, *more: getattr(host, name)(*more, **kwargs), self, *args)

    return method


def _operator(function: Any, swapped: bool = False) -> Any:
    def method(self: ndarray, other: Any) -> ndarray:
        if not isinstance(other, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        return _computed(function.__name__, function, *((other, self) if swapped else (self, other)))

    return method


def _in_place(function: Any) -> Any:
    def method(self: ndarray, other: Any) -> ndarray:
        name = function.__name__
        return _written(name, lambda host, value: operator.setitem(host, ..., function(host, value)), self, other)

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
ndarray.__neg__ = lambda self: _computed("neg", operator.neg, self)  # type: ignore[attr-defined]
ndarray.fill = lambda self, value: self.__setitem__(..., value)  # type: ignore[attr-defined]


class Graph:
    """What a capture has written down."""

    def __init__(self, nodes: list[tuple[str, Callable[..., Any], Any]]) -> None:
        self._nodes = nodes

    def launch(self, stream: Any = None) -> None:
        for what, function, values in self._nodes:
            function(*_found(what, values))

    @property
    def names(self) -> list[str]:
        return [what for what, _, _ in self._nodes]

    def check(self) -> None:
        """Raise RuntimeError where a launch would; arrays in cycles of references are there until gc.collect()."""
        for what, _, values in self._nodes:
            _found(what, values)


class Stream:
    """A stream, on which everything is done at once unless it is being captured."""

    null: Stream
    _pointers = itertools.count()

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = next(self._pointers)
        self.capturing = 0  # which capture, counted from 1
        self.nodes: list[tuple[str, Callable[..., Any], Any]] = []
        self.recorded: list[Event] = []

    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        _streams.pop()

    def is_capturing(self) -> bool:
        return bool(self.capturing)

    def begin_capture(self, mode: int | None = None) -> None:
        if self is Stream.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.capturing:
            raise RuntimeError("cudaErrorIllegalState: the stream is being captured already")
        self.capturing = next(_captures)

    def end_capture(self) -> Graph:
        if not self.capturing:
            raise RuntimeError("cudaErrorIllegalState: the stream is not being captured")
        graph = Graph(self.nodes)
        self.capturing, self.nodes = 0, []
        return graph

    def synchronize(self) -> None:
        _wait("synchronize()")
        for event in self.recorded:
            event.done = True
        self.recorded.clear()


_captures = itertools.count(1)
STREAM = Stream.null = Stream(null=True)
_streams = [STREAM]  # the current one last


def current() -> Stream:
    return _streams[-1]


class Event:
    """An event that is done once somebody has waited for it, or for what came after it."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time: float | None = None
        self.stream = STREAM
        self.done = True  # one that was never recorded has nothing to wait for

    def record(self, stream: Stream | None = None) -> None:
        self.time, self.done, self.stream = time.perf_counter(), False, stream or current()
        self.stream.recorded.append(self)

    def synchronize(self) -> None:
        recorded = self.stream.recorded
        if self in recorded:
            last = recorded.index(self) + 1
            for event in recorded[:last]:
                event.done = True
            del recorded[:last]


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
    Stream = Stream
    Graph = Graph
    runtime = _Runtime
    get_elapsed_time = staticmethod(get_elapsed_time)
    nvtx = _Nvtx

    @staticmethod
    def get_current_stream() -> Stream:
        return current()


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
        _spoil(host)
        return ndarray(host)

    @classmethod
    def empty_like(cls, array: ndarray, dtype: Any = None) -> ndarray:
        return cls.empty(array.shape, dtype or array.dtype)

    @classmethod
    def zeros(cls, shape: Any, dtype: Any = float) -> ndarray:
        return cls.full(shape, 0, dtype)

    @classmethod
    def zeros_like(cls, array: ndarray, dtype: Any = None, order: str = "C") -> ndarray:
        return cls.zeros(array.shape, dtype or array.dtype)

    @classmethod
    def ones(cls, shape: Any, dtype: Any = float) -> ndarray:
        return cls.full(shape, 1, dtype)

    @staticmethod
    def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
        bare = _bare(value)
        return _computed("full", lambda: np.full(shape, bare, dtype))

    @staticmethod
    def array(values: Any, dtype: Any = None, order: str = "C") -> ndarray:
        if not isinstance(values, ndarray):
            _wait("an array of the host's numbers")
            return ndarray(np.array(values, dtype=dtype, order=order))
        _placed(values._host)
        return _computed("array", lambda host: np.array(host, dtype=dtype, order=order), values)

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
            return _computed("matmul", np.matmul, a, b)
        return _written("matmul", lambda host, a, b: np.matmul(a, b, out=host), out, a, b)

    @staticmethod
    def concatenate(arrays: Any, axis: int = 0, out: ndarray | None = None) -> ndarray:
        if out is None:
            return _computed("concatenate", lambda *parts: np.concatenate(parts, axis=axis), *arrays)
        return _written("concatenate", lambda host, *parts: np.concatenate(parts, axis=axis, out=host), out, *arrays)

    @staticmethod
    def stack(arrays: Any, axis: int = 0) -> ndarray:
        return _computed("stack", lambda *parts: np.stack(parts, axis=axis), *arrays)

    @staticmethod
    def isfinite(array: ndarray) -> ndarray:
        return _computed("isfinite", np.isfinite, array)

    @staticmethod
    def split(array: ndarray, sections: int, axis: int = 0) -> list[ndarray]:
        return [ndarray(part) for part in np.split(array._host, sections, axis=axis)]

    @staticmethod
    def ascontiguousarray(array: ndarray) -> ndarray:
        return _computed("ascontiguousarray", np.ascontiguousarray, array)


class EmulatedDevice(cuda.StreamTools):
    """The checker as a device: few and small blocks, so that small arrays already need several."""

    xp = Module
    name = "emulated GPU"
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
        def product(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
            # cuBLAS says nothing of NaN, Inf and overflow either, which tests give it on purpose.
            with np.errstate(invalid="ignore", over="ignore"):
                found = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
            out[...] = out + found if accumulate else found

        _run("matmul", product, out, a, b)

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
            def run(hosts: Any, reached: Any) -> None:
                kernel(
                    grid, block, hosts, shared_mem=shared, policy=self.policy, touches=reached,
                    **({"cooperative": True} if cooperative else {}),
                )  # fmt: skip

            _run(name, run, tuple(None if a is cuda.NULL else a for a in args), list(touches))

        return launch


DEVICE = EmulatedDevice()


def register() -> None:
    """Let the library take these arrays for device arrays."""
    _arrays._device_modules[ndarray] = Module
    cuda.registered[ndarray] = DEVICE
