"""Matrix products against float64 NumPy, over tile edges, layouts and thread counts."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import matmul_cpu
from support import random
from tolerances import assert_close

import fastgrad

SIZES = [
    (1, 300, 130),
    (1, 256, 120),
    (2, 257, 70),
    (1, 1, 1),
    (5, 7, 3),
    (12, 16, 32),
    (13, 385, 33),
    (100, 257, 70),
    (17, 1, 129),
    (97, 800, 65),
    (300, 64, 96),
]


def product(a, b, dtype, **kwargs):
    out = kwargs.pop("out", None)
    out = np.full((a.shape[0], b.shape[1]), np.nan, dtype) if out is None else out
    matmul_cpu.matmul(a, b, out, **kwargs)
    return out


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("order_a", "CF")
@pytest.mark.parametrize("order_b", "CF")
def test_product(shape, order_a, order_b, dtype):
    m, k, n = shape
    a = np.asarray(random(1, (m, k), dtype), order=order_a)
    b = np.asarray(random(2, (k, n), dtype), order=order_b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert_close(product(a, b, dtype), exact, "product", magnitude="largest")
    bias = random(3, (n,), dtype)
    assert_close(product(a, b, dtype, bias=bias), exact + bias, "product", magnitude="largest")
    start = random(4, (m, n), dtype)
    assert_close(product(a, b, dtype, out=start.copy(), accumulate=True), exact + start, "product", magnitude="largest")


def test_row_strides(dtype):
    wide = random(1, (50, 90), dtype)
    a, b = wide[:, 10:47], random(2, (80, 99), dtype)[:37, :65]
    target = np.zeros((50, 100), dtype)
    matmul_cpu.matmul(a, b, target[:, 3:68])
    assert_close(target[:, 3:68], a.astype(np.float64) @ b, "product", magnitude="largest")
    assert not target[:, :3].any() and not target[:, 68:].any()
    assert_close(
        product(a.T, random(3, (50, 7), dtype), dtype),
        a.T.astype(np.float64) @ random(3, (50, 7), dtype),
        "product",
        magnitude="largest",
    )


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_empty(shape, dtype):
    m, k, n = shape
    result = product(np.ones((m, k), dtype), np.ones((k, n), dtype), dtype, bias=np.full(n, 2, dtype))
    np.testing.assert_array_equal(result, np.full((m, n), 2, dtype))


def test_same_bits_for_any_number_of_threads(thread_counts):
    a, b = random(1, (130, 500), np.float32), random(2, (500, 200), np.float32)
    results = []
    for n in thread_counts:
        fastgrad.set_num_threads(n)
        results.append(product(a, b, np.float32).tobytes())
        results.append(product(a.T.copy().T, b, np.float32).tobytes())
    assert len(set(results)) == 1


def test_rows_do_not_depend_on_their_neighbours():
    """The tile that a row falls into must not change its bits: batches may be cut anywhere."""
    a, b = random(1, (29, 300), np.float32), random(2, (300, 40), np.float32)
    whole = product(a, b, np.float32)
    for start, stop in ((0, 1), (3, 10), (5, 29)):
        np.testing.assert_array_equal(product(a[start:stop].copy(), b, np.float32), whole[start:stop])


def test_nan_and_inf_stay_in_their_rows_and_columns():
    a, b = np.ones((20, 30), np.float32), np.ones((30, 40), np.float32)
    a[3, 4], b[5, 6] = np.nan, np.inf
    result = product(a, b, np.float32)
    assert np.isnan(result[3]).all() and np.isinf(np.delete(result[:, 6], 3)).all()
    assert np.isfinite(np.delete(np.delete(result, 3, 0), 6, 1)).all()


@pytest.mark.parametrize("depth", [256, 512, 1025])
def test_rows_that_are_copied_give_the_same_bits(dtype, depth):
    """Rows that crowd into a few sets of a cache are copied, all others read where they lie."""
    stride = -(-depth * dtype().itemsize // 1024) * 1024 // dtype().itemsize
    wide, b = random(1, (2 * matmul_cpu.BLOCK_ROWS + 5, stride), dtype), random(2, (depth, 200), dtype)
    crowded = wide[:, :depth]
    assert crowded.strides[0] % matmul_cpu.CROWDED_STRIDE == 0
    apart = np.empty((wide.shape[0], stride + 1), dtype)[:, :depth]
    apart[...] = crowded
    out = product(crowded, b, dtype)
    assert_close(out, crowded.astype(np.float64) @ b, "product", magnitude="largest")
    np.testing.assert_array_equal(out, product(apart, b, dtype))
