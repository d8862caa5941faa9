"""Schedules of the learning rate: torch's values, attached to optimizers, carried by their state."""

from __future__ import annotations

import math

import backends
import numpy as np
import pytest
from support import random
from tolerances import assert_close

from fastgrad import schedules
from fastgrad.optim import SGD, Adam, AdamW, RMSprop

STEPS = 60


@pytest.fixture(autouse=True)
def optimizers_on_the_device(request, monkeypatch):
    """Where a test runs on a device, so do its optimizers."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") in backends.DEVICES:
        backends.divert_optimizers(monkeypatch, request.getfixturevalue("backend"))


def noam(step, width=64, warmup=9):
    return width**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)


# Ours, and torch's from a base rate of 0.3.
CASES = {
    "constant": (schedules.Constant(0.3), lambda s, o: s.ConstantLR(o, 1.0, 1)),
    "step": (schedules.Step(0.3, 7, 0.5), lambda s, o: s.StepLR(o, 7, 0.5)),
    "cosine": (schedules.Cosine(0.3, STEPS, 0.01), lambda s, o: s.CosineAnnealingLR(o, STEPS, 0.01)),
    "restarts": (
        schedules.Cosine(0.3, 7, 0.01, restarts=True),
        lambda s, o: s.CosineAnnealingWarmRestarts(o, 7, 1, 0.01),
    ),
    "growing": (
        schedules.Cosine(0.3, 7, 0.01, restarts=True, growth=2),
        lambda s, o: s.CosineAnnealingWarmRestarts(o, 7, 2, 0.01),
    ),
    "warm-up": (schedules.Linear(0.03, 0.3, 11), lambda s, o: s.LinearLR(o, 0.1, 1.0, 11)),
    "noam": (
        schedules.InverseSqrt((64 * 9) ** -0.5, 9),
        lambda s, o: s.LambdaLR(o, lambda step: noam(step) / 0.3),
    ),
    "chain": (
        schedules.chain((11, schedules.Linear(0.03, 0.3, 11)), schedules.Cosine(0.3, STEPS - 11)),
        lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 11), s.CosineAnnealingLR(o, STEPS - 11)], [11]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_values_are_torchs(name):
    torch = pytest.importorskip("torch")
    ours, theirs = CASES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = theirs(torch.optim.lr_scheduler, optimizer)
    for step in range(STEPS):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_ends():
    assert schedules.Cosine(0.3, 10, 0.1)(10_000) == pytest.approx(0.1)
    assert schedules.Linear(0.3, 0.1, 10)(10_000) == 0.1
    assert schedules.Linear(0.0, 0.1, 10)(0) == 0.0
    warm = schedules.InverseSqrt(0.2, 10)
    assert warm(9) == pytest.approx(0.2) and warm(39) == pytest.approx(0.1) and warm(0) == pytest.approx(0.02)
    three = schedules.chain((2, schedules.Constant(1)), (3, schedules.Constant(2)), schedules.Step(3, 1, 0.5))
    assert [three(step) for step in range(8)] == [1, 1, 2, 2, 2, 3, 1.5, 0.75]


@pytest.mark.parametrize("optimizer", [SGD, RMSprop, Adam, AdamW])
def test_an_optimizer_follows_its_schedule(backend, optimizer):
    """As torch with a scheduler, one group with a schedule of its own."""
    torch = pytest.importorskip("torch")
    starts = [random(k, 5) for k in range(2)]
    ours, theirs = [a.copy() for a in starts], [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in starts]
    schedule = CASES["chain"][0]
    mine = optimizer([{"params": ours[:1]}, {"params": ours[1:], "lr": schedules.Step(0.1, 3)}], lr=schedule)
    other = getattr(torch.optim, optimizer.__name__)([{"params": [p]} for p in theirs], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(other, [schedule, schedules.Step(0.1, 3)])
    for step in range(15):
        grads = [random(100 + 2 * step + k, 5) for k in range(2)]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        mine.step(grads)
        assert mine.param_groups[0]["lr"] == schedule(step)
        other.step()
        scheduler.step()
        if step == 7:  # goes on elsewhere, from its state
            saved = mine.state_dict()
            assert saved["scheduled_steps"] == 8
            groups = [{"params": ours[:1]}, {"params": ours[1:], "lr": schedules.Step(0.1, 3)}]
            mine = optimizer(groups, lr=schedule)
            mine.load_state_dict(saved)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b.detach().numpy(), "torch", magnitude="largest")


def test_a_skipped_step_counts_and_a_refused_one_does_not():
    for policy, count in (("skip", 1), ("raise", 0)):
        optimizer = SGD([np.zeros(2)], lr=schedules.Step(1.0, 1), nonfinite=policy)
        if policy == "raise":
            with pytest.raises(FloatingPointError):
                optimizer.step([np.array([np.nan, 0])])
        else:
            optimizer.step([np.array([np.nan, 0])])
        assert optimizer.scheduled_steps == count


def test_refresh_brings_the_rate_of_the_step():
    optimizer = SGD([np.zeros(2)], lr=lambda step: 0.5**step)
    optimizer.scheduled_steps = 3
    optimizer.refresh()
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: schedules.Constant(-1), ValueError, "lr: expected a finite number >= 0, got -1.0"),
        (lambda: schedules.Step(0.1, 0), ValueError, "every: expected 1 or more steps, got 0"),
        (lambda: schedules.Linear(0, math.nan, 3), ValueError, "end: expected a finite number"),
        (lambda: schedules.Cosine(0.1, 3.0), TypeError, "steps: expected an integer, got float"),
        (lambda: schedules.InverseSqrt(0.1, 0), ValueError, "warmup: expected 1 or more steps, got 0"),
        (lambda: schedules.chain(), ValueError, "parts: expected pairs"),
        (
            lambda: schedules.chain(schedules.Constant(1), schedules.Constant(1)),
            TypeError,
            r"parts\[0\]: expected a pair",
        ),
        (
            lambda: schedules.chain((1, schedules.Constant(1)), 0.1),
            TypeError,
            r"parts\[1\]: expected a schedule, got 0.1",
        ),
        (lambda: SGD([np.zeros(1)], lr=lambda step: -1.0), ValueError, "lr: expected a finite number >= 0, got -1.0"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
