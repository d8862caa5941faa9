"""Live progress: one display that redraws itself on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from fastgrad.training.trainer import BITS, Trainer

__all__ = ["Goal", "Progress", "duration"]

# Seconds between two refreshes. Drawing takes 2 to 4 ms, so that this costs training about 1 %.
TERMINAL_SECONDS, PLAIN_SECONDS = 0.4, 5.0

# Steps that the training loss and the clip rate are averaged over.
WINDOW = 50

FIRST_STEP = "first step: kernels are loaded, or compiled where they never ran before ..."


class Goal:
    """When training is over: after so many steps or seconds in total, whichever comes first; None is no limit."""

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self.steps, self.seconds = steps, seconds

    def fraction(self, step: int, seconds: float) -> float:
        """Return how much of the way is done, 1 or more at the end."""
        by_step = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.seconds is None else seconds / self.seconds
        return max(by_step, by_time)

    def seconds_left(self, step: int, seconds: float, steps_per_second: float) -> float | None:
        """Return the estimate of what is left, None while the speed is not known."""
        ends = [] if self.seconds is None else [self.seconds - seconds]
        if self.steps is not None and steps_per_second > 0:
            ends.append((self.steps - step) / steps_per_second)
        return max(0.0, min(ends)) if ends else None


class Progress:
    """A context manager around the training loop; `update` after each step draws when it is time to.

    It writes to stderr, so that stdout holds the results alone.
    """

    def __init__(self, trainer: Trainer, goal: Goal) -> None:
        self._trainer, self._goal = trainer, goal
        self._live: Any = None
        self._next_draw = 0.0
        # (clock, step) at the last refreshes: what the speed is taken over.
        self._marks: deque[tuple[float, int]] = deque(maxlen=24)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # A Ctrl-C is handled by the loop, and rich's own refresh thread would take time from the kernels.
            console = Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
            self._live.update(FIRST_STEP, refresh=True)
        else:
            self._print(FIRST_STEP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, seconds: float, final: bool = False) -> None:
        """Draw when a refresh is due (or with `final` at once); `seconds` is the time trained so far."""
        now = time.monotonic()
        if now < self._next_draw and not final:
            return
        self._next_draw = now + (PLAIN_SECONDS if self._live is None else TERMINAL_SECONDS)
        self._marks.append((now, self._trainer.step))
        if self._live is None:
            self._print(" | ".join(f"{name} {value}" for name, value in self._facts(seconds)))
        else:
            self._live.update(self._table(seconds), refresh=True)

    def _facts(self, seconds: float) -> list[tuple[str, str]]:
        """Return (name, value) of everything worth watching."""
        trainer, goal = self._trainer, self._goal
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        speed = (last - first) / (end - start) if end > start else 0.0
        losses = trainer.history["loss"][-WINDOW:]
        coefficients = trainer.history["clip_coefficient"][-WINDOW:]
        left = goal.seconds_left(trainer.step, seconds, speed)
        facts = [
            ("step", f"{trainer.step:,}" + (f"/{goal.steps:,}" if goal.steps else "")),
            ("characters/s", f"{speed * trainer.characters_per_step:,.0f}" if speed else "-"),
            ("training", f"{sum(losses) / len(losses) * BITS:.3f} bits"),
            ("validation", f"{trainer.validations[-1][1]:.3f} bits" if trainer.validations else "-"),
            ("grad norm", f"{trainer.history['grad_norm'][-1]:.3f}"),
            ("clipped", f"{sum(c < 1.0 for c in coefficients) / len(coefficients):.0%}"),
            ("left", "-" if left is None else duration(left)),
        ]
        if trainer.optimizer.skipped_steps:
            facts.insert(-1, ("skipped", f"{trainer.optimizer.skipped_steps}"))
        return facts

    def _table(self, seconds: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        facts = self._facts(seconds)
        for name, _ in facts:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(*(value for _, value in facts))
        done = min(1.0, self._goal.fraction(self._trainer.step, seconds))
        # A bar ends without a line break unless it is a cell. The last columns stay free: a terminal that echoes ^C
        # there would wrap, and the redraw miss its place by a line.
        display = Table.grid()
        width = max(10, self._live.console.width - 3)
        display.add_row(ProgressBar(total=1.0, completed=done, width=width))
        display.add_row(table)
        return display

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return 75.2 as "1:15" and 3700 as "1:01:40"."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
