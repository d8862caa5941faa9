"""global_norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastgrad.kernels import norm_cpu, norm_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import global_norm

ORDERS = [1, 2, math.inf]
LISTS = {
    "none": [],
    "empty": [(0,), (3, 0)],
    "scalar": [()],
    "one": [(7,)],
    "mixed": [(13, 17), (), (0,), (1,), (65537,), (2, 3, 5), (4097,)],
    "many": [(k % 11,) for k in range(200)],
    "large": [(300_007,)],
}


def draw(shapes, dtype):
    return [random(k, shape, dtype) for k, shape in enumerate(shapes)]


@pytest.mark.parametrize("shapes", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("order", ORDERS)
def test_against_numpy_in_float64(backend, dtype, shapes, order):
    grads = draw(shapes, dtype)
    norm = global_norm(grads, ord=order)
    assert isinstance(norm, np.ndarray) and norm.shape == () and norm.dtype == np.float64
    flat = np.concatenate([np.zeros(1), *(g.astype(np.float64).ravel() for g in grads)])
    assert_close(norm, np.linalg.norm(flat, order), "norm")
    assert_close(norm, oracle(global_norm, grads, ord=order), "norm")


@pytest.mark.parametrize("order", ORDERS)
def test_against_torch(backend, order):
    torch = pytest.importorskip("torch")
    grads = draw(LISTS["mixed"], np.float64)
    expected = torch.nn.utils.get_total_norm([torch.tensor(g) for g in grads if g.size], order)
    assert_close(global_norm(grads, ord=order), expected.numpy(), "torch")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 5, 4097])
def test_no_float_overflows_or_underflows(backend, dtype, order, size):
    info = np.finfo(dtype)
    for value in (info.max / 4, info.tiny, info.smallest_subnormal, float(info.tiny) * 3.5):
        grad = np.full(size, value, dtype)
        exact = {1: size, 2: math.sqrt(size), math.inf: 1}[order] * float(grad[0])
        if backend == "gpu" and dtype is np.float32 and value < info.tiny:
            exact = 0.0  # -ftz takes them for 0
        norm = global_norm(grad, ord=order)
        if dtype is np.float64 and exact == math.inf:
            assert norm == math.inf
        else:
            # A subnormal sum of float64 numbers is a multiple of the smallest one.
            assert abs(norm - exact) <= 1e-12 * exact + (math.ulp(0.0) * 2 if exact < 1e-300 else 0)
    mixed = [np.full(3, info.tiny, dtype), np.full(3, 1.0, dtype), np.full(3, info.max / 8, dtype)]
    assert_close(global_norm(mixed, ord=2), math.sqrt(3) * float(mixed[2][0]), "norm")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", [0, 5, 4096, 9000])
def test_nan_and_inf(backend, dtype, order, place):
    grads = [random(1, 9001, dtype), random(2, 33, dtype)]
    grads[0][place] = -np.inf
    assert global_norm(grads, ord=order) == np.inf
    grads[1][7] = np.nan
    assert np.isnan(global_norm(grads, ord=order))
    grads[0][place] = 1.0
    assert np.isnan(global_norm(grads, ord=order))
    grads[1][:] = np.nan
    assert np.isnan(global_norm(grads[1], ord=order))


def test_layouts(backend, dtype):
    grad = random(3, (13, 17), dtype)
    expected = global_norm(grad)
    for name, view in layouts(grad).items():
        assert_close(global_norm([view, np.zeros(3, dtype)]), expected, "norm", label=name)
    assert global_norm(read_only(grad)) == expected
    assert_close(global_norm((grad, grad)), expected * math.sqrt(2), "norm")


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, order):
    grads = draw(LISTS["mixed"] + LISTS["many"] + LISTS["large"], dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(float(global_norm(grads, ord=order)).hex())
    assert len(seen) == 1


def test_errors():
    grad = random(4, 5, np.float32)

    def error(exception, match, *args, **kwargs):
        with pytest.raises(exception, match=match):
            global_norm(*args, **kwargs)

    error(ValueError, "ord: expected 1, 2 or inf, got 3", grad, ord=3)
    error(ValueError, "ord: expected a number, got nan", grad, ord=math.nan)
    error(TypeError, "ord: expected a number, got str", grad, ord="fro")
    error(TypeError, r"grads\[1\]: expected a numpy.ndarray or cupy.ndarray, got None", [grad, None])
    error(TypeError, r"grads\[1\] is float64 but grads\[0\] is float32", [grad, grad.astype(np.float64)])
    error(TypeError, r"grads\[0\]: expected float32 or float64, got int64", [np.arange(3)])
    error(TypeError, "grads: expected an array or a list of arrays, got dict", {"a": grad})
    error(TypeError, "grads: expected an array or a list of arrays, got generator", (g for g in [grad]))


def test_planted_faults_are_caught(monkeypatch):
    grads = draw(LISTS["mixed"], np.float64)
    expected = {order: oracle(global_norm, grads, ord=order) for order in ORDERS}
    original = norm_ref.tensor_norms
    # The last tensor forgotten; norms of tensors added up instead of combined.
    for wrong in (lambda a, ord: original(a[:-1], ord), lambda a, ord: np.array([original(a, ord).sum()])):
        monkeypatch.setattr(norm_ref, "tensor_norms", wrong)
        with pytest.raises(AssertionError):
            assert_close(oracle(global_norm, grads, ord=2), expected[2], "norm")


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e200, np.nan, np.inf])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_clipped_step_in_one_call_has_the_bits_of_norm_and_step(size, maximize, dtype, monkeypatch):
    if np.dtype(dtype) == np.float32 and 0 < size < np.inf and size != 1.0:
        pytest.skip("no float32 is so large or small")
    shapes = ((3, 5), (), (0,), (20_000,))

    def step() -> list[np.ndarray]:
        made = np.random.default_rng(0)
        params, grads, mean, square = (
            [np.asarray(made.standard_normal(shape), dtype) for shape in shapes] for _ in range(4)
        )
        grads = [np.asarray(g * size, dtype) for g in grads]
        square = [np.asarray(np.abs(s)) for s in square]
        options = {"step": 2, "max_norm": 0.5, "grad_scale": 3.0, "maximize": maximize}
        norm = fastgrad.adam_step(params, grads, mean, square, **options)
        return [norm, *params, *mean, *square]

    one = step()
    monkeypatch.setattr(norm_cpu, "_clip_in_one", lambda *arguments: norm_cpu.UNSAFE)
    for a, b in zip(one, step(), strict=True):
        assert a.tobytes() == b.tobytes()
