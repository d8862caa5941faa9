"""What a step of an optimizer did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Of a step on a device the numbers stay there until the first of them is read, which waits for the step.

    grad_norm: the global 2-norm of all gradients, before clipping.
    clip_coefficient: the factor the gradients were taken with: below 1 where clipped, 0 in a step that was skipped.
    skipped: whether nothing was changed because the norm was NaN or infinite.
    """

    grad_norm: float
    clip_coefficient: float
    skipped: bool


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
