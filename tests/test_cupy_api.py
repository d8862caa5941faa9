"""CuPy has every name that the device path uses, with those parameters; asked of the package, which needs no driver.

The emulated device (emulated.py) answers as CuPy is believed to. What it can't vouch for is asked of CuPy here.
"""

from __future__ import annotations

import inspect
import weakref
from pathlib import Path

import numpy as np
import pytest
from fastgrad.kernels import cuda

import fastgrad

cupy = pytest.importorskip("cupy", exc_type=ImportError)
from cupy.cuda import driver, runtime, stream  # noqa: E402 - after the question whether there is any

ROOT = Path(fastgrad.__file__).parent
DEVICE_FILES = [*cuda.FOLDER.glob("*_gpu.py"), cuda.FOLDER / "cuda.py", cuda.FOLDER / "cublas.py"]


def parameters(function):
    """Return the names of a function's parameters; of one that was compiled, from its docstring."""
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("array", ["dtype", "order"]),
        ("asarray", ["dtype"]),
        ("concatenate", ["axis", "out"]),
        ("empty", ["shape", "dtype"]),
        ("full", ["shape", "fill_value", "dtype"]),
        ("isfinite", None),
        ("matmul", None),
        ("ones", ["shape", "dtype"]),
        ("split", ["axis"]),
        ("stack", ["axis"]),
        ("zeros", ["shape", "dtype"]),
        ("zeros_like", ["dtype", "order"]),
        ("asnumpy", []),
        ("shape", []),
        ("get_default_memory_pool", []),
    ],
)
def test_functions(name, used):
    function = getattr(cupy, name)
    if used is None:
        assert isinstance(function, cupy.ufunc) or callable(function)
        return
    known = parameters(function)
    assert set(used) <= set(known)
    # Positions that the library relies on: a shape or an array, then the dtype.
    if "shape" in used:
        assert known[0] == "shape"


def test_whatever_launchers_take_from_xp_is_tried_here():
    """A new xp.<name> in a launcher must be added to the cases above, and to emulated.Module."""
    import re

    import emulated

    used = set()
    for path in DEVICE_FILES:
        used |= set(re.findall(r"\bxp\.(\w+)", path.read_text()))
    used -= {"cuda", "ndarray", "RawModule"}
    assert used, "the launchers are not found"
    for name in used:
        assert callable(getattr(cupy, name)), name
        assert hasattr(emulated.Module, name), name


@pytest.mark.parametrize(
    "name",
    [
        "T",
        "__float__",
        "__getitem__",
        "__int__",
        "__bool__",
        "__len__",
        "__setitem__",
        "__iadd__",
        "all",
        "any",
        "astype",
        "base",
        "copy",
        "data",
        "dtype",
        "fill",
        "flags",
        "get",
        "item",
        "itemsize",
        "max",
        "min",
        "nbytes",
        "ndim",
        "ravel",
        "reshape",
        "set",
        "shape",
        "size",
        "strides",
        "sum",
        "swapaxes",
        "tolist",
        "transpose",
        "view",
    ],
)
def test_attributes_of_arrays(name):
    assert hasattr(cupy.ndarray, name)


def test_arrays_are_of_one_exact_type_and_take_weak_references():
    # By the exact type a device array is known; optimizers remember arrays by weak references.
    assert cupy.ndarray.__name__ == "ndarray" and cupy.ndarray.__module__ == "cupy"
    assert cupy.ndarray.__weakrefoffset__ != 0
    assert weakref.ref


def test_the_constructor_that_views_are_made_with():
    text = inspect.getdoc(cupy.ndarray)
    assert "shape, dtype=float, memptr=None, strides=None, order='C'" in text


def test_flags():
    from cupy._core.flags import Flags

    flags = Flags(True, False, True)
    assert (flags.c_contiguous, flags.f_contiguous, flags.owndata) == (True, False, True)
    assert not hasattr(flags, "aligned") and not hasattr(flags, "writeable")  # so that nobody may ask


def test_streams_events_and_graphs():
    for name in ("is_capturing", "begin_capture", "end_capture", "synchronize", "use"):
        assert callable(getattr(stream.Stream, name))
    assert stream.Stream.null.ptr == 0
    assert callable(cupy.cuda.get_current_stream) and callable(cupy.cuda.get_elapsed_time)
    for name in ("record", "synchronize"):
        assert callable(getattr(cupy.cuda.Event, name))
    for name in ("launch", "upload"):
        assert callable(getattr(cupy.cuda.Graph, name))
    with pytest.raises(RuntimeError, match="default"):
        stream.Stream.null.begin_capture()


def test_events_and_ranges():
    """As `StreamTools` of kernels/cuda.py uses them; an event itself needs a driver."""
    from cupy.cuda import nvtx

    assert "Event.__init__(self, block=False, disable_timing=False" in inspect.getdoc(cupy.cuda.Event.__init__)
    assert "record(self, stream=None)" in inspect.getdoc(cupy.cuda.Event.record)
    assert "get_elapsed_time(start_event, end_event)" in inspect.getdoc(cupy.cuda.get_elapsed_time)
    assert nvtx is cupy.cuda.nvtx and isinstance(nvtx.available, bool)
    nvtx.RangePush("a range")  # does nothing where no profiler listens
    nvtx.RangePop()
    assert callable(runtime.getDevice)


