"""What a step of an optimizer did."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Return what these of all parameters are called, each differently: by its name, its place, or both."""
    names = [parameter.name or f"params[{index}]" for index, parameter in enumerate(parameters)]
    if len(set(names)) < len(names):
        names = [f"{name} (params[{k}])" if names.count(name) > 1 else name for k, name in enumerate(names)]
    return tuple([names[index] for index in indices])


def update_ratios(changes: np.ndarray) -> np.ndarray:
    """Return the ratio of two l2 norms from their squares, (2, n) to (n,): 0 / 0 is 0 here."""
    moved, before = np.sqrt(changes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moved == 0, 0.0, moved / before)


def blame(names: Sequence[str], norms: np.ndarray) -> str:
    """Say which gradients have a norm that is not finite."""
    bad = [
        f"{name} (norm {norm:g})" for name, norm in zip(names, norms.tolist(), strict=True) if not math.isfinite(norm)
    ]
    return f"the gradient is not finite in {', '.join(bad) or 'no single tensor, but their norm overflows'}"


def hopeless(count: int, what: str) -> FloatingPointError:
    """Return the error of a run of skipped steps; what: of `blame`."""
    return FloatingPointError(
        f"{count} steps in a row were skipped, in the last of them {what}; nothing was changed. Try a smaller lr or "
        f"max_norm, look for a division by zero or a logarithm of it; max_skips=None goes on skipping"
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """Whose numbers stand where in the report of a step on a device, see `kernels.step_gpu.Steps.run`.

    parameters: of the optimizer.
    updates: the indices of the parameters of each update.
    sizes: of these parameters, by index.
    """

    parameters: Sequence[Any]
    updates: list[list[int]]
    sizes: dict[int, int]

    @property
    def indices(self) -> list[int]:
        """Return the parameters that took part, in their order."""
        return sorted(self.sizes)

    def names(self) -> tuple[str, ...]:
        """Return what these parameters are called."""
        return tensor_names(self.parameters, self.indices)

    def columns(self, numbers: np.ndarray, chunk: int) -> np.ndarray:
        """Return what a `Health` is made of, float64 (7, n), out of what lies behind the numbers of a report."""
        indices, place = self.indices, 6 * len(self.sizes)
        found, changes = numbers[:place].reshape(6, len(indices)), np.zeros((2, len(indices)))
        for own in self.updates:
            counts = np.array([-(-self.sizes[index] // chunk) for index in own])
            squares = numbers[place : place + 2 * counts.sum()].reshape(-1, 2)
            place += squares.size
            owners = np.repeat(np.searchsorted(indices, own), counts)
            for row in range(2):
                np.add.at(changes[row], owners, squares[:, row])
        return np.vstack([found, update_ratios(changes)])


class DeviceReport(StepReport):
    """A report that lies on a device, float64, until one of its numbers is read; then all of it comes, in one copy.

    A step that was captured into a graph writes it anew in each replay; what was read once is not read again.
    """

    __slots__ = ("_found", "_max_skips", "_numbers", "_with_health", "contents")
    _found: Any
    _max_skips: int | None
    _numbers: np.ndarray | None
    _with_health: bool
    contents: Contents

    def __init__(self, found: Any, contents: Contents, with_health: bool, max_skips: int | None) -> None:
        values = {
            "_found": found, "contents": contents, "_with_health": with_health, "_max_skips": max_skips,
            "_numbers": None,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _read(self) -> np.ndarray:
        numbers = self._numbers
        if numbers is None:
            numbers = self._found.get()
            object.__setattr__(self, "_numbers", numbers)
        if self._max_skips is not None and numbers[3] >= self._max_skips:
            if not self._with_health:
                raise hopeless(int(numbers[3]), f"the norm of the gradients was {numbers[0]:g}")
            raise hopeless(int(numbers[3]), blame(self.contents.names(), self._columns()[0]))
        return numbers

    def _columns(self) -> np.ndarray:
        from fastgrad.kernels.table_gpu import CHUNK

        assert self._numbers is not None
        return self.contents.columns(self._numbers[4:], CHUNK)

    def _health(self) -> Health | None:
        if not self._with_health:
            return None
        contents = self.contents
        return Health(contents.names, [contents.sizes[index] for index in contents.indices], self._read_columns)

    def _read_columns(self) -> np.ndarray:
        self._read()
        return self._columns()

    grad_norm = property(lambda self: float(self._read()[0]))
    clip_coefficient = property(lambda self: float(self._read()[1]))
    skipped = property(lambda self: bool(self._read()[2] != 0))
    health = property(_health)

    def _host(self) -> StepReport:
        return StepReport(self.grad_norm, self.clip_coefficient, self.skipped, self.health)

    def __eq__(self, other: object) -> bool:
        return self._host() == (other._host() if isinstance(other, DeviceReport) else other)

    def __hash__(self) -> int:
        return hash(self._host())

    def __repr__(self) -> str:
        return repr(self._host())

    def __reduce__(self) -> tuple[Any, ...]:
        return StepReport, (self.grad_norm, self.clip_coefficient, self.skipped, self.health)
