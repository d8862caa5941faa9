"""What all optimizers share: groups, state, the check of a step and its report; `fastgrad.optim` has the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad._arrays import copy_like, is_array, kind_name
from fastgrad._checks import FLOATS, integer, number
from fastgrad._dispatch import kernels, list_kernels, wrong_array
from fastgrad._health import Health
from fastgrad._step_report import StepReport, blame, hopeless, tensor_names, update_ratios
from fastgrad._tensor_lists import TensorSets
from fastgrad.clipping import PROJECTION, check_projection, clip_coefficient, project, weight_range
from fastgrad.gradient_norm import GradientNorm, checked_gradient_norm, refuse_device
from fastgrad.layers import Parameter
from fastgrad.layers.base import parameter_list

if TYPE_CHECKING:
    from fastgrad._device_step import OnDevice

__all__ = ["MAX_SKIPS", "NONFINITE", "Launch", "Optimizer", "sign"]

Array = np.ndarray[Any, np.dtype[Any]]

NONFINITE = ("skip", "raise", "propagate")

# A loss scale that starts at 2^16 and is halved after each step that was skipped has 16 of them to come down to 1;
# behind that the gradients themselves are not finite, and no further step will change anything.
MAX_SKIPS = 20


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of a kernel in a step: for which parameters, with which states, and what `_remember` is to keep."""

    group: dict[str, Any]
    kernel: Callable[..., Array | None]
    indices: list[int]
    entries: list[dict[str, Any]]
    states: dict[str, list[Array]]
    fresh: bool
    args: tuple[Any, ...]

    def lists(self, data: list[Array], grads: list[Any]) -> list[tuple[str, list[Array], bool]]:
        """Return the lists of the launch for the check, out of all data and gradients."""
        if len(self.indices) < len(data):
            data, grads = [data[index] for index in self.indices], [grads[index] for index in self.indices]
        states = [(key, arrays, True) for key, arrays in self.states.items()]
        return [("params", data, True), ("grads", grads, False), *states]


