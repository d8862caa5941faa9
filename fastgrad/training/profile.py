"""`fastgrad train --profile`: some steps of the run timed layer by layer, without another bit in their results."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from fastgrad.profiling.model import ModelProfile, profile_of
from fastgrad.profiling.recorder import Recorder, device_of
from fastgrad.training.trainer import Trainer

__all__ = ["StepProfiler"]

# The first steps compile and warm up; so many after them are timed.
SKIPPED, TIMED = 3, 20


class StepProfiler:
    """Times steps SKIPPED + 1 to SKIPPED + TIMED of a run; `step()` goes around each step."""

    def __init__(self, trainer: Trainer) -> None:
        self._recorder = Recorder(trainer.model, device_of(trainer.model))
        self._trainer, self._seen = trainer, 0
        self._hooks = contextlib.ExitStack()

    def step(self) -> AbstractContextManager[object]:
        """Return the context of a training step."""
        self._seen += 1
        if self._seen == SKIPPED + 1:
            recorder, trainer = self._hooks.enter_context(self._recorder), self._trainer
            recorder.watch(trainer.windows, "next", "batch", "")
            recorder.watch(trainer.optimizer, "zero_grad", "zero_grad", "")
            recorder.watch(trainer.model, "loss", "loss", "")
            recorder.watch(trainer.optimizer, "step", "optimizer", "")
        elif self._seen == SKIPPED + TIMED + 1:
            self.close()
        return self._recorder.step() if SKIPPED < self._seen <= SKIPPED + TIMED else contextlib.nullcontext()

    def close(self) -> None:
        """Take the hooks away."""
        self._hooks.close()

    def profile(self) -> ModelProfile | None:
        """Return what was timed, None where the run was too short for it."""
        self.close()
        return profile_of(self._recorder) if self._recorder.steps else None
