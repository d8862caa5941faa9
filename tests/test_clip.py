"""clip_by_global_norm, clip_by_norm, clip_by_value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastgrad.kernels import clip_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm

SHAPES = [(13, 17), (), (0,), (1,), (65537,), (2, 3, 5), (4097,)]
ORDERS = [1, 2, math.inf]


def draw(dtype, shapes=SHAPES):
    return [random(k, shape, dtype) for k, shape in enumerate(shapes)]


def copies(arrays):
    return [a.copy() for a in arrays]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("max_norm", [0.0, 0.01, 1.0, 30.0])
def test_global_norm_against_float64(backend, dtype, order, max_norm):
    before = draw(dtype)
    grads, expected = copies(before), [g.astype(np.float64) for g in before]
    norm = clip_by_global_norm(grads, max_norm, ord=order)
    assert norm.shape == () and norm.dtype == np.float64
    assert_close(norm, oracle(clip_by_global_norm, expected, max_norm, ord=order), "norm")
    coefficient = min(1.0, max_norm / (float(norm) + 1e-6))
    for grad, start in zip(grads, before, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, start.astype(np.float64) * coefficient, "pointwise")


@pytest.mark.parametrize("order", ORDERS)
def test_global_norm_against_torch(backend, order):
    torch = pytest.importorskip("torch")
    grads = draw(np.float64)
    parameters = [torch.zeros(g.shape, dtype=torch.float64) for g in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.tensor(grad)
    filled = [p for p in parameters if p.numel()]
    expected = torch.nn.utils.clip_grad_norm_(filled, 3.0, norm_type=order)
    assert_close(clip_by_global_norm(grads, 3.0, ord=order), expected.numpy(), "torch")
    for grad, parameter in zip(grads, parameters, strict=True):
        assert_close(grad, parameter.grad.numpy(), "torch")


def test_below_the_limit_every_bit_stays(backend, dtype):
    grads = draw(dtype)
    before = copies(grads)
    norm = float(global_norm(grads))
    clip_by_global_norm(grads, norm * 1.01)
    clip_by_global_norm(grads, math.inf)
    clip_by_norm(grads, 1e9)
    clip_by_value(grads, -math.inf, math.inf)
    for grad, start in zip(grads, before, strict=True):
        np.testing.assert_array_equal(grad, start)


def test_by_norm_treats_each_array_alone(backend, dtype):
    before = draw(dtype)
    arrays = copies(before)
    norms = clip_by_norm(arrays, 2.0)
    assert norms.shape == (len(arrays),) and norms.dtype == np.float64
    for array, start, norm in zip(arrays, before, norms, strict=True):
        wide = start.astype(np.float64)
        assert_close(norm, np.linalg.norm(wide.ravel()), "norm")
        assert_close(array, wide * min(1.0, 2.0 / (norm + 1e-6)), "pointwise")
    untouched = [k for k, norm in enumerate(norms) if norm < 2.0]
    assert untouched and len(untouched) < len(arrays)
    for k in untouched:
        np.testing.assert_array_equal(arrays[k], before[k])


def test_by_value_against_torch_and_numpy(backend, dtype):
    before = draw(dtype)
    arrays = copies(before)
    assert clip_by_value(arrays, -0.3, 0.7) is None
    for array, start in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, np.clip(start, dtype(-0.3), dtype(0.7)))


def test_nan_and_inf(backend, dtype):
    grads = [np.array([1.0, np.nan, -3.0], dtype), np.array([2.0], dtype)]
    assert np.isnan(clip_by_global_norm(grads, 1.0))
    assert all(np.isnan(g).all() for g in grads)
    grads = [np.array([1.0, -np.inf, -3.0], dtype), np.array([2.0], dtype)]
    assert clip_by_global_norm(grads, 1.0) == np.inf
    np.testing.assert_array_equal(grads[0], np.array([0, np.nan, 0], dtype))
    np.testing.assert_array_equal(grads[1], np.zeros(1, dtype))
    grads = [np.array([1.0, np.nan, -3.0], dtype), np.array([3.0, 4.0], dtype)]
    norms = clip_by_norm(grads, 1.0)
    assert np.isnan(norms[0]) and np.isnan(grads[0]).all()
    assert_close(grads[1], np.array([3.0, 4.0]) / (5 + 1e-6), "pointwise")
    array = np.array([np.nan, -np.inf, np.inf, 0.5], dtype)
    clip_by_value(array, -2.0, 3.0)
    np.testing.assert_array_equal(array, np.array([np.nan, -2, 3, 0.5], dtype))


@pytest.mark.parametrize("order", ORDERS)
def test_error_if_nonfinite_leaves_the_gradients_alone(backend, dtype, order):
    for bad in (np.nan, np.inf):
        grads = [np.array([1.0, 2.0], dtype), np.array([[3.0, bad]], dtype)]
        before = copies(grads)
        with pytest.raises(
            RuntimeError, match=r"grads: the norm of order .* is (nan|inf), first in grads\[1\] \(1, 2\)"
        ):
            clip_by_global_norm(grads, 1.0, ord=order, error_if_nonfinite=True)
        for grad, start in zip(grads, before, strict=True):
            np.testing.assert_array_equal(grad, start)


def test_layouts_are_changed_in_place(backend, dtype):
    start = random(1, (13, 17), dtype)
    calls = {
        "global": lambda arrays: clip_by_global_norm(arrays, 0.5),
        "norm": lambda arrays: clip_by_norm(arrays, 0.5),
        "value": lambda arrays: clip_by_value(arrays, -0.5, 0.5),
    }
    for call, clip in calls.items():
        plain = start.copy()
        clip(plain)
        for name, view in layouts(start).items():
            clip([view])
            assert_close(view, plain, "norm" if dtype is np.float64 else "pointwise", label=f"{call} {name}")


def test_views_of_one_buffer(backend, dtype):
    flat = random(2, 60, dtype)
    expected = flat.astype(np.float64) / (np.linalg.norm(flat.astype(np.float64)) + 1e-6)
    clip_by_global_norm([flat[:10].reshape(2, 5), flat[10:10], flat[10:60]], 1.0)
    assert_close(flat, expected, "pointwise")
    halves = random(3, 60, dtype)
    expected = np.clip(halves, -0.1, 0.1)
    clip_by_value([halves[::2], halves[1::2]], -0.1, 0.1)
    np.testing.assert_array_equal(halves, expected.astype(dtype))


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            grads = draw(dtype)
            norm = clip_by_global_norm(grads, 1.0)
            seen.add(b"".join([norm.tobytes(), *(g.tobytes() for g in grads)]))
    assert len(seen) == 1


@pytest.mark.parametrize("function", [lambda a: clip_by_global_norm(a, 1.0), lambda a: clip_by_norm(a, 1.0),
                                      lambda a: clip_by_value(a, -1, 1)])  # fmt: skip
def test_errors_of_arrays(function):
    def error(exception, match, arrays):
        with pytest.raises(exception, match=match):
            function(arrays)

    a, b = random(4, 5, np.float32), random(5, 20, np.float32)
    error(ValueError, r"(grads|arrays)\[1\]: the array is read-only, but this call writes it", [a, read_only(b)])
    error(ValueError, r"(grads|arrays)\[0\] and (grads|arrays)\[2\] overlap in memory", [a, b, a])
    error(ValueError, r"(grads|arrays)\[0\] and (grads|arrays)\[1\] overlap in memory", [b[:10], b[9:]])
    error(ValueError, r"(grads|arrays)\[0\] and (grads|arrays)\[1\] overlap in memory", [b[::2], b[::3]])
    error(TypeError, r"(grads|arrays)\[1\] is float64 but (grads|arrays)\[0\] is float32", [a, b.astype(np.float64)])
    error(TypeError, r"(grads|arrays)\[0\]: expected a numpy.ndarray or cupy.ndarray, got list", [[1.0], a])
    error(TypeError, "expected an array or a list of arrays, got float", 1.0)
    spread = np.broadcast_to(np.zeros(1, np.float32), 4)
    spread.flags.writeable = True
    error(ValueError, r"(grads|arrays)\[0\]: several entries share one place", [spread])


def test_errors_of_numbers():
    a = random(6, 5)

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    error(ValueError, "max_norm: expected a number >= 0, got -1.0", clip_by_global_norm, a, -1.0)
    error(ValueError, "max_norm: expected a number >= 0, got nan", clip_by_norm, a, math.nan)
    error(TypeError, "max_norm: expected a number, got NoneType", clip_by_global_norm, a, None)
    error(ValueError, "ord: expected 1, 2 or inf, got 0", clip_by_global_norm, a, 1.0, ord=0)
    error(ValueError, "low: expected at most high = 1.0, got 2.0", clip_by_value, a, 2.0, 1.0)
    error(ValueError, "high: expected a number, got nan", clip_by_value, a, 0.0, math.nan)


def test_nothing_to_clip(backend):
    assert clip_by_global_norm([], 1.0) == 0.0
    assert clip_by_norm([], 1.0).shape == (0,)
    assert clip_by_value([], -1, 1) is None


@pytest.mark.parametrize("fault", ["eps", "skip"])
def test_planted_faults_are_caught(monkeypatch, fault):
    before = draw(np.float64)
    expected, original = copies(before), clip_ref.scale
    oracle_norm = oracle(global_norm, before)
    coefficient = 1.0 / (float(oracle_norm) + 1e-6)

    def wrong(arrays, coefficients):
        # eps forgotten in the denominator; the last array forgotten.
        larger = [c * (1 + 1e-6) for c in coefficients]
        original(*((arrays, larger) if fault == "eps" else (arrays[:-1], coefficients[:-1])))

    monkeypatch.setattr(clip_ref, "scale", wrong)
    with fastgrad.backend("reference"):
        clip_by_global_norm(expected, 1.0)
    with pytest.raises(AssertionError):
        for array, start in zip(expected, before, strict=True):
            assert_close(array, start * coefficient, "pointwise")
