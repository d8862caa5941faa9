"""Measure operations on every back end of this machine, by turns, with the limits of the machine among them."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastgrad
from fastgrad import _gpu
from fastgrad._machine import usable_cores
from fastgrad.profiling import environment, gpu_bench, limits
from fastgrad.profiling.costs import Cost
from fastgrad.profiling.gpu_bench import (
    GPU,
    GPU_COLD,
    GPU_COPIES,
    GPU_LAUNCH,
    GPU_LIMIT,
    TORCH_GPU,
    GPUBench,
    on_torch,
)
from fastgrad.profiling.ops import Case, Op
from fastgrad.profiling.turns import SPIN_DOWN, Contestant, by_turns

NUMPY, TORCH, LIMIT = "numpy", "torch", "limit"

# Seconds of sleep ahead of a contestant where nobody calls a BLAS: OpenMP's threads spin for some 10 ms.
SHORT_PAUSE = 0.015
# Seconds of calls in a turn. A call longer than this is made once.
SECONDS_PER_TURN = 0.01
# Elements of each of the three arrays of the bandwidth: 32 MB, past most caches.
BANDWIDTH_SIZE = 1 << 23


@dataclass(frozen=True)
class Row:
    """One operation at one size.

    seconds: of a call, by back end: "numpy", "cpu 1", "cpu 2", ..., "torch", and where there is a GPU "gpu" (run time
    with the caches warm), "gpu cold", "gpu launch" (the host's time for the call), "gpu copies" (inputs there and
    results back), "torch gpu". limits: seconds that the machine needs at least, by "cpu" and "gpu". failed: why others
    have no time.
    """

    op: str
    size: int
    shape: str
    cost: Cost
    seconds: dict[str, float]
    limits: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)

    def share(self, name: str) -> float | None:
        """Return the share of the machine's limit that a back end reaches, None where one of both is not known."""
        limit = self.limits.get("gpu" if name in (GPU, GPU_COLD, TORCH_GPU) else "cpu")
        return limit / self.seconds[name] if limit is not None and name in self.seconds else None

    @property
    def gpu_call(self) -> float | None:
        """Seconds of a call on the GPU among others: run time, or launch time where that is longer."""
        return max(self.seconds[GPU], self.seconds[GPU_LAUNCH]) if GPU in self.seconds else None

    @property
    def best_cpu(self) -> float | None:
        """Seconds of fastgrad on the CPU with the best number of threads."""
        return min((s for name, s in self.seconds.items() if name.startswith("cpu ")), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        bytes_, flops = self.cost
        each = {
            name: {
                "seconds": seconds,
                "GB/s": bytes_ / seconds * 1e-9,
                "GFLOP/s": flops / seconds * 1e-9 if flops else None,
                "share_of_limit": self.share(name),
            }
            if name not in (GPU_LAUNCH, GPU_COPIES)
            else {"seconds": seconds}
            for name, seconds in self.seconds.items()
        }
        return {
            "op": self.op, "size": self.size, "shape": self.shape, "bytes": bytes_, "flops": flops,
            "limit_seconds": self.limits, "backends": each, "failed": self.failed,
        }  # fmt: skip


@dataclass(frozen=True)
class Ceilings:
    """What was measured of the machine itself: bytes and flops a second."""

    bandwidth: float
    product: float


@dataclass(frozen=True)
class Profile:
    """What `fastgrad profile` found.

    machine: one line; threads: the largest number used; ceilings: by "cpu" and "gpu"; gpu: its name, or None and
    `no_gpu` says why and what to do.
    """

    machine: str
    threads: int
    turns: int
    ceilings: dict[str, Ceilings]
    rows: list[Row]
    gpu: str | None
    no_gpu: str
    seconds: float

    @property
    def ops(self) -> list[str]:
        """The operations in their order."""
        return list(dict.fromkeys(row.op for row in self.rows))

    def crossovers(self) -> dict[str, dict[str, float | None]]:
        """Return by operation the size from which the GPU wins: "without" and "with" copies; None is never."""
        found: dict[str, dict[str, float | None]] = {}
        for op in self.ops:
            rows = [row for row in self.rows if row.op == op]
            known = [(row, row.gpu_call, row.best_cpu) for row in rows]
            points = [
                (row.size, gpu, cpu, row.seconds[GPU_COPIES])
                for row, gpu, cpu in known
                if gpu and cpu and GPU_COPIES in row.seconds
            ]
            if points:
                found[op] = {
                    "without": crossover([(size, gpu, cpu) for size, gpu, cpu, _ in points]),
                    "with": crossover([(size, gpu + copies, cpu) for size, gpu, cpu, copies in points]),
                }
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "machine": self.machine,
            "threads": self.threads,
            "turns": self.turns,
            "seconds": self.seconds,
            "gpu": self.gpu,
            "no_gpu": self.no_gpu,
            "ceilings": {
                name: {"GB/s": c.bandwidth * 1e-9, "GFLOP/s": c.product * 1e-9} for name, c in self.ceilings.items()
            },
            "crossovers": self.crossovers(),
            "rows": [row.as_dict() for row in self.rows],
        }


