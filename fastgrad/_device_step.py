"""The step of an optimizer whose parameters lie on a device; see kernels/step_gpu.py for what is launched.

A step that is given the very arrays of the one before takes the host 40 us for 148 tensors, launches left out; checking
them and finding their tables 1.7 ms, on the emulated device.
"""

from __future__ import annotations

import operator
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgrad._arrays import copy_like, to_host
from fastgrad._dispatch import kernels
from fastgrad._step_report import Contents, DeviceReport, StepReport, blame, tensor_names
from fastgrad._tensor_lists import TensorSets
from fastgrad.clipping import clip_coefficient, project, weight_range

if TYPE_CHECKING:
    from fastgrad._optimizer import Optimizer


class _DeviceLaunch(NamedTuple):
    """One launch of a step before the check: the variant of its kernel, for which parameters, the lists."""

    variant: dict[str, bool]
    indices: list[int]
    sets: list[tuple[str, list[Any], bool]]


class _Known(NamedTuple):
    """The step before: the groups' variants, all data and gradients, its tables, its launches."""

    variants: list[dict[str, bool]]
    arrays: list[Any]
    plan: Any
    updates: list[Any]
    contents: Contents


def _alive(reference: Any) -> Any:
    """Return the array of a weak reference; the reference itself, which is no array, once that is gone."""
    if reference is None:
        return None
    array = reference()
    return reference if array is None else array


