"""activation_dropout, its backward, and the layer: to the bit an activation and a dropout one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from backends import DEVICES, placed
from fastgrad.kernels import activation_dropout_cpu, activation_dropout_ref, streams
from support import layouts, oracle, random
from tolerances import assert_close

import fastgrad
from fastgrad import (
    activation,
    activation_backward,
    activation_dropout,
    activation_dropout_backward,
    dropout,
    dropout_backward,
)
from fastgrad.activations import KINDS
from fastgrad.layers import Activation, Checkpoint, Dropout, Linear, Sequential
from fastgrad.testing import gradcheck

SHAPES = [(), (0,), (0, 5), (1,), (63,), (64,), (65,), (13, 17), (4097,), (70, 64), (3, 16384), (67, 129), (5, 3, 100)]
SEED, OFFSET = 0x9ABCDEF012345678, 0xFEDCBA9876543210
RANDOM = (0.3, SEED, OFFSET)


def apart(dy, x, kind, p, seed, offset, **params):
    """Return y, dx and the sums of dx by two functions each."""
    upstream = dropout_backward(dy, p, seed, offset)
    bias_grad = np.full(x.shape[-1:], np.nan, x.dtype) if x.ndim else None
    dx = activation_backward(upstream, x, kind, bias_grad=bias_grad, **params)
    return dropout(activation(x, kind, **params), p, seed, offset), dx, bias_grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_two_passes(backend, dtype, shape):
    x, dy = random(1, shape, dtype, scale=3.0), random(2, shape, dtype)
    y, dx, sums = apart(dy, x, "gelu", *RANDOM)
    assert activation_dropout(x, "gelu", *RANDOM).dtype == dtype
    np.testing.assert_array_equal(activation_dropout(x, "gelu", *RANDOM), y)
    np.testing.assert_array_equal(activation_dropout_backward(dy, x, "gelu", *RANDOM), dx)
    if shape:
        total = np.full(shape[-1:], np.nan, dtype)
        np.testing.assert_array_equal(activation_dropout_backward(dy, x, "gelu", *RANDOM, bias_grad=total), dx)
        np.testing.assert_array_equal(total, sums)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(backend, dtype, kind):
    x, dy = random(1, (9, 70), dtype, scale=3.0), random(2, (9, 70), dtype)
    params = {name: default + 0.25 for name, default in KINDS[kind].items()}
    y, dx, sums = apart(dy, x, kind, *RANDOM, **params)
    total = np.empty(70, dtype)
    np.testing.assert_array_equal(activation_dropout(x, kind, *RANDOM, **params), y)
    np.testing.assert_array_equal(activation_dropout_backward(dy, x, kind, *RANDOM, **params), dx)
    np.testing.assert_array_equal(activation_dropout_backward(dy, x, kind, *RANDOM, bias_grad=total, **params), dx)
    np.testing.assert_array_equal(total, sums)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.999, 1.0])
def test_against_float64(backend, dtype, p):
    x, dy, sums = random(1, (33, 65), dtype), random(2, (33, 65), dtype), np.empty(65, dtype)
    kept = oracle(dropout, np.ones(x.shape), p, 7, 3)
    y = activation_dropout(x, "silu", p, 7, 3)
    dx = activation_dropout_backward(dy, x, "silu", p, 7, 3, bias_grad=sums)
    assert_close(y, kept * oracle(activation, x, "silu"), "naive")
    expected = kept * oracle(activation_backward, dy, x, "silu")
    magnitude = np.abs(kept * dy)
    assert_close(dx, expected, "naive", magnitude=magnitude)
    assert_close(sums, expected.sum(axis=0), "naive", magnitude=magnitude.sum(axis=0))
    assert (y[kept == 0] == 0).all() and (dx[kept == 0] == 0).all()


def test_central_differences(backend):
    gradcheck(
        lambda x: activation_dropout(x, "mish", 0.4, 5, 1), random(1, (5, 7)),
        lambda dy, x: activation_dropout_backward(dy, x, "mish", 0.4, 5, 1),
    )  # fmt: skip


def test_layouts_and_aliases(backend, dtype):
    x, dy = random(1, (6, 5, 4), dtype), random(2, (6, 5, 4), dtype)
    y, dx, _ = apart(dy, x, "tanh", *RANDOM)
    for name, view in layouts(x).items():
        np.testing.assert_array_equal(activation_dropout_backward(dy, view, "tanh", *RANDOM), dx, err_msg=name)
        assert activation_dropout(view, "tanh", *RANDOM, out=view) is view
        np.testing.assert_array_equal(view, y, err_msg=name)
    for name, view in layouts(dy).items():
        sums = np.empty(4, dtype)
        activation_dropout_backward(view, x, "tanh", *RANDOM, out=view, bias_grad=sums)
        np.testing.assert_array_equal(view, dx, err_msg=name)
    out = x.copy()
    np.testing.assert_array_equal(activation_dropout_backward(dy, out, "tanh", *RANDOM, out=out), dx)


def test_nan(backend, dtype):
    """What a dropped entry was does not show forward; NaN in x shows in each gradient."""
    x, dy = random(1, (130,), dtype), random(2, (130,), dtype)
    x[64:] = np.nan
    kept = dropout(np.ones(130, dtype), *RANDOM) != 0
    np.testing.assert_array_equal(np.isnan(activation_dropout(x, "gelu", *RANDOM)), kept & (np.arange(130) >= 64))
    assert np.isnan(activation_dropout_backward(dy, x, "gelu", *RANDOM)[64:]).all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, with_bias):
    x, dy, seen = random(1, (1031, 97), dtype), random(2, (1031, 97), dtype), set()
    with fastgrad.backend("cpu"):
        for threads in thread_counts:
            fastgrad.set_num_threads(threads)
            sums = np.empty(97, dtype) if with_bias else None
            dx = activation_dropout_backward(dy, x, "silu", 0.3, 7, bias_grad=sums)
            seen.add(dx.tobytes() + (sums.tobytes() if with_bias else b""))
    assert len(seen) == 1


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("columns", [16, 48, 64, 208, 1031])
def test_streaming_stores_change_nothing(monkeypatch, dtype, columns, skip):
    shape = (2 * 64 + 5, columns)
    x, dy = random(1, shape, dtype), random(2, shape, dtype)
    streamed = []
    original = activation_dropout_cpu._backward_rows
    monkeypatch.setattr(
        activation_dropout_cpu, "_backward_rows", lambda *key: streamed.append(key[-1]) or original(*key)
    )
    with fastgrad.backend("cpu"):
        sums, again = np.empty(columns, dtype), np.empty(columns, dtype)
        wanted = activation_dropout_backward(dy, x, "silu", *RANDOM, bias_grad=sums)
        flat = activation_dropout(x, "silu", *RANDOM)
        monkeypatch.setattr(streams, "STREAMING_BYTES", 1)
        memory = np.full(x.size + 64, np.nan, dtype)
        start = (-memory.ctypes.data % 64) // memory.itemsize + skip
        out = memory[start : start + x.size].reshape(shape)
        activation_dropout_backward(dy, x, "silu", *RANDOM, out=out, bias_grad=again)
        np.testing.assert_array_equal(out, wanted)
        np.testing.assert_array_equal(again, sums)
        activation_dropout(x, "silu", *RANDOM, out=out)
        np.testing.assert_array_equal(out, flat)
    assert np.isnan(memory[:start]).all() and np.isnan(memory[start + x.size :]).all()
    assert streamed == [False, columns * x.itemsize % 64 == 0]


def test_the_layer(backend, dtype):
    x, dy = random(1, (40, 30), dtype), random(2, (40, 30), dtype)
    fused = placed(Activation("leaky_relu", dropout=0.25, rng=5, negative_slope=0.2), backend)
    two = Sequential(Activation("leaky_relu", negative_slope=0.2), Dropout(0.25, rng=5))
    for _ in range(2):
        np.testing.assert_array_equal(fused.forward(x), two.forward(x))
        np.testing.assert_array_equal(fused.backward(dy), two.backward(dy))
    (fused._layer if backend in DEVICES else fused).eval()
    two.eval()
    np.testing.assert_array_equal(fused.forward(x), two.forward(x))
    np.testing.assert_array_equal(fused.backward(dy), two.backward(dy))


def test_the_layer_by_central_differences(cpu_backend):
    layer = Sequential(
        Linear(5, 7, rng=1, dtype=np.float64), Activation("gelu", dropout=0.3, rng=2), Linear(7, 3, dtype=np.float64)
    )
    gradcheck(layer, random(1, (4, 5)))
    gradcheck(Checkpoint(layer), random(1, (4, 5)))


def test_errors():
    x = np.ones((2, 3), np.float32)
    for match, error, arguments, more in (
        ("p: expected", ValueError, ("relu", 1.5, 0), {}), ("kind: expected one of", ValueError, ("rolu", 0.5, 0), {}),
        ("alpha: relu takes no parameters", TypeError, ("relu", 0.5, 0), {"alpha": 1.0}),
        ("seed: expected 0 to", ValueError, ("relu", 0.5, -1), {}),
        ("out: expected shape", ValueError, ("relu", 0.5, 1), {"out": x[0]}),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            activation_dropout(x, *arguments, **more)
        with pytest.raises(error, match=match):
            activation_dropout_backward(x, x, *arguments, **more)
    with pytest.raises(ValueError, match=r"bias_grad: expected shape \(3,\)"):
        activation_dropout_backward(x, x, "relu", 0.5, 1, bias_grad=np.empty(2, np.float32))
    with pytest.raises(ValueError, match="dropout: expected"):
        Activation("relu", dropout=-0.5)


def test_a_planted_fault_is_caught(monkeypatch):
    x = random(1, (5, 7))
    original = activation_dropout_ref.activation_dropout_backward
    # The mask of another offset.
    monkeypatch.setattr(
        activation_dropout_ref, "activation_dropout_backward",
        lambda dy, x, kind, params, limit, scale, seed, offset, *out: original(
            dy, x, kind, params, limit, scale, seed, offset + 1, *out
        ),
    )  # fmt: skip
    with pytest.raises(AssertionError), fastgrad.backend("reference"):
        gradcheck(
            lambda x: activation_dropout(x, "mish", 0.4, 5, 1), x,
            lambda dy, x: activation_dropout_backward(dy, x, "mish", 0.4, 5, 1),
        )  # fmt: skip
