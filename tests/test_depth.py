"""layers.Checkpoint, and stacks of hundreds of layers: that they learn, and what they cost."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from backends import DEVICES, module, placed
from support import random

import fastgrad
from fastgrad.layers import (
    LSTM,
    Activation,
    BatchNorm,
    Checkpoint,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Residual,
    Sequential,
    TransformerBlock,
)

E = 8


def blocks(count, dtype=np.float32, dropout=0.3):
    return [TransformerBlock(E, 2, 12, causal=True, dropout=dropout, dtype=dtype, rng=n) for n in range(count)]


def mixed(dtype):
    """One of each kind that a second forward pass could disturb."""
    rng = np.random.default_rng(7)
    return [
        Linear(E, E, rng=rng, dtype=dtype),
        BatchNorm(E, dtype=dtype),
        Dropout(0.4, rng=rng),
        Residual(Sequential(Linear(E, E, rng=rng, dtype=dtype), Activation("tanh")), "pre", E),
        BatchNorm(E, momentum=None, dtype=dtype),
        Dropout(0.2, rng=rng),
    ]


def passes(model, inputs, gradients, layers=None):
    """Return the bits of outputs, gradients, and what is left behind, of several passes, one in evaluation."""
    found = []
    for x, dy in zip(inputs, gradients, strict=True):
        found += [model.forward(x), model.backward(dy)]
    found += [parameter.grad for parameter in model.parameters()]
    found += list(model.state_dict().values())
    found += [np.array(getattr(p, n)) for p in (layers or model)._walk() for n in p._counters]
    return found


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrap", [
    lambda layers: Sequential(*map(Checkpoint, layers)),
    lambda layers: Checkpoint(Sequential(*layers)),
    lambda layers: Sequential(*layers, checkpoint_every=1),
    lambda layers: Sequential(*layers, checkpoint_every=4),
    lambda layers: Sequential(*layers, checkpoint_every=100),
    lambda layers: Checkpoint(Sequential(*layers, checkpoint_every=2)),
], ids=["each", "whole", "every 1", "every 4", "every 100", "nested"])  # fmt: skip
@pytest.mark.parametrize("kind", ["mixed", "blocks"])
def test_the_same_bits_as_without(backend, dtype, wrap, kind):
    def layers():
        return mixed(dtype) if kind == "mixed" else blocks(3, dtype)

    shape = (5, E) if kind == "mixed" else (5, 2, E)
    inputs, gradients = [random(n, shape, dtype) for n in (1, 2)], [random(n, shape, dtype) for n in (3, 4)]
    plain, wrapped = Sequential(*layers()), wrap(layers())
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert [p.name for p in wrapped.parameters()] == [p.name for p in plain.parameters()]
    results = [passes(placed(model, backend), inputs, gradients, model) for model in (plain, wrapped)]
    assert_same(results[1], results[0])
    for model in (plain, wrapped):
        model.eval()
    if backend not in DEVICES:
        np.testing.assert_array_equal(wrapped.forward(inputs[0]), plain.forward(inputs[0]))


def test_masks_are_those_of_the_first_pass_however_many_came_between():
    model = Checkpoint(Dropout(0.5, rng=1))
    x = np.ones((40, 40), np.float32)
    first = model.forward(x)
    model.layer.forward(x)  # somebody else uses the layer
    np.testing.assert_array_equal(model.backward(x), first)
    assert model.layer.offset == 2


def test_running_statistics_are_updated_once():
    model, alone = Checkpoint(BatchNorm(3)), BatchNorm(3)
    x = random(1, (9, 3), np.float32)
    for layer in (model, alone):
        layer.forward(x)
        layer.backward(x)
    assert model.layer.num_batches_tracked == 1
    assert_same(list(model.state_dict().values()), list(alone.state_dict().values()))


def test_what_a_layer_returns_and_takes_besides_passes_through():
    model, alone = Checkpoint(LSTM(3, 4, rng=1)), LSTM(3, 4, rng=1)
    x, state = random(1, (5, 2, 3), np.float32), tuple(random(n, (1, 2, 4), np.float32) for n in (2, 3))
    (y, (h, c)), (other, (h2, c2)) = model.forward(x, state, lengths=[5, 3]), alone.forward(x, state, lengths=[5, 3])
    assert_same([y, h, c, model.backward(y, (h, c))], [other, h2, c2, alone.backward(other, (h2, c2))])


def test_an_embedding_first(dtype):
    model = Sequential(Embedding(5, E, rng=1, dtype=dtype), *blocks(2, dtype), checkpoint_every=2)
    codes = np.arange(6).reshape(3, 2) % 5
    assert model.backward(np.ones_like(model.forward(codes))) is None
    assert model.layers[0].weight.grad.shape == (5, E)


def test_a_layer_of_ones_own_names_what_its_forward_changes():
    class Counting(Layer):
        _counters = ("passes",)
        passes = 0

        def forward(self, x):
            self.passes += 1
            self._keep(x, self.passes)
            return x * self.passes

        def backward(self, dy):
            return dy * self._take(dy)

    model = Sequential(Counting(), Counting(), checkpoint_every=2)
    x = np.ones(1, np.float32)
    for expected in (1, 4, 9):
        assert model.forward(x) == expected == model.backward(x)


def test_on_a_device_it_moves_with_its_layer(device):
    model = Sequential(*mixed(np.float32), checkpoint_every=2)
    x = random(1, (5, E), np.float32)
    model.forward(x)
    model.to("gpu")
    with pytest.raises(RuntimeError, match="expected a forward pass before"):
        model.backward(module(device).asarray(x))
    y = model.forward(module(device).asarray(x))
    assert type(model.backward(y)) is type(y)


def test_errors():
    with pytest.raises(TypeError, match="layer: expected a fastgrad layer, got int"):
        Checkpoint(3)
    with pytest.raises(ValueError, match="checkpoint_every must be a whole number"):
        Sequential(Dropout(0.1), checkpoint_every=0)
    with pytest.raises(RuntimeError, match=r"Checkpoint\.backward: expected a forward pass before"):
        Checkpoint(Dropout(0.1)).backward(np.ones(3, np.float32))
    same = Dropout(0.1)
    with pytest.raises(ValueError, match=r"layers\[1\] is in this Sequential already"):
        Sequential(same, same)


@pytest.mark.parametrize("fault", ["counters", "statistics"])
def test_planted_faults_are_caught(monkeypatch, fault):
    if fault == "counters":
        monkeypatch.setattr(Dropout, "_counters", ())
    else:
        monkeypatch.setattr(BatchNorm, "_buffers", ())
    inputs, gradients = [random(1, (5, E), np.float32)], [random(2, (5, E), np.float32)]
    plain, wrapped = Sequential(*mixed(np.float32)), Sequential(*mixed(np.float32), checkpoint_every=3)
    results = []
    for model in (plain, wrapped):
        results.append(passes(model, inputs, gradients))
        results[-1] += [getattr(p, "offset", 0) for p in model._walk()]
        results[-1] += [p.running_mean for p in model._walk() if isinstance(p, BatchNorm)]
    with pytest.raises(AssertionError):
        assert_same(results[1], results[0])


# --- depth


def kept_bytes(model, x, dy):
    """Return the most memory that a forward and a backward pass took, gradients left out."""
    model.backward(model.forward(x) * 0 + dy)  # the gradients are there from now on
    tracemalloc.start()
    model.backward(model.forward(x))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_200_blocks_is_bounded(monkeypatch):
    """In arrays of x's size: a block alone keeps some 20."""
    monkeypatch.setattr(fastgrad._memory, "SMALLEST", 1 << 40)  # from a pool that would hide what is held
    shape = (64, 8, E)
    x, dy = random(1, shape, np.float32), random(2, shape, np.float32)
    plain = kept_bytes(Sequential(*blocks(20, dropout=0.1)), x, dy) / x.nbytes * 10
    each = kept_bytes(Sequential(*blocks(200, dropout=0.1), checkpoint_every=1), x, dy) / x.nbytes
    root = kept_bytes(Sequential(*blocks(200, dropout=0.1), checkpoint_every=14), x, dy) / x.nbytes
    assert plain > 1500
    assert each < 300
    assert root < plain / 4


