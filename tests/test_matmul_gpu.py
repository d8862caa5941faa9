"""Matrix products on a device, and what the binding asks of cuBLAS."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import emulated
import numpy as np
import pytest
from fastgrad.kernels import cublas
from fastgrad.kernels.matmul_gpu import matmul
from support import random
from tolerances import assert_close

emulated.register()


class RecordedCublas:
    """A cuBLAS that carries the products out as its manual says: column by column, with leading dimensions."""

    def __init__(self):
        self.calls = []
        self.fail = None
        self.handles = 0
        for name in cublas._SIGNATURES:
            setattr(self, name, self._function(name))

    def _function(self, name):
        def call(*args):
            kinds = cublas._SIGNATURES[name]
            assert len(args) == len(kinds)
            for kind, argument in zip(kinds, args, strict=True):
                kind.from_param(argument)  # as ctypes does with argtypes
            self.calls.append((name, args))
            if self.fail == name:
                return 13
            return getattr(self, f"_{name}", lambda *_: 0)(*args)

        return call

    def _cublasCreate_v2(self, handle):
        self.handles += 1
        handle._obj.value = self.handles
        return 0

    def _gemm(self, kind, handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        def columns(address, rows, count, leading):
            assert leading >= max(1, rows)
            flat = np.ctypeslib.as_array((kind * (leading * (count - 1) + rows)).from_address(address))
            return np.lib.stride_tricks.as_strided(flat, (rows, count), (flat.itemsize, leading * flat.itemsize))

        left = columns(a, k, m, lda).T if op_a else columns(a, m, k, lda)
        right = columns(b, n, k, ldb).T if op_b else columns(b, k, n, ldb)
        out = columns(c, m, n, ldc)
        before = beta._obj.value * out if beta._obj.value else 0
        out[...] = alpha._obj.value * (left @ right) + before
        return 0

    def _cublasSgemm_v2_64(self, *args):
        return self._gemm(ctypes.c_float, *args)

    def _cublasDgemm_v2_64(self, *args):
        return self._gemm(ctypes.c_double, *args)


@pytest.fixture(params=["cublas", "emulated"])
def product(request, monkeypatch):
    """matmul through the binding to a recorded cuBLAS, and as the emulated device makes it."""
    if request.param == "cublas":
        binding = cublas.Cublas(RecordedCublas(), lambda size: emulated.Module.empty(size, np.uint8))
        monkeypatch.setattr(emulated.EmulatedDevice, "matmul", lambda self, *args: binding.matmul(7, *args))
    return matmul


def device(array):
    return emulated.ndarray(array)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 3, 5), (7, 1, 4), (1, 6, 3), (5, 4, 1), (0, 3, 2), (3, 0, 2), (3, 2, 0)]
)
def test_every_form(product, dtype, sizes, transpose_a, transpose_b, accumulate):
    m, n, k = sizes
    a, b, out = (random(i, shape, dtype) for i, shape in enumerate([(m, k), (k, n), (m, n)]))
    expected = a @ b + (out if accumulate else 0)
    if not accumulate:
        out[...] = np.nan
    a, b = (np.ascontiguousarray(x.T) if t else x for x, t in ((a, transpose_a), (b, transpose_b)))
    product(device(a), device(b), device(out), transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate)
    assert_close(out, expected, "product", magnitude="largest")


@pytest.mark.parametrize("transpose", [False, True])
def test_rows_that_lie_apart(product, dtype, transpose):
    a, b, out = random(1, (5, 9), dtype), random(2, (4, 8), dtype), random(3, (5, 12), dtype)
    before = out.copy()
    right = b[:, 3:7]
    product(device(a[:, 2:6]), device(right), device(out[:, 5:9]), transpose_b=transpose)
    assert_close(out[:, 5:9], a[:, 2:6] @ (right.T if transpose else right), "product", magnitude="largest")
    for columns in (slice(0, 5), slice(9, None)):
        np.testing.assert_array_equal(out[:, columns], before[:, columns])


def test_what_does_not_fit():
    x = device(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match=r"shapes do not fit: \(4, 6\) by \(4, 6\) into \(4, 6\)"):
        matmul(x, x, x)
    with pytest.raises(TypeError, match="b: expected float32, got float64"):
        matmul(x, device(np.zeros((6, 2))), device(np.zeros((4, 2), np.float32)))
    with pytest.raises(ValueError, match=r"a: the rows of \(3, 4\) .* are not contiguous"):
        matmul(x[:, ::2].T, device(np.zeros((4, 2), np.float32)), device(np.zeros((3, 2), np.float32)))


def test_the_order_of_calls():
    library = RecordedCublas()
    spaces = []
    binding = cublas.Cublas(library, lambda size: spaces.append(emulated.Module.empty(size, np.uint8)) or spaces[-1])
    x = device(np.ones((2, 2), np.float32))
    for stream in (5, 6, 5):
        binding.matmul(stream, x, x, device(np.ones((2, 2), np.float32)), False, False, False)
    names = [name for name, _ in library.calls]
    one = ["cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSgemm_v2_64"]
    assert names == ["cublasCreate_v2", "cublasSetMathMode", *one * 3]
    assert library.calls[1][1][1] == cublas.DEFAULT_MATH
    assert [args[1] for name, args in library.calls if name == "cublasSetStream_v2"] == [5, 6, 5]
    given = [args[1] for name, args in library.calls if name == "cublasSetWorkspace_v2"]
    assert given == [spaces[0].data.ptr, spaces[1].data.ptr, spaces[0].data.ptr] and len(set(given)) == 2


def test_every_capture_has_a_workspace_of_its_own():
    """Graphs of one stream may be replayed side by side, and so may branches of one graph."""
    library = RecordedCublas()
    binding = cublas.Cublas(library, lambda size: emulated.Module.empty(size, np.uint8))
    x = device(np.ones((2, 2), np.float32))
    made = [(5, 0), (5, 31), (5, 31), (5, 32), (6, 32), (5, 0), (6, 0)]
    for stream, capture in made:
        binding.matmul(stream, x, x, device(np.ones((2, 2), np.float32)), False, False, False, capture)
    given = [args[1] for name, args in library.calls if name == "cublasSetWorkspace_v2"]
    assert [given.index(address) for address in given] == [0, 1, 1, 3, 4, 0, 6]


class RecordedDriver:
    """cuStreamGetCaptureInfo_v2 as cuda.h has it: a status of 1 while it captures, and a number."""

    def __init__(self, code, captures):
        self.code, self.captures = code, captures

    def cuStreamGetCaptureInfo_v2(self, stream, status, number, graph, dependencies, count):
        assert graph is dependencies is count is None
        ctypes.c_int.from_address(status).value = stream in self.captures
        ctypes.c_uint64.from_address(number).value = self.captures.get(stream, 77)  # not set without a capture
        return self.code


def test_which_capture_it_is(monkeypatch):
    monkeypatch.setattr(cublas, "_driver", lambda: RecordedDriver(0, {5: 1 << 40}))
    assert (cublas.capture_number(5), cublas.capture_number(6)) == (1 << 40, 0)
    monkeypatch.setattr(cublas, "_driver", lambda: RecordedDriver(906, {}))
    with pytest.raises(RuntimeError, match="cuStreamGetCaptureInfo: CUDA error 906"):
        cublas.capture_number(5)


def test_the_product_of_a_device_says_which_capture_it_belongs_to(monkeypatch):
    """The class that stands behind CuPy's arrays, with streams that the emulation has."""
    from fastgrad.kernels import cuda

    made = []
    one = object.__new__(cuda._CuPyDevice)
    one.xp = emulated.Module
    one._cublas = SimpleNamespace(matmul=lambda stream, *args: made.append((stream, args[-1])))
    monkeypatch.setattr(cublas, "capture_number", lambda stream: 40 + stream)
    x = device(np.ones((2, 2), np.float32))
    with emulated.Stream() as stream:
        one.matmul(x, x, x, False, False, False)
        stream.begin_capture()
        one.matmul(x, x, x, False, False, False)
        stream.end_capture()
    assert made == [(stream.ptr, 0), (stream.ptr, 40 + stream.ptr)]