class Optimizer:
    """What all optimizers share: parameter groups, the norm, the clip coefficient and the policy for NaN and Inf.

    params: Parameters or plain arrays, or groups of them as dictionaries {"params": [...], "lr": 0.1, ...}, where what
        a group does not name is the optimizer's default. All are float32 or all float64.
    lr: a number, or a schedule: any function of the number of the step, from 0, such as those of `fastgrad.schedules`.
        It is asked before each step and what it says stands in the group's "lr"; `scheduled_steps` counts the calls of
        `step`, those that were skipped too, and is part of `state_dict`, which the schedule itself is not. Where a
        graph is replayed, add its steps to `scheduled_steps` and call `refresh`.
    max_norm: the global norm of the gradients is clipped to it by the coefficient min(1, max_norm / (norm + 1e-6)).
    nonfinite: what a step does when the norm is NaN or infinite. "skip" changes nothing and counts it in
        `skipped_steps`; "raise" changes nothing and raises FloatingPointError naming the tensors; "propagate" goes on
        as torch does.
    max_skips: so many steps in a row that were skipped raise FloatingPointError in the last of them, with nothing
        changed; None: never. 20 leaves a loss scale of 2^16 that is halved each time its 16 steps down to 1.
    health: let the pass that takes the norm count and measure the entries of each gradient, and the update measure what
        it changes: `StepReport.health`. With norms of 148 gradients and 124 million entries that took 2 % more on one
        thread, and the update no longer; tensors that fit the caches take 0.1 ns an entry more in the update.
    gradient_norm: is fed each Parameter's gradient by the backward pass that stores it or adds to it, so that `step`
        does not read it for the norm; see `fastgrad.GradientNorm`. Gradients of plain arrays may be fed to it by hand.

    weight_range: (low, high), to which every weight is clamped after the step (Arjovsky, Chintala & Bottou, Wasserstein
        GAN, 2017).
    max_weight_norm: after the step each parameter is scaled by min(1, max_weight_norm / (norm + 1e-6)), norm its l2
        norm; with weight_norm_axis=0 each of its rows by its own, as `fastgrad.clip_by_norm` takes them (Srivastava et
        al., Dropout, 2014). One of the two limits at most; both act on what takes part in the step. The range is part
        of the update, the norm a pass of its own, on a GPU also where the step itself is skipped. To leave biases out
        give them a group of their own.

    `param_groups` is a list of dictionaries as in torch; values such as "lr" may be changed between steps. `watchers`
    are functions that are called behind each step, with its report and the list of its gradients; a GradientMonitor
    puts itself there.

    Where Parameters have moved since the last step, as by `Layer.to`, the state follows them.

    CuPy parameters are stepped on their device. There a step waits for nothing, except with nonfinite="raise": the
    report, `skipped_steps` and `state_dict` wait for the device when they are read, and what `max_skips` raises comes
    when the report of a step is read. So a step can be captured into a
    graph, after one outside of the capture on the same stream and with the same arrays; the count of steps and of
    skipped ones goes on with every replay, and `refresh` brings another lr to it. `gradient_norm` is refused.
    """

    # Arrays that the state of one parameter can hold; "step" is the only other entry.
    _state_arrays: tuple[str, ...] = ()
    # Entries that the state of a parameter has as soon as it has any.
    _state_entries: tuple[str, ...] = ()

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_norm: float | None,
        nonfinite: str,
        gradient_norm: GradientNorm | None,
        max_skips: int | None,
        health: bool,
    ) -> None:
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite: expected one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
        self.max_norm = None if max_norm is None else number("max_norm", max_norm, 0.0, finite=False)
        self.nonfinite = nonfinite
        self.gradient_norm = None if gradient_norm is None else checked_gradient_norm(gradient_norm)
        self.max_skips = None if max_skips is None else integer("max_skips", max_skips, 1)
        self.health = bool(health)
        self._skipped, self._skips_in_a_row = 0, 0
        self._device: OnDevice | None = None
        self.param_groups: list[dict[str, Any]] = []
        self.watchers: list[Callable[[StepReport, list[Any]], None]] = []
        self._schedules: list[Callable[[int], float] | None] = []  # of each group
        self.scheduled_steps = 0
        self._defaults = defaults
        entries = [params] if isinstance(params, Mapping) else parameter_list("params", params)
        if not entries:
            raise ValueError("params: expected at least one parameter, got an empty list")
        groups = entries if isinstance(entries[0], Mapping) else [{"params": entries}]
        for position, group in enumerate(groups):
            self._add_group(f"params[{position}]" if groups is entries else "params", group)
        self._params: list[Parameter | Array] = [p for group in self.param_groups for p in group["params"]]
        _check_arrays([p.data if isinstance(p, Parameter) else p for p in self._params])
        self._parameters = [p if isinstance(p, Parameter) else Parameter(p) for p in self._params]
        if gradient_norm is not None:
            refuse_device("gradient_norm", [parameter.data for parameter in self._parameters])
            for parameter in self._parameters:
                parameter.gradient_norm = gradient_norm
        self._state: list[dict[str, Any]] = [{} for _ in self._params]

    def _add_group(self, where: str, group: Any) -> None:
        if not isinstance(group, Mapping):
            raise TypeError(
                f"{where}: expected a group {{'params': [...]}} as params[0] is, got {type(group).__name__}"
            )
        if "params" not in group:
            raise ValueError(f"{where}: the group has no entry 'params'")
        unknown = [key for key in group if key != "params" and key not in self._defaults]
        if unknown:
            raise ValueError(f"{where}: unknown entries {unknown}; {type(self).__name__} knows {list(self._defaults)}")
        members = parameter_list(where, group["params"])
        complete = {"params": members, **self._defaults, **{key: group[key] for key in group if key != "params"}}
        rate = complete["lr"]
        self._schedules.append(rate if callable(rate) else None)
        if callable(rate):
            complete["lr"] = rate(0)
        self._check_group(complete)
        self.param_groups.append(complete)

    def _schedule(self) -> None:
        """Give the groups that have a schedule the rate of this step."""
        for group, schedule in zip(self.param_groups, self._schedules, strict=True):
            if schedule is not None:
                group["lr"] = schedule(self.scheduled_steps)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError for a value of a group that makes no sense."""
        check_projection(group)

    def _launches(self, group: dict[str, Any], indices: list[int]) -> list[Launch]:
        """Return what a step of `group` launches for the parameters with these indices."""
        raise NotImplementedError

    def _used(self, group: dict[str, Any]) -> list[str]:
        """Return which of _state_arrays the parameters of a group have."""
        raise NotImplementedError

    def _rule(self, group: dict[str, Any]) -> tuple[str, list[float], dict[str, bool]]:
        """Return what a device takes: the op, the numbers of a group as its kernel has them, and its variant."""
        raise NotImplementedError

    @property
    def skipped_steps(self) -> int:
        """Return how many steps were left out because the norm was not finite; waits for a device."""
        return self._skipped if self._device is None else self._device.skipped_steps()

    def _on_device(self) -> OnDevice | None:
        data = self._parameters[0].data
        if type(data) is np.ndarray:
            if self._device is not None:  # the parameters have been moved back
                self._device.leave()
                self._device = None
            return None
        if self._device is None:
            from fastgrad._device_step import OnDevice

            self._device = OnDevice(self, data)
        return self._device

    def refresh(self) -> None:
        """Bring changed entries of `param_groups`, `max_norm` and `nonfinite` to the device, for a graph to replay.

        `step` does so itself; parameters in host memory need none of it.
        """
        self._schedule()
        device = self._on_device()
        if device is not None:
            device.refresh()

    def step(
        self, grads: Sequence[Array | None] | Array | None = None, *, grad_scale: float | None = None
    ) -> StepReport:
        """Take one step, in place on the parameters and the state; gradients are only read.

        grads: a gradient or None for every parameter, over all groups in their order. Without it the Parameters' own
            `grad` is used. A parameter whose gradient is None is left as it is, and so is its state.
        grad_scale: factor that the gradients carry, above 0: they are divided by it inside the update, before
            max_norm looks at their norm. After backward passes over n micro-batches of one size, whose layers have
            added to `grad`, grad_scale=n makes the update of the whole batch to rounding, without a pass or an array
            more. None: 1.

        Raises FloatingPointError with nonfinite="raise", and TypeError or ValueError for gradients that don't fit;
        nothing is changed then.
        """
        by_index = self._gradients(grads)
        self._schedule()
        device = self._on_device()
        unscale = 1.0 if grad_scale is None else 1.0 / number("grad_scale", grad_scale, 0.0, open_low=True)
        report = self._step(by_index, unscale) if device is None else device.step(by_index, unscale)
        self.scheduled_steps += 1
        for watcher in self.watchers:
            watcher(report, by_index)
        return report

    def _step(self, by_index: list[Any], unscale: float) -> StepReport:
        launches: list[Launch] = []
        start = 0
        for group in self.param_groups:
            self._check_group(group)
            end = start + len(group["params"])
            indices = [index for index in range(start, end) if by_index[index] is not None]
            start = end
            if indices:
                launches += self._launches(group, indices)
        data = [parameter.data for parameter in self._parameters]
        checked = TensorSets([launch.lists(data, by_index) for launch in launches])
        present = [index for index, grad in enumerate(by_index) if grad is not None]
        norm, found = self._norm(checked, launches, by_index, present)
        norm *= unscale
        changes = np.zeros((2, len(present)))
        if not math.isfinite(norm) and self.nonfinite != "propagate":
            if self.nonfinite == "raise":
                raise FloatingPointError(
                    f"{blame(tensor_names(self._parameters, present), found[0])}; nothing was changed"
                )
            checked.done()
            self._skipped += 1
            self._skips_in_a_row += 1
            if self._skips_in_a_row == self.max_skips:
                self._skips_in_a_row = 0
                raise hopeless(self.max_skips, blame(tensor_names(self._parameters, present), found[0]))
            return StepReport(norm, 0.0, True, self._health_of(by_index, present, found, changes))
        coefficient = 1.0 if self.max_norm is None else clip_coefficient(norm, self.max_norm)
        for launch, (params, gradients, *states) in zip(launches, checked.sets, strict=True):
            given = dict(zip(launch.states, states, strict=True))
            states_given = map(given.get, self._state_arrays)
            factor, bounds = coefficient * unscale, weight_range(launch.group)
            change = launch.kernel(
                params, gradients, *states_given, *launch.args, factor, bounds=bounds, measured=self.health
            )
            if change is not None:
                changes[:, _places(launch.indices, present)] = change
            self._remember(launch)
            project(params, launch.group)
        checked.done()
        self._skips_in_a_row = 0
        return StepReport(norm, coefficient, False, self._health_of(by_index, present, found, changes))

    def _health_of(self, grads: list[Any], present: list[int], found: Array, changes: Array) -> Health | None:
        if not self.health:
            return None
        return Health(
            lambda: tensor_names(self._parameters, present),
            [grads[index].size for index in present],
            lambda: np.vstack([found, update_ratios(changes)]),
        )

    def zero_grad(self) -> None:
        """Set `grad` of every Parameter to None; the next backward pass stores its gradients without adding."""
        for parameter in self._params:
            if isinstance(parameter, Parameter):
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return {"state": {index: {...}}, "param_groups": [...], "skipped_steps": n, "scheduled_steps": n}.

        The form is torch's, with the parameters' indices in place of themselves; arrays are the optimizer's own, on
        the device of the parameters. The numbers of steps are host numbers, for which this waits for the device.
        """
        groups, start = [], 0
        for group in self.param_groups:
            end = start + len(group["params"])
            groups.append({**group, "params": list(range(start, end))})
            start = end
        entries = self._state if self._device is None else self._device.entries()
        state = {index: dict(entry) for index, entry in enumerate(entries) if entry}
        return {"state": state, "param_groups": groups, "skipped_steps": self.skipped_steps,
                "scheduled_steps": self.scheduled_steps}  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, whose arrays are copied. That of the torch optimizer of the same name fits as well.

        NumPy and CuPy arrays both do, and go where the parameters are.

        Raises TypeError for no mapping, and ValueError when the groups or shapes are not those of this optimizer;
        nothing is changed then. What was skipped before counts no more for `max_skips`.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected what state_dict() returns, got {type(state_dict).__qualname__}")
        for entry in ("param_groups", "state"):
            if entry not in state_dict:
                raise ValueError(f"state_dict: the entry {entry!r} is missing; expected what state_dict() returns")
        groups = state_dict["param_groups"]
        sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"state_dict: expected groups of {own} parameters, got {sizes}")
        # torch's groups know nothing of the weights' limits.
        missing = [key for group in groups for key in self._defaults if key not in group and key not in PROJECTION]
        if missing:
            raise ValueError(f"state_dict: a group lacks {missing}; it belongs to another optimizer")
        updated = [
            {"params": mine["params"], **{key: _plain(group.get(key)) for key in self._defaults}}
            for mine, group in zip(self.param_groups, groups, strict=True)
        ]
        for group in updated:
            self._check_group(group)
        # torch numbers parameters by their place; a state may lack those that never had a gradient.
        indices = [index for group in groups for index in group["params"]]
        unknown = sorted(set(state_dict["state"]) - set(indices))
        if unknown:
            raise ValueError(f"state_dict: state for the parameters {unknown}, which no group holds")
        states = [self._read_state(place, state_dict["state"].get(index, {})) for place, index in enumerate(indices)]
        self.param_groups[:] = updated
        self._state = states
        self._skipped, self._skips_in_a_row = int(state_dict.get("skipped_steps", 0)), 0
        self.scheduled_steps = int(state_dict.get("scheduled_steps", 0))
        if self._device is not None:
            self._device.adopt()

    def _read_state(self, place: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        data = self._parameters[place].data
        for key, value in entry.items():
            if value is None:
                continue
            if key == "step":
                state[key] = int(value)
            elif key not in self._state_arrays:
                raise ValueError(f"state_dict: parameter {place} has the unknown entry {key!r}")
            else:
                array = copy_like(value, data)
                if array.shape != data.shape:
                    raise ValueError(
                        f"state_dict: expected shape {data.shape} for {key} of parameter {place}, got {array.shape}"
                    )
                state[key] = array
        missing = [key for key in self._state_entries if state and key not in state]
        if missing:
            raise ValueError(f"state_dict: parameter {place} lacks {missing}")
        return state

    def _gradients(self, grads: Any) -> list[Array | None]:
        if grads is not None:
            listed = [grads] if isinstance(grads, np.ndarray) or is_array(grads) else list(grads)
            if len(listed) != len(self._params):
                raise ValueError(
                    f"grads: expected {len(self._params)} entries, one for each parameter, got {len(listed)}"
                )
            return listed
        for index, parameter in enumerate(self._params):
            if not isinstance(parameter, Parameter):
                raise ValueError(
                    f"grads: expected a list, got None; params[{index}] is a plain array without a gradient of its own"
                )
        return [parameter.grad for parameter in self._parameters]

    def _norm(
        self, checked: TensorSets, launches: list[Launch], grads: list[Any], present: list[int]
    ) -> tuple[float, Array]:
        """Return the global norm, summed in the order of the parameters however they are launched, and what was found.

        That is float64 (6, len(present)) as in `kernels.health_cpu.health`, or its first row alone without `health`.
        """
        found = np.zeros((6 if self.health or self.gradient_norm is not None else 1, len(present)))
        missed = 0
        for launch, lists in zip(launches, checked.sets, strict=True):
            if self.gradient_norm is not None:
                own = self.gradient_norm._health([grads[index] for index in launch.indices], lists[1], use_up=True)
                missed += self.gradient_norm.missed
            elif self.health:
                own = list_kernels("health", lists[1]).health(lists[1])
            else:
                own = list_kernels("norm", lists[1]).tensor_norms(lists[1], 2.0)
            if len(launches) == 1:
                found = own if own.ndim == 2 else own[None]
            else:
                found[:, _places(launch.indices, present)] = own
        if self.gradient_norm is not None:
            self.gradient_norm.missed = missed
        return float(kernels("norm").norm_of_norms(found[0], 2.0)), found

    def _launch(
        self, stem: str, group: dict[str, Any], indices: list[int], keys: Sequence[str], args: tuple[Any, ...]
    ) -> Launch:
        """Return the launch of `<stem>_step`(params, grads, a list or None for each of _state_arrays, *args, scale).

        keys: the states that take part; a parameter that has none yet gets zeros, which `_remember` makes its own.
        """
        entries = [self._state[index] for index in indices]
        states, fresh = {}, False
        for key in keys:
            try:
                states[key] = [entry[key] for entry in entries]
            except KeyError:
                fresh = True
                states[key] = [
                    entry[key] if key in entry else np.zeros_like(self._parameters[index].data, order="C")
                    for index, entry in zip(indices, entries, strict=True)
                ]
        return Launch(group, getattr(kernels(stem), f"{stem}_step"), indices, entries, states, fresh, args)

    def _by_step(self, indices: list[int]) -> dict[int, list[int]]:
        """Return the indices by the number of the step that their parameters are to take."""
        steps = [self._state[index].get("step", 0) + 1 for index in indices]
        if steps.count(steps[0]) == len(steps):
            return {steps[0]: indices}
        by_step: dict[int, list[int]] = {}
        for index, step in zip(indices, steps, strict=True):
            by_step.setdefault(step, []).append(index)
        return by_step

    def _remember(self, launch: Launch) -> None:
        """Keep the states and the step count of a launch that has run."""
        if launch.fresh:
            for key, arrays in launch.states.items():
                for entry, array in zip(launch.entries, arrays, strict=True):
                    entry[key] = array
        if "step" in self._state_entries:
            for entry in launch.entries:
                entry["step"] = entry.get("step", 0) + 1


def _check_arrays(arrays: list[Any]) -> None:
    """Raise TypeError or ValueError unless these are float arrays of one kind and dtype, each there once."""
    seen: dict[int, int] = {}
    for index, data in enumerate(arrays):
        if not is_array(data):
            raise wrong_array(f"params[{index}]", data)
        first = arrays[0]
        if type(data) is not type(first):
            raise TypeError(
                f"params[{index}] is a {kind_name(data)} array but params[0] is a {kind_name(first)} array; make one "
                f"optimizer for each device"
            )
        if data.dtype not in FLOATS:
            raise TypeError(f"params[{index}]: expected float32 or float64, got {data.dtype}")
        if data.dtype != first.dtype:
            raise TypeError(
                f"params[{index}] is {data.dtype} but params[0] is {first.dtype}; make one optimizer for each dtype"
            )
        if id(data) in seen:
            raise ValueError(f"params[{index}] is params[{seen[id(data)]}] again; give each parameter once")
        seen[id(data)] = index


def _places(indices: list[int], present: list[int]) -> Any:
    """Return where these indices stand in `present`, as an index of an array."""
    return slice(None) if len(indices) == len(present) else np.searchsorted(present, indices)


def sign(group: dict[str, Any]) -> float:
    """Return the factor of the gradients that `maximize` asks for."""
    return -1.0 if group["maximize"] else 1.0


def _plain(value: Any) -> Any:
    """Return a group's value as plain Python: torch may hold lr as a 0-d tensor, JSON betas as a list."""
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return tuple(float(part) for part in value)
    return value if isinstance(value, bool | int | float) else float(value)