def test_the_compiler_that_doctor_asks():
    for name in ("createProgram", "compileProgram", "getPTX", "destroyProgram", "getVersion"):
        assert callable(getattr(cupy.cuda.nvrtc, name))


def test_devices_and_pointers():
    device = cupy.cuda.Device
    assert hasattr(device, "__enter__") and hasattr(device, "synchronize")
    for name in ("ptr", "device_id", "__add__"):
        assert hasattr(cupy.cuda.MemoryPointer, name)
    for name in ("getDeviceProperties", "getDeviceCount", "runtimeGetVersion", "driverGetVersion", "deviceSynchronize"):
        assert callable(getattr(runtime, name))
    assert issubclass(runtime.CUDARuntimeError, RuntimeError)
    assert callable(cupy.cuda.set_allocator) and callable(cupy.cuda.nvrtc.getVersion)
    assert runtime.runtimeGetVersion() // 1000 in (12, 13)


def test_modules_and_kernels():
    module = cupy.RawModule(code='extern "C" __global__ void f() {}', options=cuda.OPTIONS)  # not compiled here
    assert callable(module.get_function)
    for name in ("kernel", "max_dynamic_shared_size_bytes", "shared_size_bytes"):
        assert hasattr(cupy.RawKernel, name)
    # The call of what RawKernel.kernel returns, with all arguments as cuda.py has them.
    from cupy.cuda.function import Function

    assert "__call__" in dir(Function)
    assert callable(driver.occupancyMaxActiveBlocksPerMultiprocessor)
    assert cupy.cuda.driver is driver


def test_the_options_of_the_compiler_are_a_tuple():
    assert type(cuda.OPTIONS) is tuple
    with pytest.raises(TypeError):
        cupy.RawModule(code="", options=list(cuda.OPTIONS))


def test_scalars_are_passed_as_they_are():
    from cupy._core._scalar import CScalar

    for kind in (*cuda.SCALARS.values(), np.uint64):
        assert CScalar(kind(1)).ptr != 0
    assert cuda.NULL.itemsize == 8


class Recorded:
    """What _CuPyDevice sees of CuPy: modules whose kernels note what is set and launched."""

    class cuda:
        class Device:
            def __init__(self, ordinal):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *args):
                pass

        get_current_stream = staticmethod(lambda: Recorded.cuda)
        is_capturing = staticmethod(lambda: False)

        class driver:
            @staticmethod
            def occupancyMaxActiveBlocksPerMultiprocessor(function, threads, shared):
                return 2 if shared < 100_000 else 1

    def __init__(self):
        self.limits, self.launched = [], []

    def RawModule(self, code, options):
        outer = self

        class Kernel:
            shared_size_bytes = 512

            def __setattr__(self, name, value):
                assert name == "max_dynamic_shared_size_bytes"
                outer.limits.append(value)

            class kernel:
                ptr = 1

                def __new__(cls, grid, block, args, *, shared_mem, enable_cooperative_groups):
                    outer.launched.append((grid, block, shared_mem, enable_cooperative_groups))

        class Module:
            @staticmethod
            def get_function(name):
                return Kernel()

        return Module()


@pytest.fixture
def recorded():
    """A device of CuPy's class without CuPy: 4 multiprocessors."""
    device = object.__new__(cuda._CuPyDevice)
    device.xp, device.ordinal, device.multiprocessors, device.shared_memory = Recorded(), 0, 4, 227 << 10
    device._modules, device._lock = {}, cuda.threading.Lock()
    return device


def test_a_kernel_may_have_all_shared_memory_in_whatever_order_it_is_launched(recorded):
    kernel = cuda.Kernel("loss", "fg_loss_mean", "n: i64")
    cuda.declared.remove(kernel)
    for shared in (0, 47 << 10, 200 << 10, 60 << 10, 200 << 10):
        kernel(recorded, np.dtype(np.float32), 1, 32, 1, shared=shared)
    assert set(recorded.xp.limits) == {(227 << 10) - 512}
    assert [launch[2] for launch in recorded.xp.launched] == [0, 47 << 10, 200 << 10, 60 << 10, 200 << 10]
    assert cuda.SHARED_UNASKED + 512 < 48 << 10


def test_a_cooperative_launch_that_does_not_fit_is_refused(recorded):
    """CuPy would launch as many blocks as fit, which wait for the others for ever."""
    launch = recorded.function("text", "f", True)
    launch((8,), (32,), (), 50_000, (), True)
    with pytest.raises(RuntimeError, match=r"f: 8 blocks of 32 threads .* room for 4"):
        launch((8,), (32,), (), 150_000, (), True)
    launch((8,), (32,), (), 150_000, (), False)
    assert len(recorded.xp.launched) == 2
