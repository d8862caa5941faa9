"""The honest line: these kernels against naive NumPy under the same trainer, by turns in this process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from fastgrad.training.trainer import Trainer

__all__ = ["Comparison", "compare"]

PAUSE = 0.15


@dataclass(frozen=True)
class Comparison:
    """Median characters per second of `turns` turns of `steps` steps for each backend."""

    cpu: float
    reference: float
    turns: int
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.cpu:,.0f} characters/s with fastgrad kernels, {self.reference:,.0f} with naive NumPy "
            f"(--backend reference): {self.cpu / self.reference:.1f}x, medians of {_count(self.turns, 'turn')} of "
            f"{_count(self.steps, 'step')} each"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def compare(trainer: Trainer, turns: int = 5, steps: int = 10, seconds: float = 12.0) -> Comparison:
    """Time copies of `trainer` on both backends by turns, in about `seconds`: fewer steps and turns where it must be.

    The copies start from the same state and see the same text. The first step of each is not counted: it may compile.
    """
    racers = {backend: trainer.copy(backend) for backend in ("cpu", "reference")}
    _time(racers["cpu"], 1)
    deadline = time.perf_counter() + seconds
    # Nothing compiles in the reference, so that its first step tells how many fit; the other takes half at most.
    pair = 1.5 * _time(racers["reference"], 1)
    steps = max(1, min(steps, int((deadline - time.perf_counter()) / (turns * pair))))
    times: dict[str, list[float]] = {backend: [] for backend in racers}
    for _ in range(turns):
        if times["cpu"] and time.perf_counter() + steps * pair > deadline:
            break
        for backend, racer in racers.items():
            # OpenBLAS's threads spin for some 110 ms behind a product, on the cores that the next turn is to have.
            time.sleep(PAUSE)
            times[backend].append(_time(racer, steps))
    speeds = {
        backend: steps * trainer.characters_per_step / statistics.median(values) for backend, values in times.items()
    }
    return Comparison(speeds["cpu"], speeds["reference"], len(times["cpu"]), steps)


def _time(trainer: Trainer, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    return time.perf_counter() - start
