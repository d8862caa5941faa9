"""Measure the two ways through the steps of an LSTM or GRU on a GPU, and where the one begins to beat the other.

Why the crossover is a limit of the work of a block, for each hidden size, stands in kernels/recurrent_choice.py. What
is timed is forward and backward together, since one choice is made for both, by DeviceClock.queued: the device's time,
or the host's where launching takes longer, which is what a training loop meets. In a CUDA graph launches cost less, so
that stepwise should win earlier there: who captures graphs tries FASTGRAD_RECURRENT.

What it takes on an H200, by calculation: 105 points; a call of 64 steps stepwise is 256 launches, which take the
host some 3 ms, and persistent 1 to 4 ms of the device; each is called some 18 times in 5 turns. About 15 s, and in a
first run as much again for compiling the persistent kernels, 1 to 2 s for each of a dozen variants.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import datetime
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import fastgrad
from fastgrad import _gpu, _machine
from fastgrad.profiling.costs import GATES
from fastgrad.profiling.turns import Contestant, by_turns

STEPWISE, PERSISTENT = "stepwise", "persistent"

# Work is measured from the estimate / 16 to 4 times the estimate, and thinly below.
AROUND = (1 / 16, 4.0)
THIN = 3  # one batch in so many
TURNS = 5
SECONDS_PER_TURN = 0.008
SECONDS = 120.0  # no further size is begun after these
TOLERANCE = 2e-3  # of the largest entry, between sums of float32 in two orders
LOST = math.log(1e3)  # what counts for a way that fails: it takes so many times as long


class Grid(NamedTuple):
    """What is measured.

    hidden: sizes; those that the persistent kernel does not take are passed over. Between the first ones lie the
        others: where time runs out it is those that are left to interpolation.
    largest_batch: with 64 units and 64 steps some gigabyte.
    steps: what a persistent kernel does once, such as reading W_hh, is a hundredth of so many.
    inputs: few, since their products are the same in both ways.
    """

    hidden: tuple[int, ...] = (256, 1024, 64, 512, 768, 128, 384)
    largest_batch: int = 4096
    steps: int = 64
    inputs: int = 32


class Clock(Protocol):
    """What times the calls; see DeviceClock."""

    def queued(self, run: Callable[[], object], calls: int) -> float:
        """Return the seconds of a call among so many in a row."""
        ...


@dataclass(frozen=True)
class Call:
    """Forward and backward of an LSTM or GRU over device arrays; called, it returns the gradients.

    cell: "lstm" or "gru"; x (T, B, I), dy (T, B, H); weights: W_ih, W_hh, b_ih, b_hh; way: None is the process's own
    """

    cell: str
    x: Any
    dy: Any
    weights: tuple[Any, ...]
    way: str | None = None

    def __call__(self) -> Any:
        from fastgrad.kernels import recurrent_gpu

        states = [None] * (2 if self.cell == "lstm" else 1)
        with recurrent_gpu.using(self.way) if self.way else contextlib.nullcontext():
            *_, saved = getattr(fastgrad, self.cell)(self.x, *states, *self.weights)
            return getattr(fastgrad, f"{self.cell}_backward")(self.dy, *states, saved)


@dataclass(frozen=True)
class Point:
    """One size: the seconds of a call, None where it failed, and why.

    work: fused multiply-adds of a block of the persistent kernel in a step
    """

    cell: str
    hidden: int
    batch: int
    work: int
    stepwise: float | None
    persistent: float | None
    failed: str = ""

    @property
    def ratio(self) -> float | None:
        """The logarithm of how many times as long the persistent way takes; None where nothing is known."""
        if self.stepwise is None:
            return None
        return LOST if self.persistent is None else math.log(self.persistent / self.stepwise)


@dataclass(frozen=True)
class RecurrentTuning:
    """What `tune_recurrent` found; print it.

    device: its name.
    date: of the measurement, in ISO form.
    points: what was measured, see Point.
    limits: by cell and hidden size the work of a block, in FMAs of a step, up to which the persistent kernel is taken.
    batches: the same as the largest batch.
    left_out: sizes that there was no time for.
    seconds: of the measurement.
    path: of the file that it is kept in for later processes, None where it can't be kept.
    trouble: why not.
    """

    device: str
    date: str
    points: tuple[Point, ...]
    limits: dict[str, dict[int, float]]
    batches: dict[str, dict[int, int]]
    left_out: tuple[str, ...]
    seconds: float
    document: dict[str, Any] = field(repr=False)
    path: Path | None = None
    trouble: str = ""

    def way(self, point: Point) -> str:
        """Return the way that is taken at a size from now on."""
        return PERSISTENT if point.work <= self.limits[point.cell][point.hidden] else STEPWISE

    def _up_to(self, cell: str, hidden: int) -> str:
        batch = self.batches[cell][hidden]
        measured = max(p.batch for p in self.points if (p.cell, p.hidden) == (cell, hidden))
        return f"{batch} (by estimate from {measured})" if batch > measured else f"{batch or 'none'}"

    def __str__(self) -> str:
        lines = [f"{self.device}, {self.date}: {len(self.points)} sizes in {self.seconds:.0f} s"]
        for cell, batches in self.batches.items():
            found = ", ".join(f"{self._up_to(cell, hidden)} at H = {hidden}" for hidden in batches)
            lines.append(f"{cell}: persistent up to a batch of {found}" if found else f"{cell}: nothing was measured")
        if self.left_out:
            lines.append(f"no time left for {', '.join(self.left_out)}")
        lines += sorted({f"{point.cell}, H = {point.hidden}: {point.failed}" for point in self.points if point.failed})
        lines.append(f"kept in {self.path}, for processes that begin from now on" if self.path else self.trouble)
        return "\n".join(line for line in lines if line)


def tune_recurrent() -> RecurrentTuning:
    """Measure on the current GPU which way through its steps an LSTM or GRU goes faster, and keep the result.

    Takes half a minute and a gigabyte or two of the GPU's memory, by calculation; let nothing else run meanwhile, other
    threads of this process above all. The result is kept in a file in the folder of compiled kernels, under the
    device's name. Processes that begin later choose by it; this one keeps the choice that it has. The two ways differ
    in the last digits: after tuning a run does not repeat the bits of one before it, or of a machine that was tuned
    otherwise.

    FASTGRAD_RECURRENT goes before any measurement. `doctor` says where the choice comes from; deleting the file takes
    it back.

    Returns:
        What was measured and decided. Where the file can't be written it says why, and nothing is changed.

    Raises:
        RuntimeError: no GPU can be used; says why and what to do.
    """
    return tuned("tune_recurrent")


def tuned(asking: str, say: Callable[[str], None] = lambda text: None) -> RecurrentTuning:
    """Do what `tune_recurrent` does; `asking` is named where there is no GPU, `say` is told what is measured next."""
    xp = _gpu.require_gpu(asking)
    from fastgrad.kernels import cuda, recurrent_choice

    device = cuda.device_of(xp.empty(1, np.float32))
    recurrent_choice.choice(device)  # settled here, whatever is on the disk from now on
    return kept(measure(device, say=say))


def measure(
    device: Any,
    clock: Clock | None = None,
    grid: Grid = Grid(),  # noqa: B008 - it can't be changed
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> RecurrentTuning:
    """Measure on a device.

    Args:
        device: a fastgrad.kernels.cuda.Device.
        clock: None: that of the device.
        seconds: no further size is begun after these.
        say: is told what is measured next.
    """
    from fastgrad.kernels import recurrent_choice

    if clock is None:
        from fastgrad.profiling.device_clock import DeviceClock

        clock = DeviceClock(device)
    start = time.monotonic()
    points: list[Point] = []
    left_out: list[str] = []
    limits: dict[str, dict[int, float]] = {cell: {} for cell in GATES}
    for size in grid.hidden:
        for cell in GATES:
            batches = list(sizes(device, cell, size, grid.largest_batch))
            if not batches:
                continue
            if time.monotonic() - start > seconds:
                left_out.append(f"{cell}, H = {size}")
                continue
            found = []
            for batch, work in batches:
                say(f"{cell}, H = {size}, B = {batch}")
                found.append(measured(device, clock, grid, cell, size, batch, work))
            known = [(point.work, point.ratio) for point in found if point.ratio is not None]
            if known:
                limits[cell][size] = crossover(known)
            points += found
            _release(device.xp)
    points.sort(key=lambda point: (list(GATES).index(point.cell), point.hidden, point.batch))
    ordered = {cell: dict(sorted(found.items())) for cell, found in limits.items()}
    date = datetime.date.today().isoformat()
    document = {
        "schema": recurrent_choice.SCHEMA,
        "device": recurrent_choice.described(device),
        "date": date,
        **_versions(device.xp),
        "sources": recurrent_choice.sources_key(),
        "steps": grid.steps,
        "inputs": grid.inputs,
        "limits": {cell: [list(pair) for pair in found.items()] for cell, found in ordered.items()},
        "points": [asdict(point) for point in points],
        "left_out": left_out,
    }
    batches_of = {
        cell: {size: largest_batch(device, cell, size, limit) for size, limit in found.items()}
        for cell, found in ordered.items()
    }
    elapsed = time.monotonic() - start
    return RecurrentTuning(
        device.name, date, tuple(points), ordered, batches_of, tuple(left_out), elapsed, document
    )  # fmt: skip


def kept(found: RecurrentTuning) -> RecurrentTuning:
    """Write a measurement where processes of this user look for it; return it with the path, or with the trouble."""
    from fastgrad.kernels import cache, recurrent_choice
    from fastgrad.training.checkpoint import write_atomically

    folder = cache.folder_beside(recurrent_choice.FOLDER)
    where = "set FASTGRAD_CACHE_DIR to a folder that can be written"
    if folder is None:
        return dataclasses.replace(found, trouble=f"the measurement can't be kept: no cache folder is usable; {where}")
    path = folder / f"{recurrent_choice.file_stem(found.device)}.json"
    try:
        write_atomically(path, (json.dumps(found.document, indent=1) + "\n").encode())
    except OSError as error:
        return dataclasses.replace(found, trouble=f"{path} can't be written: {error.strerror}; {where}")
    return dataclasses.replace(found, path=path)


# --- what is measured


def sizes(device: Any, cell: str, hidden: int, largest_batch: int) -> Iterator[tuple[int, int]]:
    """Yield batches, powers of two, and the work of a block of the persistent kernel at each.

    Batches of equal work are one way for the persistent kernel: the largest, in which all groups have their share.
    """
    from fastgrad.kernels import recurrent_choice, recurrent_gpu

    low, high = (share * recurrent_choice.ESTIMATE for share in AROUND)
    by_work: dict[int, int] = {}
    batch = 1
    while batch <= largest_batch:
        plan = recurrent_gpu.best_plan(device, GATES[cell], batch, hidden)
        if plan is None:
            break
        work = recurrent_gpu.work(plan, GATES[cell], hidden)
        if work > high and by_work:
            break
        by_work[work] = batch
        batch *= 2
    for k, (work, batch) in enumerate(by_work.items()):
        if work >= low or k % THIN == 0:
            yield batch, work


def measured(device: Any, clock: Clock, grid: Grid, cell: str, hidden: int, batch: int, work: int) -> Point:
    """Return what both ways take at one size. A way that computes something else has failed."""

    def point(times: dict[str, float | None], failed: str = "") -> Point:
        return Point(cell, hidden, batch, work, times.get(STEPWISE), times.get(PERSISTENT), failed)

    with device.here():
        try:
            call = _call(device.xp, grid, cell, hidden, batch)
            calls = {way: dataclasses.replace(call, way=way) for way in (STEPWISE, PERSISTENT)}
            expected = _sampled(calls[STEPWISE]())
        except Exception as error:
            return point({}, _described(error))
        failed = ""
        try:
            _check(expected, _sampled(calls[PERSISTENT]()))
        except MemoryError as error:
            return point({}, _described(error))
        except Exception as error:
            failed = f"the persistent way is not taken: {_described(error)}"
            del calls[PERSISTENT]
        contestants = {way: Contestant(call, clock=clock.queued) for way, call in calls.items()}
        try:
            times = by_turns(contestants, turns=TURNS, pause=0, seconds_per_turn=SECONDS_PER_TURN)
        except Exception as error:
            return point({}, _described(error))
        return point({way: times.median(way) for way in contestants}, failed)


def _call(xp: Any, grid: Grid, cell: str, hidden: int, batch: int) -> Call:
    rng = np.random.default_rng(hidden + batch)
    gates = GATES[cell]

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return xp.asarray(rng.standard_normal(shape, np.float32) * np.float32(scale))

    # One step's numbers for all of them: what they are does not matter, and drawing them would take longest.
    x, dy = (xp.empty((grid.steps, batch, n), np.float32) for n in (grid.inputs, hidden))
    x[...], dy[...] = normal(batch, grid.inputs), normal(batch, hidden)
    shapes = ((gates * hidden, grid.inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
    return Call(cell, x, dy, tuple(normal(*shape, scale=hidden**-0.5) for shape in shapes))


def _release(xp: Any) -> None:
    """Give the memory of one size back before the next."""
    pool = getattr(xp, "get_default_memory_pool", None)
    if pool is not None:
        pool().free_all_blocks()


def _sampled(gradients: Any) -> np.ndarray:
    """Return the gradient of a bias, a sum over all steps and sequences, in host memory."""
    return gradients.dbias_hh.get()


def _check(expected: np.ndarray, found: np.ndarray) -> None:
    largest, off = np.abs(expected).max(), np.abs(expected - found).max()
    if not off <= TOLERANCE * largest:
        raise ArithmeticError(f"its gradient is off by {off:.3g} where the largest is {largest:.3g}")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _versions(xp: Any) -> dict[str, Any]:
    versions = {"fastgrad": fastgrad.__version__, "python": platform.python_version()}
    versions["cupy"] = getattr(xp, "__version__", "none")
    compiler = _gpu.nvrtc_version(xp)
    versions["nvrtc"] = "none" if compiler is None else f"{compiler[0]}.{compiler[1]}"
    return {"driver": _machine.nvidia_driver() or "unknown", "versions": versions}


# --- what is decided


def crossover(points: Sequence[tuple[int, float]]) -> float:
    """Return the work up to which the persistent way is to be taken at one hidden size.

    The point that costs least: with the persistent way for the k smallest sizes and stepwise for the rest, the product
    of all times is smallest where the sum of the first k ratios is. A single size that noise has turned round moves
    nothing, unless it outweighs its neighbours. Between the two sizes around that point the ratio is interpolated, a
    straight line over the logarithm of the work.

    Where stepwise always wins it is 0. Where the persistent way does, nothing is known of more work than was measured,
    and the estimate goes on from there.

    Args:
        points: work, and the logarithm of the ratio of times, persistent / stepwise; at least one.
    """
    from fastgrad.kernels.recurrent_choice import ESTIMATE

    ordered = sorted(points)
    costs = np.cumsum([0.0, *(ratio for _, ratio in ordered)])
    # Of equals the last: the persistent way leaves the host free.
    k = len(ordered) - int(np.argmin(costs[::-1]))
    if k == 0:
        return 0.0
    if k == len(ordered):
        return float(max(ordered[-1][0], ESTIMATE))
    (low, before), (high, behind) = ordered[k - 1], ordered[k]
    return float(low * (high / low) ** (-before / (behind - before)))


def largest_batch(device: Any, cell: str, hidden: int, limit: float) -> int:
    """Return the largest batch whose work is within a limit; 0 is none."""
    from fastgrad.kernels import recurrent_gpu

    def beyond(batch: int) -> bool:
        plan = recurrent_gpu.best_plan(device, GATES[cell], batch, hidden)
        return plan is None or recurrent_gpu.work(plan, GATES[cell], hidden) > limit

    return bisect.bisect_left(range(1, 1 << 16), True, key=beyond)
