"""Gradient accumulation: micro-batches and grad_scale make the update of the whole batch."""

from __future__ import annotations

import backends
import numpy as np
import pytest
from support import random
from tolerances import assert_close

import fastgrad
from fastgrad import layers
from fastgrad.optim import SGD, Adam, AdamW, RMSprop

OPTIMIZERS = [(SGD, {"momentum": 0.9}), (RMSprop, {"centered": True}), (Adam, {"amsgrad": True}), (AdamW, {})]
MICRO, SIZE, STEPS = 4, 3, 5


@pytest.fixture(autouse=True)
def optimizers_on_the_device(request, monkeypatch):
    """Where a test runs on a device, so do its optimizers."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") in backends.DEVICES:
        backends.divert_optimizers(monkeypatch, request.getfixturevalue("backend"))


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_grad_scale_divides_the_gradients(backend, dtype, optimizer, options, max_norm):
    """A power of two moves no rounding: the bits are those of gradients divided before."""
    shapes = [(5, 3), (7,)]
    ours, theirs = ([random(k, shape, dtype) for k, shape in enumerate(shapes)] for _ in range(2))
    mine, other = (optimizer(p, lr=0.05, max_norm=max_norm, **options) for p in (ours, theirs))
    for step in range(STEPS):
        grads = [random(10 * (step + 1) + k, shape, dtype) for k, shape in enumerate(shapes)]
        scale = 8.0 if step != 2 else None
        report = mine.step([g * dtype(scale or 1) for g in grads], grad_scale=scale)
        expected = other.step(grads)
        assert (report.grad_norm, report.clip_coefficient) == (expected.grad_norm, expected.clip_coefficient)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def perceptron(rng):
    return layers.Sequential(layers.Linear(6, 8, rng=rng, dtype=np.float64), layers.Activation("gelu"),
                             layers.Linear(8, 5, rng=rng, dtype=np.float64))  # fmt: skip


class LastStep(layers.Layer):
    """An LSTM whose last output goes through a Linear; x (B, T, I)."""

    def __init__(self, rng):
        self.rnn = layers.LSTM(6, 8, batch_first=True, rng=rng, dtype=np.float64)
        self.head = layers.Linear(8, 5, rng=rng, dtype=np.float64)

    def forward(self, x):
        y, _ = self.rnn.forward(x)
        self._shape = y.shape
        return self.head.forward(np.ascontiguousarray(y[:, -1]))

    def backward(self, dy):
        dh = np.zeros(self._shape)
        dh[:, -1] = self.head.backward(dy)
        return self.rnn.backward(dh)


@pytest.mark.parametrize("kind", ["perceptron", "lstm"])
@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_micro_batches_make_the_update_of_the_batch(cpu_backend, kind, optimizer):
    x = random(1, (MICRO * SIZE, 6) if kind == "perceptron" else (MICRO * SIZE, 4, 6))
    targets = np.arange(MICRO * SIZE) % 5
    models = [perceptron(7) if kind == "perceptron" else LastStep(np.random.default_rng(7)) for _ in range(2)]
    whole, parts = models
    with_whole, with_parts = (optimizer(m.parameters(), lr=0.05, max_norm=0.5) for m in models)
    first = [p.data.copy() for p in whole.parameters()]
    for _ in range(STEPS):
        with_whole.zero_grad()
        whole.backward(fastgrad.softmax_cross_entropy(whole.forward(x), targets)[1])
        expected = with_whole.step()
        with_parts.zero_grad()
        kept = None
        for part in range(MICRO):
            rows = slice(part * SIZE, (part + 1) * SIZE)
            parts.backward(fastgrad.softmax_cross_entropy(parts.forward(x[rows]), targets[rows])[1])
            grads = [p.grad for p in parts.parameters()]
            assert kept is None or all(a is b for a, b in zip(grads, kept, strict=True))  # added to in place
            kept = grads
        report = with_parts.step(grad_scale=MICRO)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-10)
    for a, b, start in zip(parts.parameters(), whole.parameters(), first, strict=True):
        assert_close(a.data, b.data, "torch", magnitude="largest", label=a.name)
        assert (a.data != start).any()


def test_a_scale_that_makes_no_sense():
    with pytest.raises(ValueError, match=r"grad_scale: expected a finite number > 0, got 0.0"):
        SGD([np.zeros(2)]).step([np.ones(2)], grad_scale=0)