def crossover(points: Sequence[tuple[int, float, float]]) -> float | None:
    """Return the size from which the first of two times is the shorter one, for good; None where it never is.

    points: (size, one, other), sizes ascending. Between two sizes the times are powers of the size.
    """
    points = sorted(points)
    if not points or points[-1][1] >= points[-1][2]:
        return None
    last = max((k for k, (_, one, other) in enumerate(points) if one >= other), default=-1)
    if last < 0:
        return float(points[0][0])
    (below, a, b), (above, c, d) = points[last], points[last + 1]
    over, under = math.log(a / b), math.log(c / d)
    return math.exp(math.log(below) + (math.log(above) - math.log(below)) * over / (over - under))


def thread_counts() -> list[int]:
    """Return 1, 2, 4, ... and the largest number of threads that run at once here."""
    from fastgrad.kernels import runtime

    most = min(runtime.max_threads(), usable_cores())
    return sorted({most, *(1 << k for k in range(most.bit_length()) if 1 << k <= most)})


def measure(
    ops: Sequence[Op],
    sizes: Sequence[int] | None = None,
    turns: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> Profile:
    """Time operations at their sizes, or at these, on every back end that is here.

    say: is told what is measured next
    """
    start = time.perf_counter()
    counts = thread_counts()
    gpu = GPUBench.of_this_machine()
    rows: list[Row] = []
    with environment.threads(counts[-1]):
        say("the limits of this machine")
        ceilings, multiply = _ceilings(gpu, turns)
        for op in ops:
            for size in sorted(set(sizes or op.sizes)):
                say(f"{op.name}, {size:,} elements")
                rows.append(_row(op, size, counts, gpu, turns, multiply))
                gc.collect()
    status = _gpu.gpu_status()
    why = "" if gpu else f"{status.reason}; {status.advice}"
    return Profile(
        environment.describe(counts[-1]), counts[-1], turns, ceilings, rows, gpu.name if gpu else None, why,
        time.perf_counter() - start,
    )  # fmt: skip


def _row(
    op: Op, size: int, counts: Sequence[int], gpu: GPUBench | None, turns: int, multiply: Callable[..., object]
) -> Row:
    case = op.build(size)
    contestants: dict[str, Contestant] = {}
    failed: dict[str, str] = {}
    makers: dict[str, Callable[[], Contestant]] = {NUMPY: lambda: _on_reference(case)}
    # One set of results for all numbers of threads.
    bound = functools.cache(lambda: case.bind(*case.inputs))

    def on_cpu(n: int) -> Contestant:
        return Contestant(bound(), clock=functools.partial(_with_threads, n))

    for n in counts:
        makers[f"cpu {n}"] = functools.partial(on_cpu, n)
    if case.torch and environment.torch():
        makers[TORCH] = lambda: Contestant(on_torch(case, "cpu"))
    limit = case.limit() if case.limit else limits.of_products(case.cost.flops, multiply=multiply)
    makers[LIMIT] = lambda: limit.contestant
    if gpu:
        makers |= gpu.contestants(case)
    for name, make in makers.items():
        try:
            made = make()
            made.run()
        except Exception as error:  # one contestant must not cost the report
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        else:
            contestants[name] = made
    times = by_turns(
        contestants,
        turns=turns,
        # Only products call a BLAS, whose threads spin for longer.
        pause=SHORT_PAUSE if case.limit else SPIN_DOWN,
        seconds_per_turn=SECONDS_PER_TURN,
    )
    seconds = {name: times.median(name) for name in contestants if name not in (LIMIT, GPU_LIMIT)}
    found = {"cpu": limit.scale * times.median(LIMIT)} if LIMIT in contestants else {}
    if GPU_LIMIT in contestants and gpu:
        found["gpu"] = gpu.limit_scale(case) * times.median(GPU_LIMIT)
    return Row(op.name, size, case.shape, case.cost, seconds, found, failed)


def _with_threads(n: int, run: Callable[[], object], calls: int) -> float:
    from fastgrad.kernels import runtime

    before = runtime.num_threads()
    runtime.set_num_threads(n)
    try:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    finally:
        runtime.set_num_threads(before)


def _on_reference(case: Case) -> Contestant:
    with fastgrad.backend("reference"):
        bound = case.bind(*case.inputs)

    def run() -> object:
        with fastgrad.backend("reference"):
            return bound()

    return Contestant(run)


def _ceilings(gpu: GPUBench | None, turns: int) -> tuple[dict[str, Ceilings], Callable[..., object]]:
    """Return what the machine can do, and the faster one of NumPy's matrix product and ours, (a, b, out)."""
    from fastgrad.kernels.matmul_cpu import matmul

    flops, products = 2 * limits.PRODUCT**3, {"NumPy's product": np.matmul, "our product": matmul}
    contestants = {"moving": Contestant(limits.moving(BANDWIDTH_SIZE, 2, 1))}
    contestants |= {name: limits.of_products(flops, multiply=run).contestant for name, run in products.items()}
    if gpu:
        contestants |= {"gpu moving": gpu.moving(gpu_bench.MOVED), "gpu product": gpu.product()}
    for contestant in contestants.values():
        contestant.run()
    times = by_turns(contestants, turns=turns, seconds_per_turn=SECONDS_PER_TURN)
    fastest = min(products, key=times.median)
    found = {"cpu": Ceilings(12 * BANDWIDTH_SIZE / times.median("moving"), flops / times.median(fastest))}
    if gpu:
        found["gpu"] = Ceilings(
            8 * gpu_bench.MOVED / times.median("gpu moving"), 2 * gpu_bench.PRODUCT**3 / times.median("gpu product")
        )
    return found, products[fastest]
