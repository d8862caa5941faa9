"""The affine map and the table look-up of the layers."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import linear_cpu, matmul_cpu
from support import oracle, random
from tolerances import assert_close

import fastgrad
from fastgrad.linear import embedding, embedding_backward, linear, linear_backward
from fastgrad.testing import gradcheck

SIZES = [(1, 1, 1), (7, 5, 3), (0, 4, 3), (3, 0, 4), (3, 4, 0), (33, 65, 17), (257, 31, 129)]


def draw(sizes, dtype):
    M, K, N = sizes
    shapes = [(M, K), (N, K), (N,), (M, N)]
    return [random(k, shape, dtype) for k, shape in enumerate(shapes)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_linear_against_float64(backend, dtype, sizes):
    x, weight, bias, dy = draw(sizes, dtype)
    for b in (bias, None):
        y = linear(x, weight, b)
        assert y.dtype == dtype
        assert_close(y, oracle(linear, x, weight, b), "product", magnitude="largest")
    actual, expected = linear_backward(dy, x, weight), oracle(linear_backward, dy, x, weight)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a, e, "product", magnitude="largest")
    assert linear_backward(dy, x, weight, with_dx=False)[0] is None
    assert linear_backward(dy, x, weight, with_bias=False)[2] is None


def test_linear_takes_any_leading_axes(backend, dtype):
    x, weight, bias, dy = draw((24, 5, 3), dtype)
    y, (dx, dweight, dbias) = linear(x, weight, bias), linear_backward(dy, x, weight)
    x3, dy3 = x.reshape(2, 3, 4, 5), dy.reshape(2, 3, 4, 3)
    np.testing.assert_array_equal(linear(x3, weight, bias), y.reshape(2, 3, 4, 3))
    actual = linear_backward(dy3, x3, weight)
    np.testing.assert_array_equal(actual[0], dx.reshape(x3.shape))
    np.testing.assert_array_equal(actual[1], dweight)
    np.testing.assert_array_equal(actual[2], dbias)
    row = linear(x[0], weight, bias)
    assert row.shape == (3,)
    assert_close(row, oracle(linear, x, weight, bias)[0], "product", magnitude="largest")
    transposed = np.ascontiguousarray(x3.swapaxes(0, 2)).swapaxes(0, 2)
    np.testing.assert_array_equal(linear(transposed, weight, bias), y.reshape(2, 3, 4, 3))


def test_linear_central_differences(backend):
    gradcheck(linear, draw((4, 3, 2), np.float64)[:3], lambda dy, x, weight, _: linear_backward(dy, x, weight))


def test_linear_lets_nan_through(backend, dtype):
    x, weight, bias, dy = draw((7, 5, 3), dtype)
    x[2, 1] = np.nan
    y = linear(x, weight, bias)
    assert np.isnan(y[2]).all() and np.isfinite(y[[0, 1, 3, 4, 5, 6]]).all()
    assert np.isnan(linear_backward(dy, x, weight)[1][:, 1]).all()


def test_linear_has_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    x, weight, bias, dy = draw((257, 31, 129), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            arrays = [linear(x, weight, bias), *linear_backward(dy, x, weight)]
            seen.add(b"".join(a.tobytes() for a in arrays))
    assert len(seen) == 1


@pytest.mark.parametrize("shape", [(), (0,), (1,), (97,), (13, 17), (2, 3, 5), (4097,)], ids=str)
def test_embedding_against_numpy(backend, dtype, shape):
    weight = random(1, (11, 7), dtype)
    indices = np.random.default_rng(2).integers(0, 11, shape)
    if indices.size:
        indices.flat[-1] = 10
    np.testing.assert_array_equal(embedding(weight, indices), weight[indices])
    np.testing.assert_array_equal(embedding(weight, indices.astype(np.uint8)), weight[indices])
    dy = random(3, (*shape, 7), dtype)
    dweight = embedding_backward(dy, indices, 11)
    assert dweight.dtype == dtype
    expected, terms = np.zeros((11, 7)), np.zeros((11, 7))
    np.add.at(expected, indices, dy.astype(np.float64))
    np.add.at(terms, indices, np.abs(dy.astype(np.float64)))
    # The reference adds up in the dtype, one row after the other.
    operation = "product" if backend == "reference" else "reduction"
    assert_close(dweight, expected, operation, magnitude=terms * (10 if backend == "reference" else 1))
    unused = np.setdiff1d(np.arange(11), indices)
    assert not dweight[unused].any()


def test_embedding_has_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    indices, dy = np.random.default_rng(4).integers(0, 97, 4097), random(5, (4097, 33), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(embedding_backward(dy, indices, 97).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("sizes", [(1, 4, 4), (33, 3, 132), (130, 2, 7), (2100, 1, 1), (300, 1, 260)], ids=str)
def test_bias_on_a_device(on_device, dtype, sizes):
    """Columns 16 bytes at a time and one by one, one tile of rows and several."""
    x, weight, bias, dy = draw(sizes, dtype)
    plain, y = on_device(linear)(x, weight), on_device(linear)(x, weight, bias)
    np.testing.assert_array_equal(y, plain + bias)
    dbias = on_device(linear_backward)(dy, x, weight)[2]
    magnitude = np.abs(dy.astype(np.float64)).sum(axis=0)
    assert_close(dbias, dy.astype(np.float64).sum(axis=0), "reduction", magnitude=magnitude)


@pytest.mark.parametrize("E", [1, 3, 7, 8, 132, 260])
@pytest.mark.parametrize(("n", "V"), [(1, 1), (97, 11), (2048, 5), (5003, 300), (8193, 1)])
def test_embedding_on_a_device_has_the_bits_of_the_cpu(on_device, dtype, n, V, E):
    """One chunk of sorted indices and several, runs of equal ones across their ends, rows that nobody chose."""
    rng = np.random.default_rng(n)
    if n > 1000 and E > 8:
        pytest.skip("long and wide takes long")
    indices = np.minimum(rng.integers(0, V, n), rng.integers(0, V, n))
    weight, dy = random(1, (V, E), dtype), random(2, (n, E), dtype)
    dy[0, 0] = -0.0
    with fastgrad.backend("cpu"):
        y, dweight = embedding(weight, indices), embedding_backward(dy, indices, V + 3)
    np.testing.assert_array_equal(on_device(embedding)(weight, indices), y)
    actual = on_device(embedding_backward)(dy, indices, V + 3)
    assert actual.tobytes() == dweight.tobytes()
    shifted = np.zeros(dy.size + 1, dtype)[1:].reshape(dy.shape)
    shifted[...] = dy
    assert on_device(embedding_backward)(shifted, indices, V + 3).tobytes() == dweight.tobytes()


def test_indices_out_of_range_on_a_device(on_device, dtype):
    weight, dy = random(1, (5, 4), dtype), random(2, (7, 4), dtype)
    indices = np.array([1, -1, 4, 5, 1, 2**40, -(2**63)])
    inside = np.array([True, False, True, False, True, False, False])
    y = on_device(embedding)(weight, indices)
    np.testing.assert_array_equal(y[inside], weight[indices[inside]])
    assert np.isnan(y[~inside]).all()
    with fastgrad.backend("cpu"):
        expected = embedding_backward(dy[inside], indices[inside], 5)
    np.testing.assert_array_equal(on_device(embedding_backward)(dy, indices, 5), expected)


def test_arrays_of_two_kinds(on_device):
    weight, indices = random(1, (5, 4), np.float32), np.array([1, 2])
    with pytest.raises(TypeError, match=r"indices is a NumPy array but weight is a CuPy array; .* cupy.asarray"):
        on_device(lambda table: embedding(table, indices))(weight)
    with pytest.raises(TypeError, match=r"targets is a CuPy array but logits is a NumPy array; .* cupy.asnumpy"):
        on_device(lambda targets: fastgrad.softmax_cross_entropy(weight, targets))(indices)


def test_errors():
    x, weight, bias, dy = draw((4, 3, 2), np.float32)

    def error(exception, match, function, *args):
        with pytest.raises(exception, match=match):
            function(*args)

    error(ValueError, r"x: expected shape .* with K = 3, got \(4, 2\)", linear, x[:, 1:], weight, bias)
    error(ValueError, r"bias: expected shape \(N,\) with N = 2, got \(3,\)", linear, x, weight, x[0])
    error(TypeError, "bias is float64 but weight is float32", linear, x, weight, bias.astype(float))
    error(TypeError, "x: expected a numpy.ndarray or cupy.ndarray, got list", linear, [1.0], weight, bias)
    error(ValueError, r"dy: expected shape \(4, 2\), got \(3, 2\)", linear_backward, dy[1:], x, weight)
    error(ValueError, "indices: expected entries from 0 to 1 .*, got 2", embedding, weight, np.array([0, 2]))
    error(TypeError, "indices: expected integers, got float32", embedding, weight, x)
    error(
        ValueError,
        r"dy: expected shape \(2,\) and one more axis, got \(4, 2\)",
        embedding_backward,
        dy,
        np.array([0, 1]),
        5,
    )


def test_a_small_product_has_the_bits_of_a_large_one(cpu_backend, dtype, monkeypatch):
    if cpu_backend != "cpu":
        pytest.skip("compares two kernels")

    def run(sizes):
        x, weight, bias, dy = draw(sizes, dtype)
        if x.size > 6:
            x.flat[3], x.flat[5], dy.flat[0] = np.inf, 1e-30, -0.0
        products = [linear(x, weight, bias), linear(np.full_like(x, -0.0), weight), *linear_backward(dy, x, weight)]
        return [a.tobytes() for a in (*products, *linear_backward(dy, x, weight, with_dx=False, with_bias=False)[1:2])]

    launched = []
    small = linear_cpu._small
    monkeypatch.setattr(linear_cpu, "_small", lambda dtype: launched.append(dtype) or small(dtype))
    terms = matmul_cpu.most_steps(np.dtype(dtype)) + 1
    sizes = [(1, 1, 1), (7, 5, 3), (8, 8, 8), (64, 8, 8), (65, 8, 7), (3, terms, 1), (2, 1, terms), (1, 64, 64)]
    for some in sizes:
        found = run(some)
        with monkeypatch.context() as patch:
            patch.setattr(linear_cpu, "SMALL", 0)
            assert run(some) == found, some
    assert len(launched) == 5 * 4 + 2 + 2  # none of more than 64 rows, or of more terms than are summed at a time
