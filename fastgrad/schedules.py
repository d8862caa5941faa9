"""Learning rates that change from step to step: plain objects, schedule(step) -> lr.

Steps count from 0: the first step of training takes schedule(0). A schedule has no state, so that any step may be asked
for, and any function of the step will do in its place. Given to an optimizer as `lr`, or as the "lr" of a parameter
group, it is asked before each step; the optimizer counts the steps, and its state_dict carries the count.

    optimizer = AdamW(params, lr=schedules.chain((500, schedules.Linear(0.0, 3e-4, 500)), schedules.Cosine(3e-4, 9500)))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastgrad._checks import integer, number

__all__ = ["Chain", "Constant", "Cosine", "InverseSqrt", "Linear", "Schedule", "Step", "chain"]

Schedule = Callable[[int], float]


def _steps(name: str, value: Any, low: int = 1) -> None:
    integer(name, value, low, " steps")


@dataclass(frozen=True)
class Constant:
    """The same rate in every step."""

    lr: float

    def __post_init__(self) -> None:
        number("lr", self.lr, 0.0)

    def __call__(self, step: int) -> float:
        return float(self.lr)


@dataclass(frozen=True)
class Step:
    """lr * factor^(step // every), as torch.optim.lr_scheduler.StepLR."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        number("lr", self.lr, 0.0)
        number("factor", self.factor, 0.0)
        _steps("every", self.every)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in `steps` steps along a line, then `end`: the warm-up, or a decay to 0.

    Step 0 takes `start` itself, as torch.optim.lr_scheduler.LinearLR.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        number("start", self.start, 0.0)
        number("end", self.end, 0.0)
        _steps("steps", self.steps)

    def __call__(self, step: int) -> float:
        share = min(step / self.steps, 1.0)
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True)
class Cosine:
    """lowest + (lr - lowest) (1 + cos(pi t / steps)) / 2, t the step; `lowest` from t = steps on.

    With restarts it begins again at lr after `steps` steps, and each further period is `growth` times as long, as
    torch.optim.lr_scheduler.CosineAnnealingWarmRestarts; without as CosineAnnealingLR up to its end.
    Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.
    """

    lr: float
    steps: int
    lowest: float = 0.0
    restarts: bool = False
    growth: int = 1

    def __post_init__(self) -> None:
        number("lr", self.lr, 0.0)
        number("lowest", self.lowest, 0.0)
        _steps("steps", self.steps)
        _steps("growth", self.growth)

    def __call__(self, step: int) -> float:
        at, period = step, self.steps
        if not self.restarts:
            at = min(at, period)
        elif self.growth == 1:
            at %= period
        else:
            while at >= period:
                at, period = at - period, period * self.growth
        return self.lowest + (self.lr - self.lowest) * (1 + math.cos(math.pi * at / period)) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """lr * min((step + 1) / warmup, sqrt(warmup / (step + 1))): a line up to lr, then the inverse square root.

    With lr = (width * warmup)^-0.5 it is that of Vaswani et al., Attention Is All You Need, 2017 ("Noam").
    """

    lr: float
    warmup: int

    def __post_init__(self) -> None:
        number("lr", self.lr, 0.0)
        _steps("warmup", self.warmup)

    def __call__(self, step: int) -> float:
        return self.lr * min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


@dataclass(frozen=True)
class Chain:
    """Each of `first` for its number of steps, then `last`; each counts its steps from 0. Made by `chain`."""

    first: tuple[tuple[int, Schedule], ...]
    last: Schedule

    def __call__(self, step: int) -> float:
        for steps, schedule in self.first:
            if step < steps:
                return schedule(step)
            step -= steps
        return self.last(step)


def chain(*parts: Any) -> Chain:
    """Return one schedule after another, as torch.optim.lr_scheduler.SequentialLR.

    Args:
        parts: pairs (steps, schedule) and last a schedule alone: chain((500, warm_up), decay).

    Raises:
        TypeError: a part is something else.
        ValueError: no parts, or less than one step.
    """
    if not parts:
        raise ValueError("parts: expected pairs (steps, schedule) and last a schedule, got nothing")
    *pairs, last = parts
    for place, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise TypeError(f"parts[{place}]: expected a pair (steps, schedule), got {pair!r}")
        _steps(f"parts[{place}][0]", pair[0])
    if not callable(last):
        raise TypeError(f"parts[{len(pairs)}]: expected a schedule, got {last!r}")
    return Chain(tuple(pairs), last)
