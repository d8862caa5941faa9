"""What an experiment is given: its size and seed, random numbers, and a loop that shows progress and can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Stopped", "Work", "means"]


class Stopped(Exception):
    """Somebody wants the laboratory to end: raised inside an experiment, whose figures are dropped."""


def _silent(label: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Work:
    """quick: small sizes; seed: of all random numbers; show(label, done, total): called with the progress of a loop;
    stopped: asked before every step whether to end."""

    quick: bool = False
    seed: int = 1
    show: Callable[[str, int, int], None] = _silent
    stopped: Callable[[], bool] = lambda: False

    def rng(self, *key: int) -> np.random.Generator:
        """Return the random numbers of a part of an experiment: the same for a seed and a key, in any order of runs."""
        return np.random.default_rng([self.seed, *key])

    def loop(self, label: str, steps: Any) -> Iterator[Any]:
        """Yield a number of steps, or the items of a sequence. Raises Stopped as soon as somebody asks for it."""
        items = range(steps) if isinstance(steps, int) else list(steps)
        for done, item in enumerate(items):
            if self.stopped():
                raise Stopped
            self.show(label, done, len(items))
            yield item
        self.show(label, len(items), len(items))


def means(values: Sequence[float], window: int = 10) -> list[tuple[int, float]]:
    """Return (last step, mean) of each run of `window` steps; a shorter run at the end counts as well."""
    parts = [values[start : start + window] for start in range(0, len(values), window)]
    return [(index * window + len(part), float(np.mean(part))) for index, part in enumerate(parts)]