class OnDevice:
    """The step of an optimizer whose parameters lie on a device; see kernels/step_gpu.py.

    The arrays of a parameter's state are in the optimizer's `_state` as always. How many steps it has taken is on the
    device: what was skipped there is known there.
    """

    def __init__(self, optimizer: Optimizer, like: Any) -> None:
        self._optimizer = optimizer
        groups = [place for place, group in enumerate(optimizer.param_groups) for _ in group["params"]]
        self._groups = groups
        stem, _, _ = optimizer._rule(optimizer.param_groups[0])
        op, self._module = kernels(stem, like), kernels("step", like)
        self._steps = self._module.Steps(op.UPDATE, op.FINISH, like, groups)
        self._known: _Known | None = None
        self._unscale = 1.0  # of the step before: a graph goes on with it
        self._tell()

    def _tell(self) -> None:
        self._known = None
        # Bring what the host knows to the device: a state that was loaded, or used in host memory before.
        optimizer, xp = self._optimizer, self._steps.device.xp
        for entry, parameter in zip(optimizer._state, optimizer._parameters, strict=True):
            for key, value in entry.items():
                if key != "step" and type(value) is not type(parameter.data):
                    entry[key] = copy_like(value, parameter.data)
        # SGD keeps no count that torch would know: what has a buffer has taken a step.
        counts = [entry.pop("step", int(bool(entry))) for entry in optimizer._state]
        self._steps.steps[...] = xp.asarray(np.array(counts, np.int64))
        self._steps.skipped[...] = xp.asarray(np.array([optimizer._skipped, optimizer._skips_in_a_row], np.int64))

    def adopt(self) -> None:
        """Go on from the state that the optimizer has loaded."""
        self._tell()

    def leave(self) -> None:
        """Hand everything back to the optimizer, in host memory."""
        optimizer = self._optimizer
        optimizer._skipped, optimizer._skips_in_a_row = self._steps.skipped.get().tolist()
        optimizer._state = [
            {key: value if key == "step" else to_host(value) for key, value in entry.items()}
            for entry in self.entries()
        ]

    def skipped_steps(self) -> int:
        return int(self._steps.skipped.get()[0])

    def entries(self) -> list[dict[str, Any]]:
        """Return the state of each parameter as it is in host memory: none before its first step."""
        counted = "step" in self._optimizer._state_entries
        return [
            ({"step": steps, **entry} if counted else dict(entry)) if steps else {}
            for steps, entry in zip(self._steps.steps.get().tolist(), self._optimizer._state, strict=True)
        ]

    def refresh(self) -> None:
        optimizer = self._optimizer
        numbers = [(weight_range(group), optimizer._rule(group)[1]) for group in optimizer.param_groups]
        self._steps.set(optimizer.max_norm, optimizer.nonfinite, self._unscale, numbers)

    def step(self, grads: list[Any], unscale: float) -> StepReport:
        optimizer = self._optimizer
        self._unscale = unscale
        for group in optimizer.param_groups:
            optimizer._check_group(group)
        given = [parameter.data for parameter in optimizer._parameters] + grads
        variants = [optimizer._rule(group)[2] for group in optimizer.param_groups]
        known = self._known
        # An array on a device is for life what it is, up to its shape: the very same ones need no second check.
        if (
            known is not None
            and known.plan.on == self._steps.stream()
            and known.variants == variants
            and all(map(operator.is_, map(_alive, known.arrays), given))
        ):
            checked, plan = None, known.plan
            updates = [one.with_grads(grads) for one in known.updates]
        else:
            self._known = None
            launches = self._launches(grads, variants)
            if not launches:
                limit = optimizer.max_norm
                return StepReport(0.0, 1.0 if limit is None else clip_coefficient(0.0, limit), False)
            checked = TensorSets([launch.sets for launch in launches])
            updates = [
                self._module.Update(lists, launch.indices, launch.variant)
                for lists, launch in zip(checked.sets, launches, strict=True)
            ]
            plan = self._module.plan_of(updates)
        self.refresh()
        found = self._steps.run(plan, updates, optimizer.health)
        report = DeviceReport(found, self._contents(updates), optimizer.health, optimizer.max_skips)
        self._project(updates)
        if optimizer.nonfinite == "raise" and report.skipped:
            raise FloatingPointError(f"{self._blame()}; nothing was changed")
        if checked is not None:
            checked.done()
            # Lists that hold copies of strided arrays are other lists than those that were given.
            if all(
                mine is entries
                for launch, lists in zip(launches, checked.sets, strict=True)
                for (_, entries, _), mine in zip(launch.sets, lists, strict=True)
            ):
                arrays = [None if array is None else weakref.ref(array) for array in given]
                self._known = _Known(variants, arrays, plan, [one.without_grads() for one in updates], report.contents)
        return report

    def _launches(self, grads: list[Any], variants: list[dict[str, bool]]) -> list[_DeviceLaunch]:
        # Groups of one variant are one launch.
        optimizer = self._optimizer
        chosen: dict[Any, tuple[dict[str, bool], list[str], list[int]]] = {}
        start = 0
        for group, variant in zip(optimizer.param_groups, variants, strict=True):
            end = start + len(group["params"])
            indices = [index for index in range(start, end) if grads[index] is not None]
            start = end
            if indices:
                chosen.setdefault(tuple(variant.values()), (variant, optimizer._used(group), []))[2].extend(indices)
        launches = []
        for variant, keys, indices in chosen.values():
            data = [optimizer._parameters[index].data for index in indices]
            own = [(key, [self._array(index, key) for index in indices], True) for key in keys]
            sets = [("params", data, True), ("grads", [grads[index] for index in indices], False), *own]
            launches.append(_DeviceLaunch(variant, indices, sets))
        return launches

    def _array(self, index: int, key: str) -> Any:
        entry = self._optimizer._state[index]
        if key not in entry:
            data = self._optimizer._parameters[index].data
            entry[key] = self._steps.device.xp.zeros(data.shape, data.dtype)
        return entry[key]

    def _project(self, updates: list[Any]) -> None:
        # An update may hold the parameters of several groups. It has clamped them to their ranges.
        groups = self._optimizer.param_groups
        limited = [group["max_weight_norm"] is not None for group in groups]
        if not any(limited):
            return
        for place, group in enumerate(groups):
            if limited[place]:
                mine = [
                    array
                    for one in updates
                    for array, index in zip(one.lists[0], one.indices, strict=True)
                    if self._groups[index] == place
                ]
                if mine:
                    project(mine, group)

    def _blame(self) -> str:
        taking_part = self._steps.taking_part
        return blame(tensor_names(self._optimizer._parameters, taking_part), self._steps.norms.get())

    def _contents(self, updates: list[Any]) -> Contents:
        known = self._known
        if known is not None and known.contents.updates == [one.indices for one in updates]:
            return known.contents
        parameters = self._optimizer._parameters
        indices = [one.indices for one in updates]
        sizes = {index: parameters[index].data.size for own in indices for index in own}
        return Contents(parameters, indices, sizes)
