"""dropout, dropout_backward and the layer."""

from __future__ import annotations

import numpy as np
import pytest
from backends import placed
from fastgrad.kernels import dropout_ref
from support import layouts, oracle, random

import fastgrad
from fastgrad import dropout, dropout_backward
from fastgrad.layers import Dropout

SHAPES = [(), (0,), (1,), (63,), (64,), (65,), (13, 17), (4097,), (3, 16384)]
SEED, OFFSET = 0x9ABCDEF012345678, 0xFEDCBA9876543210


@pytest.mark.parametrize(("word", "expected"), [
    (0x00000000, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
])  # fmt: skip
def test_known_answers_of_philox(word, expected):
    """Those published with Random123."""
    counter = np.full((4, 1), word, np.uint64)
    assert tuple(dropout_ref.philox(counter, (word, word))[:, 0]) == expected


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_entries_on_every_backend(backend, dtype, shape, p):
    x = random(1, shape, dtype)
    kept = oracle(dropout, np.ones(shape), p, SEED, OFFSET) != 0
    scaled = x * dtype(1 / (1 - p)) if p < 1 else x
    for function in (dropout, dropout_backward):
        y = function(x, p, SEED, OFFSET)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.where(kept, scaled, 0))


def test_how_many_fall():
    for p in (0.1, 0.5, 0.9):
        ones = np.ones(1 << 16, np.float32)
        for seed, offset in ((0, 0), (1, 0), (0, 1), (1 << 40, 0), (0, 1 << 40)):
            share = np.mean(dropout(ones, p, seed, offset) == 0)
            assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / ones.size)
    masks = {dropout(ones, 0.5, *pair).tobytes() for pair in ((0, 0), (1, 0), (0, 1), (1 << 40, 0), (0, 1 << 40))}
    assert len(masks) == 5


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    x, seen = random(1, (100003,), dtype), set()
    with fastgrad.backend("cpu"):
        for threads in thread_counts:
            fastgrad.set_num_threads(threads)
            seen.add(dropout(x, 0.3, 7).tobytes())
    assert len(seen) == 1


def test_layouts_and_aliases(backend, dtype):
    x = random(1, (6, 5, 4), dtype)
    y = dropout(x, 0.4, 3)
    for name, view in layouts(x).items():
        np.testing.assert_array_equal(dropout(view, 0.4, 3), y, err_msg=name)
        assert dropout(view, 0.4, 3, out=view) is view
        np.testing.assert_array_equal(view, y, err_msg=name)


def test_the_layer(backend, dtype):
    layer = placed(Dropout(0.25, rng=5), backend)
    x, dy = np.ones((40, 30), dtype), random(2, (40, 30), dtype)
    y = layer.forward(x)
    np.testing.assert_array_equal(layer.backward(dy), np.where(y != 0, dy * dtype(1 / 0.75), 0))
    assert (layer.forward(x) != y).any()
    layer.backward(dy)
    again = Dropout(0.25, rng=5)
    np.testing.assert_array_equal(again.forward(x), y)
    again.backward(dy)
    again.eval()
    np.testing.assert_array_equal(again.forward(x), x)
    np.testing.assert_array_equal(again.backward(dy), dy)


def test_errors():
    x = np.ones(3, np.float32)
    for match, error, arguments in (
        ("p: expected", ValueError, (x, 1.5, 0)), ("seed: expected 0 to", ValueError, (x, 0.5, -1)),
        ("offset: expected an integer, got float", TypeError, (x, 0.5, 0, 1.0)),
        ("x: expected a numpy.ndarray", TypeError, ([1.0], 0.5, 0)),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            dropout(*arguments)