@pytest.mark.parametrize("name", list(cublas._SIGNATURES))
def test_a_refusal_is_an_error(name):
    library = RecordedCublas()
    library.fail = name
    binding = cublas.Cublas(library, lambda size: emulated.Module.empty(size, np.uint8))
    x = device(np.ones((2, 2), np.float64 if "Dgemm" in name else np.float32))
    with pytest.raises(cublas.CublasError, match=rf"{name}: execution failed \(status 13\)"):
        binding.matmul(0, x, x, x, False, False, False)


def test_each_thread_has_a_handle():
    import threading

    library = RecordedCublas()
    binding = cublas.Cublas(library, lambda size: emulated.Module.empty(size, np.uint8))
    x = device(np.ones((2, 2), np.float32))

    def work():
        binding.matmul(1, x, x, device(np.ones((2, 2), np.float32)), False, False, False)

    for thread in [threading.Thread(target=work) for _ in range(2)]:
        thread.start()
        thread.join()
    handles = [args[0].value for name, args in library.calls if "gemm" in name]
    assert handles == [1, 2]


def test_no_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(cublas, "_wheels", lambda major: [])

    def dll(path):
        raise OSError("no such file")

    monkeypatch.setattr(cublas, "ctypes", SimpleNamespace(CDLL=dll))
    with pytest.raises(RuntimeError, match=r'cuBLAS of CUDA 98 was not found .* pip install "fastgrad\[cuda98\]"'):
        cublas.load(98)


def test_the_first_library_that_loads(monkeypatch, tmp_path):
    wheel = tmp_path / "libcublas.so.13"
    wheel.touch()
    monkeypatch.setattr(cublas, "_wheels", lambda major: [tmp_path / "not there", wheel])
    opened = []

    def dll(path):
        opened.append(path)
        if len(opened) == 1:
            raise OSError("no such file")
        return SimpleNamespace(**{name: SimpleNamespace() for name in cublas._SIGNATURES})

    monkeypatch.setattr(cublas, "ctypes", SimpleNamespace(CDLL=dll))
    library = cublas.load.__wrapped__(13)
    assert opened[1:] == [str(wheel)] and library.cublasSgemm_v2_64.restype is ctypes.c_int
