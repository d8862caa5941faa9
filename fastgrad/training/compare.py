"""The honest line: these kernels against naive NumPy under the same trainer, by turns in this process.

A trainer on a GPU is compared with the kernels of the CPU instead.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from fastgrad.training.trainer import Trainer

__all__ = ["Comparison", "compare"]

PAUSE = 0.15


@dataclass(frozen=True)
class Comparison:
    """Median characters per second of `turns` turns of `steps` steps for two backends, the first the one in question.

    backends: ("cpu", "reference") or ("gpu", "cpu"); speeds: of each.
    """

    backends: tuple[str, str]
    speeds: tuple[float, float]
    turns: int
    steps: int

    def __str__(self) -> str:
        ours, other = self.speeds
        if self.backends[0] == "gpu":
            what = f"{ours:,.0f} characters/s on the GPU, {other:,.0f} on the CPU (--backend cpu)"
        else:
            what = (
                f"{ours:,.0f} characters/s with fastgrad kernels, {other:,.0f} with naive NumPy (--backend reference)"
            )
        turns, steps = _count(self.turns, "turn"), _count(self.steps, "step")
        return f"{what}: {ours / other:.1f}x, medians of {turns} of {steps} each"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def compare(trainer: Trainer, turns: int = 5, steps: int = 10, seconds: float = 12.0) -> Comparison:
    """Time copies of `trainer` on two backends by turns, in about `seconds`: fewer steps and turns where it must be.

    The copies start from the same state and see the same text. The first step of each is not counted: it may compile.
    """
    ours, other = backends = ("gpu", "cpu") if trainer.backend == "gpu" else ("cpu", "reference")
    racers = {backend: trainer.copy(backend) for backend in backends}
    # What is free in a kernel takes six passes in naive NumPy, and nobody asks for it there.
    racers[other].optimizer.health = other == "cpu"
    _time(racers[ours], 1)
    if other == "cpu":
        _time(racers[other], 1)
    deadline = time.perf_counter() + seconds
    # Nothing compiles in it any more, so that its next step tells how many fit; the faster one takes half at most.
    pair = 1.5 * _time(racers[other], 1)
    steps = max(1, min(steps, int((deadline - time.perf_counter()) / (turns * pair))))
    times: dict[str, list[float]] = {backend: [] for backend in racers}
    for _ in range(turns):
        if times[ours] and time.perf_counter() + steps * pair > deadline:
            break
        for backend, racer in racers.items():
            # OpenBLAS's threads spin for some 110 ms behind a product, on the cores that the next turn is to have.
            time.sleep(PAUSE)
            times[backend].append(_time(racer, steps))
    speeds = [steps * trainer.characters_per_step / statistics.median(times[backend]) for backend in backends]
    return Comparison(backends, (speeds[0], speeds[1]), len(times[ours]), steps)


def _time(trainer: Trainer, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    _ = trainer.history  # waits for a GPU
    return time.perf_counter() - start