def residual_stack(depth, width=E):
    rng = np.random.default_rng(1)
    parts = [
        Residual(Sequential(Linear(width, width, rng=rng), Activation("relu")), "pre", width) for _ in range(depth)
    ]
    return Sequential(*parts, LayerNorm(width), Linear(width, 3, rng=rng))


def transformer_stack(depth, **options):
    parts = [TransformerBlock(E, 2, 16, causal=True, rng=n) for n in range(depth)]
    return Sequential(*parts, LayerNorm(E), Linear(E, 3, rng=0), **options)


def learns(model, shape, steps, lr):
    """Return losses and, of the first step, the norms of the gradients of the first and the last 2-d parameter."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape).astype(np.float32)
    targets = (x[..., 0] > 0).astype(np.int64) + (x[..., 1] > 0)
    optimizer = fastgrad.Adam(model.parameters(), lr=lr, max_norm=1.0)
    losses, norms = [], None
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model.forward(x)
        loss, dlogits = fastgrad.softmax_cross_entropy(logits.reshape(-1, 3), targets.reshape(-1))
        model.backward(dlogits.reshape(logits.shape))
        if norms is None:
            gradients = [p.grad for p in model.parameters() if p.grad.ndim == 2]
            assert all(np.isfinite(p.grad).all() for p in model.parameters())
            norms = float(np.linalg.norm(gradients[0])), float(np.linalg.norm(gradients[-1]))
        assert optimizer.step().skipped is False
        losses.append(float(loss))
    return losses, norms


@pytest.mark.parametrize(("make", "shape", "lr"), [
    (lambda: residual_stack(1000), (64, E), 2e-3),
    (lambda: transformer_stack(200), (16, 8, E), 5e-3),
    (lambda: transformer_stack(200, checkpoint_every=14), (16, 8, E), 5e-3),
], ids=["1000 residual layers", "200 transformer blocks", "200 blocks, checkpointed"])  # fmt: skip
def test_deep_stacks_learn(make, shape, lr):
    losses, (first, last) = learns(make(), shape, 10, lr)
    assert losses[-1] < 0.87 * losses[0]
    assert 1e-4 * last < first < 1e2 * last


def test_a_plain_stack_is_seen_not_to_learn():
    """What the test above would see without the residual connections: the gradient is gone."""
    rng = np.random.default_rng(1)
    parts = [part for _ in range(200) for part in (Linear(E, E, rng=rng), Activation("relu"))]
    _, (first, last) = learns(Sequential(*parts, Linear(E, 3, rng=rng)), (64, E), 2, 2e-3)
    assert not first > 1e-4 * last


def cost(depth):
    """Return calls of Python functions that it takes to build and use a stack: a measure that no neighbour disturbs."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    x = random(1, (4, 2, E), np.float32)
    transformer_stack(1).forward(x)  # what is imported and compiled
    sys.setprofile(count)
    try:
        model = Sequential(*(TransformerBlock(E, 2, 16, rng=n) for n in range(depth)), checkpoint_every=5)
        holder = Sequential(model, Linear(E, E))
        holder.load_state_dict(holder.state_dict())
        holder.backward(holder.forward(x))
        holder.eval().train()
    finally:
        sys.setprofile(None)
    return calls


def test_the_cost_of_depth_is_linear():
    ten, forty = cost(10), cost(40)
    assert forty < 4.2 * ten


def test_depth_takes_no_recursion():
    """A stack deeper than Python's stack: nothing calls itself once for each layer."""
    before = sys.getrecursionlimit()
    model = Sequential(*(Residual(Linear(2, 2, rng=n)) for n in range(400)), checkpoint_every=20)
    x = np.ones((1, 2), np.float32)
    model.backward(model.forward(x))
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    try:
        sys.setrecursionlimit(depth + 60)
        model.backward(model.forward(x))
        model.train().eval().to("cpu").state_dict()
        assert len(model.parameters()) == 800
    finally:
        sys.setrecursionlimit(before)
