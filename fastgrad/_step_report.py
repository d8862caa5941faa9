"""What a step of an optimizer did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastgrad._health import Health


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Of a step on a device the numbers stay there until the first of them is read, which waits for the step.

    grad_norm: the global 2-norm of all gradients, before clipping.
    clip_coefficient: the factor the gradients were taken with: below 1 where clipped, 0 in a step that was skipped.
    skipped: whether nothing was changed because the norm was NaN or infinite.
    health: of the gradients that took part, as they were given, and how far their parameters moved; None where the
        optimizer has `health=False`. Left out of comparisons.
    """

    grad_norm: float
    clip_coefficient: float
    skipped: bool
    health: Health | None = field(default=None, compare=False, repr=False)


def tensor_names(parameters: Sequence[Any], indices: Sequence[int]) -> tuple[str, ...]:
    """Return what these parameters are called, each differently: by its name, its place, or both."""
    names = [parameters[index].name or f"params[{index}]" for index in indices]
    if len(set(names)) < len(names):
        names = [
            f"{name} (params[{index}])" if names.count(name) > 1 else name
            for name, index in zip(names, indices, strict=True)
        ]
    return tuple(names)


def update_ratios(changes: np.ndarray) -> np.ndarray:
    """Return the ratio of two l2 norms from their squares, (2, n) to (n,): 0 / 0 is 0 here."""
    moved, before = np.sqrt(changes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moved == 0, 0.0, moved / before)


class DeviceReport(StepReport):
    """A report that lies on a device, float64 (3,), until one of its numbers is read.

    A step that was captured into a graph writes it anew in each replay; what was read once is not read again.
    """

    __slots__ = ("_found", "_numbers")
    _found: Any
    _numbers: list[float] | None

    def __init__(self, found: Any) -> None:
        object.__setattr__(self, "_found", found)
        object.__setattr__(self, "_numbers", None)

    def _read(self) -> list[float]:
        numbers = self._numbers
        if numbers is None:
            numbers = self._found.get().tolist()
            object.__setattr__(self, "_numbers", numbers)
        return numbers

    grad_norm = property(lambda self: self._read()[0])
    clip_coefficient = property(lambda self: self._read()[1])
    skipped = property(lambda self: self._read()[2] != 0)

    def _host(self) -> StepReport:
        return StepReport(self.grad_norm, self.clip_coefficient, self.skipped)

    def __eq__(self, other: object) -> bool:
        return self._host() == (other._host() if isinstance(other, DeviceReport) else other)

    def __hash__(self) -> int:
        return hash(self._host())

    def __repr__(self) -> str:
        return repr(self._host())

    def __reduce__(self) -> tuple[Any, ...]:
        return StepReport, (self.grad_norm, self.clip_coefficient, self.skipped)
