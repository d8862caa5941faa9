"""The honest line: these kernels against naive NumPy under the same trainer, by turns in this process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from fastgrad.training.trainer import Trainer

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Median characters per second of `turns` turns of `steps` steps for each backend."""

    cpu: float
    reference: float
    turns: int
    steps: int

    def __str__(self) -> str:
        plural = "s" if self.steps > 1 else ""
        return (
            f"{self.cpu:,.0f} characters/s with fastgrad kernels, {self.reference:,.0f} with naive NumPy "
            f"(--backend reference): {self.cpu / self.reference:.1f}x, medians of {self.turns} turns of "
            f"{self.steps} step{plural} each"
        )


def compare(trainer: Trainer, turns: int = 5, steps: int = 10, seconds: float = 12.0) -> Comparison:
    """Time copies of `trainer` on both backends by turns; fewer steps in a turn where `seconds` would not do.

    The copies start from the same state and see the same text. Their first two steps are not counted: the first may
    compile, the second tells how many steps fit.
    """
    racers = {backend: trainer.copy(backend) for backend in ("cpu", "reference")}
    for racer in racers.values():
        racer.train_step()
    one = sum(_time(racer, 1) for racer in racers.values())
    steps = max(1, min(steps, int(seconds / (turns * one))))
    times: dict[str, list[float]] = {backend: [] for backend in racers}
    start = time.perf_counter()
    for turn in range(turns):
        # On a machine that others have made slow meanwhile, three turns have to do.
        if turn >= 3 and time.perf_counter() - start > seconds:
            turns = turn
            break
        for backend, racer in racers.items():
            times[backend].append(_time(racer, steps))
    speeds = {
        backend: steps * trainer.characters_per_step / statistics.median(values) for backend, values in times.items()
    }
    return Comparison(speeds["cpu"], speeds["reference"], turns, steps)


def _time(trainer: Trainer, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    return time.perf_counter() - start
