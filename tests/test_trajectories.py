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


class NormalizedLSTM(nn.Module):
    """An LSTM with layer normalisation, with the names of layers.LayerNormLSTM."""

    def __init__(self, inputs, hidden):
        super().__init__()
        shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden)}
        shapes |= {f"{what}_{of}": (size,) for what in ("gain", "bias")
                   for of, size in (("ih", 4 * hidden), ("hh", 4 * hidden), ("c", hidden))}  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.zeros(shape)))

    def normed(self, a, of):
        gain, bias = self.get_parameter(f"gain_{of}_l0"), self.get_parameter(f"bias_{of}_l0")
        return functional.layer_norm(a, a.shape[-1:], gain, bias)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], self.weight_hh_l0.shape[1])
        ys = []
        for x_t in x:
            sums = self.normed(x_t @ self.weight_ih_l0.T, "ih") + self.normed(h @ self.weight_hh_l0.T, "hh")
            i, f, g, o = sums.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.normed(c, "c").tanh()
            ys.append(h)
        return torch.stack(ys)


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

    def train(self, optimizer, theirs, batch, loss, scheduler=None, *, before=None, behind=None, parts=1):
        """Take the steps; the losses must agree at each, and weights and running statistics at the end.

        before, behind: what torch does to its parameters before and behind a step. parts: of a batch, ours alone.
        """
        ours_loss, theirs_loss = loss
        first = last = None
        for step in range(STEPS):
            x, target = batch(step)
            value = 0.0
            optimizer.zero_grad()
            for x_part, target_part in zip(np.split(x, parts), np.split(target, parts), strict=True):
                of_part, dy = ours_loss(self.model.forward(x_part), target_part)
                self.model.backward(dy)
                value += np.float64(of_part) / parts
            optimizer.step(grad_scale=parts if parts > 1 else None)
            theirs.zero_grad()
            expected = theirs_loss(self.theirs(torch.tensor(x)), torch.tensor(target))
            expected.backward()
            if before:
                before(self.their_parameters.values())
            theirs.step()
            if behind:
                behind(self.their_parameters.values())
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
    "LayerNormLSTM": lambda: (
        [layers.LayerNormLSTM(4, 5, rng=1, **WIDE), Linear(5, 3, rng=2, **WIDE)],
        [NormalizedLSTM(4, 5), nn.Linear(5, 3)], rows(4, BATCH, 4),
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


# kind -> parameters, torch's module
ACTIVATIONS = {
    "sigmoid": ({}, nn.Sigmoid()),
    "tanh": ({}, nn.Tanh()),
    "relu": ({}, nn.ReLU()),
    "leaky_relu": ({"negative_slope": 0.2}, nn.LeakyReLU(0.2)),
    "relu6": ({}, nn.ReLU6()),
    "hardtanh": ({"min_val": 0.0, "max_val": 0.5}, nn.Hardtanh(0.0, 0.5)),  # a ReLU clipped at one half
    "elu": ({"alpha": 0.7}, nn.ELU(0.7)),
    "selu": ({}, nn.SELU()),
    "gelu": ({}, nn.GELU()),
    "silu": ({}, nn.SiLU()),
    "mish": ({}, nn.Mish()),
}


def hidden(kind="tanh", params=None, module=None):
    return (
        [Linear(5, 8, rng=1, **WIDE), Activation(kind, **(params or {})), Linear(8, 3, rng=2, **WIDE)],
        [nn.Linear(5, 8), module or nn.Tanh(), nn.Linear(8, 3)],
    )


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(backend, kind):
    run = Run(backend, *hidden(kind, *ACTIVATIONS[kind]))
    target = random(7, (BATCH, 3))
    run.train(
        SGD(list(run.parameters.values()), lr=0.05, momentum=0.9),
        torch.optim.SGD(run.their_parameters.values(), lr=0.05, momentum=0.9),
        lambda step: (random(100 + step, (BATCH, 5)), target), mean_square(),
    )  # fmt: skip


@torch.no_grad()
def clamp(parameters):
    for p in parameters:
        p.clamp_(-0.2, 0.2)


@torch.no_grad()
def into_a_ball(parameters):
    for p in parameters:
        p *= torch.clamp(0.6 / (p.norm() + 1e-6), max=1.0)


@torch.no_grad()
def rows_into_balls(parameters):
    for p in parameters:
        rows = p if p.ndim == 2 else p[None]  # a bias is one row
        rows *= torch.clamp(0.3 / (rows.norm(dim=1, keepdim=True) + 1e-6), max=1.0)


# name -> options of ours, what torch does before and behind a step
LIMITS = {
    "global norm of the gradients": ({"max_norm": 0.3}, lambda ps: nn.utils.clip_grad_norm_(ps, 0.3), None),
    "range of the weights": ({"weight_range": (-0.2, 0.2)}, None, clamp),
    "norm of each tensor": ({"max_weight_norm": 0.6}, None, into_a_ball),
    "norm of each row": ({"max_weight_norm": 0.3, "weight_norm_axis": 0}, None, rows_into_balls),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(backend, name):
    options, before, behind = LIMITS[name]
    run = Run(backend, *hidden())
    target = random(7, (BATCH, 3))
    run.train(
        Adam(list(run.parameters.values()), lr=0.01, **options),
        torch.optim.Adam(run.their_parameters.values(), lr=0.01),
        lambda step: (random(100 + step, (BATCH, 5)), target), mean_square(), before=before, behind=behind,
    )  # fmt: skip


def test_accumulation(backend):
    run = Run(backend, *hidden())
    target = random(7, (BATCH, 3))
    run.train(
        Adam(list(run.parameters.values()), lr=0.01, max_norm=0.3),
        torch.optim.Adam(run.their_parameters.values(), lr=0.01),
        lambda step: (random(100 + step, (BATCH, 5)), target), mean_square(), parts=3,
        before=lambda ps: nn.utils.clip_grad_norm_(ps, 0.3),
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
