"""The checks of arguments and the choice of kernels, apart from any one op."""

from __future__ import annotations

import sys
import threading
import timeit
import types

import emulated
import numpy as np
import pytest
from fastgrad.kernels import activation_ref
from support import random

import fastgrad
from fastgrad import _arrays, _checks, _dispatch, _tensor_lists


def test_backends_are_chosen_inside_out():
    assert _dispatch.kernels("activation", np.zeros(1)).__name__ == "fastgrad.kernels.activation_cpu"
    with fastgrad.backend("reference"):
        assert _dispatch.kernels("activation", np.zeros(1)) is activation_ref
        with fastgrad.backend("cpu"):
            assert fastgrad.get_backend() == "cpu"
        with fastgrad.backend(None):
            assert _dispatch.kernels("activation").__name__ == "fastgrad.kernels.activation_cpu"
        assert fastgrad.get_backend() == "reference"
    assert fastgrad.get_backend() is None


def test_a_backend_block_ends_with_an_error():
    with pytest.raises(KeyError), fastgrad.backend("reference"):
        raise KeyError
    assert fastgrad.get_backend() is None


def test_set_backend_reaches_other_threads_and_a_block_does_not():
    def in_a_thread():
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fastgrad.get_backend()))
        thread.start()
        thread.join()
        return seen[0]

    try:
        fastgrad.set_backend("reference")
        assert in_a_thread() == fastgrad.get_backend() == "reference"
        with fastgrad.backend(None):
            assert fastgrad.get_backend() is None
            assert _dispatch.kernels("activation").__name__ == "fastgrad.kernels.activation_cpu"
    finally:
        fastgrad.set_backend(None)
    with fastgrad.backend("reference"):
        assert in_a_thread() is None


def test_unknown_backends():
    with pytest.raises(ValueError, match="backend: expected one of 'reference', 'cpu' or None, got 'gpu'"):
        fastgrad.set_backend("gpu")
    with pytest.raises(ValueError, match="got 'gpu'"), fastgrad.backend("gpu"):
        pass


def test_a_cupy_array_is_recognised_by_name_only(monkeypatch):
    cupy = types.ModuleType("cupy")
    cupy.ndarray = type("ndarray", (), {"__module__": "cupy"})
    array = cupy.ndarray()
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray or cupy.ndarray, got cupy.ndarray"):
        fastgrad.activation(array, "relu")  # of a module that nobody imported
    assert not _arrays.is_array(array)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(_arrays, "_device_modules", {})
    assert _arrays.is_array(array)
    with pytest.raises(NotImplementedError, match="no_such_op: has no CUDA kernels"):
        _dispatch.kernels("no_such_op", array)


def test_arrays_of_one_call_lie_on_one_device():
    emulated.register()
    x, other = random(1, (3, 4), np.float32), emulated.Module.ones((3, 4), np.float32)
    for call in (
        lambda: fastgrad.activation(other, "relu", out=x),
        lambda: fastgrad.global_norm([other, x]),
    ):
        with pytest.raises(TypeError, match=r"is a NumPy array but .* is a CuPy array; .* pass cupy.asarray\("):
            call()
    with pytest.raises(TypeError, match=r"dy is a CuPy array but x is a NumPy array; .* pass cupy.asnumpy\(dy\)"):
        fastgrad.activation_backward(other, x, "relu")
    with pytest.raises(TypeError, match=r"arrays\[1\] is a CuPy array but arrays\[0\] is a NumPy array"):
        fastgrad.clip_by_norm([x, other], 1.0)


def test_a_whole_call_on_64_elements_takes_microseconds():
    x, out = random(1, (8, 8), np.float32), np.zeros((8, 8), np.float32)
    best = min(timeit.repeat(lambda: fastgrad.activation(x, "gelu", out=out), number=200, repeat=20)) / 200
    assert best < 50e-6


def test_checks_of_200_tensors_take_less_than_two_milliseconds():
    whole = [random(k, 200_000, np.float32) for k in range(4)]
    for lists in (
        [[random(k, 1000, np.float32) for k in range(200)] for _ in range(4)],
        [[flat[k * 1000 : (k + 1) * 1000] for k in range(200)] for flat in whole],
    ):
        best = min(timeit.repeat(lambda: _tensor_lists.TensorGroups("a! b! c! d!", *lists), number=1, repeat=20))  # noqa: B023
        assert best < 2e-3


def test_overlap_is_found_among_many_views():
    flat = random(2, 4000)
    views = [flat[10 * k : 10 * k + 10] for k in range(400)]
    assert fastgrad.clip_by_norm(views, 1.0).shape == (400,)
    views[333] = flat[3329:3339]
    with pytest.raises(ValueError, match=r"arrays\[332\] and arrays\[333\] overlap"):
        fastgrad.clip_by_norm(views, 1.0)
    with pytest.raises(ValueError, match=r"arrays\[0\] and arrays\[1\] overlap"):
        fastgrad.clip_by_norm([flat, flat[::-1][3:7]], 1.0)
    matrix = random(3, (20, 20))
    fastgrad.clip_by_norm([matrix[:, k] for k in range(20)], 1.0)
    assert np.linalg.norm(matrix, axis=0).max() <= 1.0
    with pytest.raises(ValueError, match=r"arrays\[0\] and arrays\[1\] overlap"):
        fastgrad.clip_by_norm([matrix[:, 3], matrix[7]], 1.0)


def test_gradients_that_are_only_read_may_share_memory():
    grad = random(4, 6)
    params, state = [np.zeros(6), np.zeros(6)], [[np.zeros(6), np.zeros(6)] for _ in range(2)]
    fastgrad.adam_step(params, [grad, grad], *state, step=1)
    np.testing.assert_array_equal(params[0], params[1])
    fastgrad.sgd_step([np.zeros(6), np.zeros((2, 3))], [np.broadcast_to(1.0, 6), np.broadcast_to(2.0, (2, 3))], lr=0.1)


@pytest.mark.parametrize(
    ("value", "accepted"), [(1, 1.0), (np.float32(0.5), 0.5), (np.int64(2), 2.0), (np.array(3.0), 3.0)]
)
def test_numbers(value, accepted):
    number = _checks.number("lr", value)
    assert type(number) is float and number == accepted


@pytest.mark.parametrize("value", [True, "1", None, [1.0], np.zeros(2), 1j])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=f"lr: expected a number, got {type(value).__name__}"):
        _checks.number("lr", value)


def test_shapes_in_letters():
    sizes = {"B": 3}
    array = np.zeros((12, 3))
    assert _checks.sized_array("w", array, "4H H", sizes) is array and sizes == {"B": 3, "H": 3}
    with pytest.raises(ValueError, match=r"w: expected shape \(4H, B\) with H = 3, B = 3, got \(12, 4\)"):
        _checks.sized_array("w", np.zeros((12, 4)), "4H B", sizes)
    with pytest.raises(ValueError, match=r"w: expected shape \(4K,\), got \(13,\)"):
        _checks.sized_array("w", np.zeros(13), "4K", sizes)
    assert sizes == {"B": 3, "H": 3}
