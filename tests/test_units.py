"""adaptive_clip and clip_by_norm along rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastgrad.kernels import units_ref
from support import layouts, random
from tolerances import assert_close

import fastgrad
from fastgrad import adaptive_clip, clip_by_norm

SHAPES = [
    (13, 17),
    (),
    (0,),
    (0, 3),
    (3, 0),
    (1,),
    (16411,),
    (2, 3, 5),
    (8, 3, 3, 3),
    (129, 257),
    (3, 16385),
    (1031, 1),
]


def draw(dtype, seed=0, shapes=SHAPES, scale=1.0):
    return [random(seed + k, shape, dtype, scale) for k, shape in enumerate(shapes)]


def copies(arrays):
    return [a.copy() for a in arrays]


def assert_scaled(actual, expected, label=""):
    # Norms and quotient in double: two roundings more than a product.
    assert_close(actual, expected, "norm" if actual.dtype == np.float64 else "pointwise", label=label)


def wide_units(array):
    units = array.shape[0] if array.ndim > 1 else 1
    return array.astype(np.float64).reshape(units, array.size // max(units, 1))


def limited(gradient, parameter, clipping, eps):
    """adaptive_clip of one array, in float64 and without a loop."""
    g, w = wide_units(gradient), wide_units(parameter)
    norms, sizes = (np.sqrt((a * a).sum(axis=1, keepdims=True)) for a in (g, w))
    limit = clipping * np.maximum(sizes, eps)
    return np.where(norms > limit, g * limit / np.where(norms > 0, norms, 1), g).reshape(gradient.shape)


@pytest.mark.parametrize("clipping, eps", [(0.01, 1e-3), (1.0, 1e-3), (0.5, 100.0), (0.0, 0.0)])
def test_adaptive_against_float64(backend, dtype, clipping, eps):
    before, params = draw(dtype), draw(dtype, 100)
    grads, kept = copies(before), copies(params)
    assert adaptive_clip(grads, params, clipping, eps) is None
    for grad, start, param in zip(grads, before, params, strict=True):
        assert_scaled(grad, limited(start, param, clipping, eps), label=str(start.shape))
    for param, same in zip(params, kept, strict=True):
        np.testing.assert_array_equal(param, same)


def test_adaptive_against_torch(backend):
    torch = pytest.importorskip("torch")
    shapes = [(13, 17), (8, 3, 3, 3), (7,)]
    grads, params = draw(np.float64, 0, shapes), draw(np.float64, 9, shapes)

    def torch_norm(a):
        a = torch.tensor(a)
        return torch.linalg.vector_norm(a, dim=tuple(range(1, a.ndim)), keepdim=True) if a.ndim > 1 else a.norm()

    expected = []
    for g, w in zip(grads, params, strict=True):
        norm, limit = torch_norm(g), torch_norm(w).clamp(min=1e-3) * 0.9
        expected.append(torch.where(norm > limit, torch.tensor(g) * limit / norm, torch.tensor(g)).numpy())
    adaptive_clip(grads, params, 0.9)
    for grad, want in zip(grads, expected, strict=True):
        assert_close(grad, want, "torch")


def test_rows_by_norm(backend, dtype):
    before = draw(dtype)
    arrays = copies(before)
    found = clip_by_norm(arrays, 2.0, axis=0)
    assert len(found) == len(arrays)
    for array, start, norms in zip(arrays, before, found, strict=True):
        units = wide_units(start)
        assert norms.shape == units.shape[:1] and norms.dtype == np.float64
        assert_close(norms, np.sqrt((units * units).sum(axis=1)), "norm")
        expected = units * np.minimum(1, 2.0 / (norms + 1e-6))[:, None]
        assert_scaled(array, expected.reshape(start.shape), label=str(start.shape))
        kept = norms < 2.0
        np.testing.assert_array_equal(array.reshape(units.shape)[kept], start.reshape(units.shape)[kept])


def test_rows_against_torch_renorm(backend):
    torch = pytest.importorskip("torch")
    array = random(3, (9, 4, 5))
    expected = torch.renorm(torch.tensor(array), p=2, dim=0, maxnorm=4.0).numpy()
    clip_by_norm(array, 4.0, axis=0)
    assert np.abs(array - expected).max() < 2e-6  # torch adds 1e-7 to the norm, fastgrad 1e-6


def test_a_unit_below_its_limit_keeps_its_bits(backend, dtype):
    grads, params = draw(dtype), draw(dtype, 100)
    before = copies(grads)
    adaptive_clip(grads, params, 1e6)
    adaptive_clip(grads, [np.zeros_like(p) for p in params], 1.0, 1e6)
    clip_by_norm(grads, 1e6, axis=0)
    for grad, start in zip(grads, before, strict=True):
        np.testing.assert_array_equal(grad, start)


def test_nan_and_inf_stay_in_their_unit(backend, dtype):
    param = np.ones((5, 3), dtype)
    param[4] = np.nan
    grad = np.array([[1, np.nan, 2], [1, -np.inf, 2], [3, 4, 0], [0, 0, 0], [1, 2, 3]], dtype)
    expected = np.array(grad)
    expected[[0, 4]], expected[1] = np.nan, [0, np.nan, 0]
    rows = grad.copy()
    adaptive_clip(grad, param, 1.0)
    assert_scaled(grad[2], np.array([3.0, 4.0, 0.0]) * math.sqrt(3) / 5)
    np.testing.assert_array_equal(grad[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    (norms,) = clip_by_norm([rows], 1.0, axis=0)
    np.testing.assert_array_equal(rows[[0, 1, 3]], expected[[0, 1, 3]])
    np.testing.assert_array_equal(norms[:4], [np.nan, np.inf, 5, 0])


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e200, 1e306])
def test_no_norm_of_float64_over_or_underflows(backend, scale):
    grad, param = random(1, (7, 40)), random(2, (7, 40))
    expected = limited(grad, param, 0.5, 1e-3) * scale
    grad, param = grad * scale, param * scale
    adaptive_clip(grad, param, 0.5, 0.0)
    assert_close(grad, expected, "norm")


def test_layouts_are_changed_in_place(backend, dtype):
    start, param = random(1, (13, 17), dtype), random(2, (13, 17), dtype)
    for name, view in layouts(start).items():
        adaptive_clip([view], [param], 0.3)
        assert_scaled(view, limited(start, param, 0.3, 1e-3), label=name)
    for name, view in layouts(param).items():
        grad = start.copy()
        adaptive_clip(grad, view, 0.3)
        assert_scaled(grad, limited(start, param, 0.3, 1e-3), label=name)


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            grads = draw(dtype)
            adaptive_clip(grads, draw(dtype, 100), 0.5)
            norms = clip_by_norm(grads, 0.3, axis=0)
            seen.add(b"".join(a.tobytes() for a in (*grads, *norms)))
    assert len(seen) == 1


def test_one_launch(cpu_backend, monkeypatch):
    if cpu_backend != "cpu":
        pytest.skip("counts launches of kernels")
    from fastgrad.kernels import runtime

    grads, params = draw(np.float32), draw(np.float32, 100)
    launches, run = [], runtime.run
    monkeypatch.setattr(runtime, "run", lambda kernel, *args, **kwargs: launches.append(run(kernel, *args, **kwargs)))
    adaptive_clip(grads, params)
    assert len(launches) == 1


def test_nothing_to_clip(backend):
    adaptive_clip([], [])
    assert clip_by_norm([], 1.0, axis=0) == []


def test_errors():
    a, b = random(4, (5, 2), np.float32), random(5, (5, 2), np.float32)
    with pytest.raises(ValueError, match=r"grads\[0\] and params\[0\] overlap in memory"):
        adaptive_clip(a, a)
    with pytest.raises(ValueError, match="params: expected 1 arrays, as many as grads, got 2"):
        adaptive_clip([a], [a.copy(), b])
    with pytest.raises(ValueError, match=r"params\[0\]: expected the shape of grads\[0\], \(5, 2\), got \(2,\)"):
        adaptive_clip(a, b[0])
    with pytest.raises(ValueError, match=r"clipping: expected a finite number >= 0, got -1.0"):
        adaptive_clip(a, b, -1.0)
    with pytest.raises(ValueError, match="eps: expected a finite number >= 0, got nan"):
        adaptive_clip(a, b, eps=math.nan)
    with pytest.raises(ValueError, match=r"axis: expected None \(of each array\) or 0 \(of each row\), got 1"):
        clip_by_norm(a, 1.0, axis=1)


@pytest.mark.parametrize("fault", ["columns", "last unit"])
def test_planted_faults_are_caught(monkeypatch, fault):
    original = units_ref._units

    def wrong(a):
        units = original(a)
        return units.T if fault == "columns" else units[:-1]

    monkeypatch.setattr(units_ref, "_units", wrong)
    start, param = random(1, (13, 17)), random(2, (13, 17))
    grad = start.copy()
    with fastgrad.backend("reference"):
        adaptive_clip(grad, param, 0.1)
    with pytest.raises(AssertionError):
        assert_scaled(grad, limited(start, param, 0.1, 1e-3))
