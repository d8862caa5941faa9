"""What the launchers of all optimizer steps share: see step.cuh.

`Steps` is what an optimizer keeps on a device over its parameters. Its step is three launches for any number of
tensors, as long as all groups use the same variant of the update: the chunks of the norm, what finishes it, the update.
Nothing waits for the device and nothing is copied to it, unless numbers of a group have changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import cuda
from .health_gpu import examine_chunks
from .norm_gpu import NO_LIMIT, sum_chunks
from .table_gpu import Table, current_stream, refuse_capture, table_of

Array = Any

GROUP, STORED, GROUPS_FROM = 9, 11, 3  # as in step.cuh
ANY_WEIGHT = -math.inf, math.inf
REPORT = 4  # numbers of a report: norm, coefficient (0 where skipped), whether skipped, and the steps skipped in a row
POLICIES = {"propagate": 0, "skip": 1, "raise": 2}  # as in step.cuh: raising counts nothing

_HEAD = "table: i64*, streams: i32, tensors: i32, "


def update_kernel(name: str, numbers: str, variants: Sequence[str]) -> cuda.Kernel:
    """Return the update fg_<name>; `numbers`: names of the numbers that it takes, the factor of the gradient first."""
    own = ", ".join(f"{number}: f64" for number in [*numbers.split(), "low", "high"])
    return cuda.Kernel(name, f"fg_{name}", f"{_HEAD}own: f64*?, control: f64*?, changes: f64*?, {own}", variants)


def finish_kernel(name: str) -> cuda.Kernel:
    """Return what goes between the norm and the update, fg_<name>_finish."""
    sums = "partial: f64*, totals: f64*, norms: f64*, arrived: u32*, "
    state = "settings: f64*, group: i64*, steps: i64*, own: f64*, control: f64*, skipped: i64*, report: f64*"
    findings = ", counts: i64*?, found: f64*?"
    return cuda.Kernel(name, f"fg_{name}_finish", _HEAD + sums + state + findings)


def update(
    kernel: cuda.Kernel, lists: Sequence[Sequence[Array]], scale: float | Array, maximize: bool, *numbers: float,
    **variant: bool,
) -> None:  # fmt: skip
    """Run an update with the same numbers for all tensors, whose weights have no limits.

    scale : the factor of the gradients, or what `norm_gpu.clip_all` returned
    """
    control, factor = (None, scale) if isinstance(scale, float) else (scale, 1.0)
    numbers = (-factor if maximize else factor, *numbers)
    table_of(lists).launch(kernel, lists, None, control, None, *numbers, *ANY_WEIGHT, **_flags(variant))


def _flags(variant: dict[str, bool]) -> dict[str, int]:
    return {name: int(flag) for name, flag in variant.items()}


class Update(NamedTuple):
    """One launch of the update in a step of an optimizer.

    lists : params, grads, states, contiguous
    indices : the place among all parameters of each of them
    variant : of the kernel
    """

    lists: list[list[Array]]
    indices: list[int]
    variant: dict[str, bool]

    def without_grads(self) -> Update:
        """Return the same without the gradients, which are not to be kept alive."""
        return self._replace(lists=[self.lists[0], [], *self.lists[2:]])

    def with_grads(self, grads: list[Array]) -> Update:
        """Return the same with its share of a gradient for each parameter."""
        return self._replace(lists=[self.lists[0], [grads[k] for k in self.indices], *self.lists[2:]])


class Plan(NamedTuple):
    """The tables of a step: good for as long as the arrays are the same ones, on the same stream.

    on : the stream, by its address
    norms : of the gradients, which are its stream number `stream`
    numbers : the place of each among all parameters
    updates : of each update
    """

    on: int
    norms: Table
    stream: int
    numbers: list[int]
    updates: list[Table]


def plan_of(updates: list[Update]) -> Plan:
    """Return the tables of a step, made now if need be; see `table_gpu.table_of`."""
    tables = [table_of(one.lists, one.indices) for one in updates]
    on = current_stream(tables[0].device).ptr
    if len(updates) == 1:
        return Plan(on, tables[0], 1, updates[0].indices, tables)
    # In the order of the parameters, however they are launched.
    grads = _in_order(updates)
    numbers = sorted(index for one in updates for index in one.indices)
    return Plan(on, table_of([grads], numbers), 0, numbers, tables)


def _in_order(updates: list[Update]) -> list[Array]:
    pairs = [pair for one in updates for pair in zip(one.indices, one.lists[1], strict=True)]
    return [grad for _, grad in sorted(pairs, key=lambda pair: pair[0])]


class Steps:
    """The state of an optimizer on a device, except for the arrays of its parameters.

    kernel, finish : of the optimizer
    steps (parameters,) int64 : steps that each parameter has taken
    skipped (2,) int64 : steps that were left out because the norm was not finite, in all and in a row up to the last
    norms, taking_part : after a step, the norm of each gradient that took part, float64, scratch; whose they are
    """

    def __init__(self, kernel: cuda.Kernel, finish: cuda.Kernel, like: Array, groups: Sequence[int]):
        self.device = cuda.device_of(like)
        refuse_capture(self.device, "the state of an optimizer")
        self.kernel, self.finish, self.dtype = kernel, finish, like.dtype
        xp, count = self.device.xp, len(groups)
        with self.device.here():
            self.group = xp.asarray(np.array(groups, np.int64))
            self.steps, self.skipped = xp.zeros(count, np.int64), xp.zeros(2, np.int64)
            self.own, self.control = xp.zeros((count, STORED), np.float64), xp.zeros(2, np.float64)
            self.settings = xp.zeros(GROUPS_FROM + GROUP * (max(groups) + 1), np.float64)
        self.norms: Array = None
        self.taking_part: list[int] = []
        self._set: list[float] | None = None

    def set(
        self,
        max_norm: float | None,
        nonfinite: str,
        unscale: float,
        groups: Iterable[tuple[tuple[float, float] | None, Sequence[float]]],
    ) -> None:
        """Bring the numbers of a step and of the groups to the device where they have changed.

        unscale : factor of every gradient, before its norm is clipped
        groups : of each the range of its weights, None for any, and what its rule takes

        Raises:
            RuntimeError: they have changed while a graph is captured, which would replay the copy.
        """
        settings = [NO_LIMIT if max_norm is None else max_norm, float(POLICIES[nonfinite]), unscale]
        for bounds, numbers in groups:
            own = [*(ANY_WEIGHT if bounds is None else bounds), *numbers]
            settings += own + [0.0] * (GROUP - len(own))
        if settings == self._set:
            return
        refuse_capture(self.device, "a change of lr or another number")
        with self.device.here():
            self.settings[...] = self.device.xp.asarray(np.array(settings))
        self._set = settings

    def stream(self) -> int:
        """Return the address of the stream on which a step would run now."""
        return current_stream(self.device).ptr

    def run(self, plan: Plan, updates: list[Update], health: bool) -> Array:
        """Take a step and return its report, float64 (REPORT,).

        health : say as well what the gradients look like, and what the updates have changed: behind the report follow
            the (6, tensors) of `health_gpu.health`, and of each update the squares of each chunk of its first list, of
            what has changed and of what was there before, (chunks, 2). All lies in one array, to be read by one copy.
        """
        device, table = self.device, plan.norms
        lists = updates[0].lists if len(updates) == 1 else [_in_order(updates)]
        (examine_chunks if health else sum_chunks)(table, lists, plan.stream)
        ends = list(itertools.accumulate([REPORT, 6 * table.tensors, *(2 * own.chunks for own in plan.updates)]))
        report = table.result(ends[-1] if health else REPORT)
        parts = [report[a:b] if health and b > a else None for a, b in itertools.pairwise(ends)]
        self.finish(
            device, self.dtype, table.tensors, cuda.threads(device), *table.head, table.partial, table.totals,
            table.norms, table.arrived, self.settings, self.group, self.steps, self.own, self.control, self.skipped,
            report[:REPORT], table.counts if health else None, parts[0],
        )  # fmt: skip
        self.norms, self.taking_part = table.norms, plan.numbers
        unused = [0.0] * (len(self.kernel.parameters) - 6)
        for own, one, changes in zip(plan.updates, updates, parts[1:], strict=True):
            own.launch(self.kernel, one.lists, self.own, self.control, changes, *unused, **_flags(one.variant))
        return report
