"""Fifty steps of training in float64 beside torch: every optimizer on one network, and every layer and loss."""

from __future__ import annotations

import numpy as np
import pytest
from backends import DEVICES, placed
from support import random
from tolerances import assert_close

from fastgrad import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    binary_cross_entropy_with_logits,
    layers,
    mse,
    schedules,
    softmax_cross_entropy,
)
from fastgrad.layers import Activation, Linear, Sequential

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

STEPS, BATCH = 50, 6
WIDE = {"dtype": np.float64}


@pytest.fixture(autouse=True)
def one_thread_of_torch():
    """The threads of its pool spin while fastgrad computes, and the other way round: ten times as long on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class First(nn.ModuleList):
    """Modules one behind the other; of (y, state) y goes on."""

    def forward(self, x):
        for module in self:
            x = module(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Skip(nn.Module):
    """x + layer(norm(x)), with the names of layers.Residual."""

    def __init__(self, layer, norm):
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x):
        return x + self.layer(self.norm(x))


class Run:
    """A model and its twin in torch, from the same weights."""

    def __init__(self, backend, ours, theirs):
        theirs = First(theirs).double()
        model = Sequential(*ours)
        values = {name: torch.tensor(value) for name, value in model.state_dict().items()}
        theirs.load_state_dict(values)
        self.model, self.theirs = placed(model, backend), theirs
        parameters = (self.model._layer if backend in DEVICES else model).named_parameters()
        self.parameters = dict(parameters)
        self.their_parameters = dict(theirs.named_parameters())
        assert list(self.parameters) == list(self.their_parameters)

    def train(self, optimizer, theirs, batch, loss, scheduler=None):
        """Take the steps; the losses must agree at each, and weights and running statistics at the end."""
        ours_loss, theirs_loss = loss
        first = last = None
        for step in range(STEPS):
            x, target = batch(step)
            value, dy = ours_loss(self.model.forward(x), target)
            optimizer.zero_grad()
            self.model.backward(dy)
            optimizer.step()
            theirs.zero_grad()
            expected = theirs_loss(self.theirs(torch.tensor(x)), torch.tensor(target))
            expected.backward()
            theirs.step()
            if scheduler is not None:
                scheduler.step()
            assert_close(np.float64(value), expected.item(), "trajectory", label=f"loss of step {step}")
            first, last = first or float(value), float(value)
        assert last != first
        for name, value in self.model.state_dict().items():
            wanted = self.theirs.state_dict()[name].numpy()
            assert_close(value, wanted, "trajectory", magnitude="largest", dtype=np.float64, label=name)


def mean_square():
    return mse, functional.mse_loss


# name -> ours, torch's, options
OPTIMIZERS = {
    "SGD": (SGD, torch.optim.SGD, {}),
    "momentum": (SGD, torch.optim.SGD, {"momentum": 0.9}),
    "Nesterov": (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "RMSprop": (RMSprop, torch.optim.RMSprop, {}),
    "RMSprop with momentum": (RMSprop, torch.optim.RMSprop, {"momentum": 0.5}),
    "centred RMSprop": (RMSprop, torch.optim.RMSprop, {"centered": True}),
    "Adam": (Adam, torch.optim.Adam, {}),
    "AMSGrad": (Adam, torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (AdamW, torch.optim.AdamW, {}),
    "AdamW with AMSGrad": (AdamW, torch.optim.AdamW, {"amsgrad": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_with_groups_and_schedules(backend, name):
    ours, theirs, options = OPTIMIZERS[name]
    run = Run(
        backend,
        [Linear(5, 8, rng=1, **WIDE), Activation("tanh"), Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)],
    )
    rates = [
        schedules.chain((10, schedules.Linear(0.0, 0.02, 10)), schedules.Cosine(0.02, 40)), schedules.Step(0.01, 15)
    ]  # fmt: skip

    def groups(parameters):
        weights, biases = ([p for n, p in parameters.items() if n.endswith(end)] for end in ("weight", "bias"))
        return [{"params": weights, "weight_decay": 0.05}, {"params": biases, "weight_decay": 0.0}]

    mine = groups(run.parameters)
    for group, rate in zip(mine, rates, strict=True):
        group["lr"] = rate
    other = theirs(groups(run.their_parameters), lr=1.0, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(other, rates)
    target = random(7, (BATCH, 3))
    run.train(
        ours(mine, **options), other, lambda step: (random(100 + step, (BATCH, 5)), target), mean_square(), scheduler
    )


def rows(*shape):
    return lambda step: random(100 + step, shape)


def words(*shape):
    return lambda step: np.random.default_rng(step).integers(0, 7, shape)


def inner():
    return [Linear(4, 6, rng=5, **WIDE), Activation("gelu"), Linear(6, 4, rng=6, **WIDE)]


# name -> ours, torch's, what makes a batch. A bias ahead of a BatchNorm has a gradient of rounding errors, which Adam
# scales up: there is none.
LAYERS = {
    "Linear": lambda: ([Linear(4, 3, rng=1, **WIDE)], [nn.Linear(4, 3)], rows(BATCH, 4)),
    "Embedding": lambda: (
        [layers.Embedding(7, 4, rng=1, **WIDE), Linear(4, 3, rng=2, **WIDE)], [nn.Embedding(7, 4), nn.Linear(4, 3)],
        words(BATCH),
    ),
    "LSTM": lambda: (
        [layers.LSTM(4, 5, rng=1, **WIDE), Linear(5, 3, rng=2, **WIDE)], [nn.LSTM(4, 5), nn.Linear(5, 3)],
        rows(4, BATCH, 4),
    ),
    "bidirectional LSTM of two layers": lambda: (
        [layers.LSTM(4, 2, 2, True, rng=1, **WIDE), Linear(4, 3, rng=2, **WIDE)],
        [nn.LSTM(4, 2, 2, bidirectional=True), nn.Linear(4, 3)], rows(3, BATCH, 4),
    ),
    "GRU": lambda: (
        [layers.Embedding(7, 4, rng=3, **WIDE), layers.GRU(4, 5, rng=1, **WIDE), Linear(5, 3, rng=2, **WIDE)],
        [nn.Embedding(7, 4), nn.GRU(4, 5), nn.Linear(5, 3)], words(4, BATCH),
    ),
    "BatchNorm": lambda: (
        [Linear(4, 8, bias=False, rng=1, **WIDE), layers.BatchNorm(8, **WIDE), Activation("silu"),
         Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 3)], rows(BATCH, 4),
    ),
    "LayerNorm": lambda: (
        [Linear(4, 8, rng=1, **WIDE), layers.LayerNorm(8, **WIDE), Activation("elu"), Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(4, 8), nn.LayerNorm(8), nn.ELU(), nn.Linear(8, 3)], rows(BATCH, 4),
    ),
    "PReLU": lambda: (
        [Linear(4, 8, rng=1, **WIDE), layers.PReLU(8, **WIDE), Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 3)], rows(BATCH, 4),
    ),
    "Residual": lambda: (
        [layers.Residual(Sequential(*inner()), "pre", 4), Linear(4, 3, rng=2, **WIDE)],
        [Skip(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)), nn.LayerNorm(4)), nn.Linear(4, 3)],
        rows(BATCH, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(backend, name):
    ours, theirs, inputs = LAYERS[name]()
    run = Run(backend, ours, theirs)
    shape = (*(inputs(0).shape if inputs(0).dtype.kind == "i" else inputs(0).shape[:-1]), 3)
    target = random(7, shape)
    run.train(
        Adam(list(run.parameters.values()), lr=0.01), torch.optim.Adam(run.their_parameters.values(), lr=0.01),
        lambda step: (inputs(step), target), mean_square(),
    )  # fmt: skip


LOSSES = {
    "cross-entropy": (
        softmax_cross_entropy, functional.cross_entropy, np.array([0, 2, 1, 1, 0, 2]),
    ),
    "label smoothing": (
        lambda y, t: softmax_cross_entropy(y, t, label_smoothing=0.1),
        lambda y, t: functional.cross_entropy(y, t, label_smoothing=0.1), np.array([0, 2, 1, 1, 0, 2]),
    ),
    "an ignored index": (
        lambda y, t: softmax_cross_entropy(y, t, ignore_index=-1, label_smoothing=0.05),
        lambda y, t: functional.cross_entropy(y, t, ignore_index=-1, label_smoothing=0.05),
        np.array([0, -1, 1, -1, 0, 2]),
    ),
    "binary cross-entropy": (
        binary_cross_entropy_with_logits, functional.binary_cross_entropy_with_logits,
        np.random.default_rng(3).random((BATCH, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(backend, name):
    ours, theirs, target = LOSSES[name]
    run = Run(
        backend,
        [Linear(5, 8, rng=1, **WIDE), Activation("mish"), Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(5, 8), nn.Mish(), nn.Linear(8, 3)],
    )
    run.train(
        Adam(list(run.parameters.values()), lr=0.01), torch.optim.Adam(run.their_parameters.values(), lr=0.01),
        lambda step: (random(100 + step, (BATCH, 5)), target), (ours, theirs),
    )  # fmt: skip


def test_a_planted_fault_is_caught():
    """A weight decay that is coupled in one and not in the other."""
    run = Run("cpu", [Linear(4, 3, rng=1, **WIDE)], [nn.Linear(4, 3)])
    target = random(7, (BATCH, 3))
    with pytest.raises(AssertionError):
        run.train(
            AdamW(list(run.parameters.values()), lr=0.01, weight_decay=0.01),
            torch.optim.Adam(run.their_parameters.values(), lr=0.01, weight_decay=0.01),
            lambda step: (random(100 + step, (BATCH, 4)), target), mean_square(),
        )  # fmt: skip
