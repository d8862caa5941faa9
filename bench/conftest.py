"""The `race` fixture: every benchmark is run once for each contestant, on one set of inputs that is verified once.

FASTGRAD_BENCH_THREADS sets the number of threads of all contestants; all processors otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from typing import Any

import machine
import pytest
from inputs import QUICK
from work import CONTESTANTS, TORCH, Work

from fastgrad.profiling.turns import SPIN_DOWN, calibrate

THREADS = int(os.environ.get("FASTGRAD_BENCH_THREADS") or machine.cores())

# Seconds for each contestant of each benchmark: some 190 of them fit into six minutes with their preparations.
SECONDS = 0.05 if QUICK else 0.7
ROUNDS = (3, 50)
# Calls shorter than this are timed several at once, and the clock's resolution does not show.
SHORTEST_ROUND = 1e-3

_current: tuple[Hashable, Work] | None = None


def _work(key: Hashable, build: Callable[[], Work]) -> Work:
    """Return the work of `key`, verified. Only the latest is kept: the largest takes 6 GB."""
    global _current
    if _current is None or _current[0] != key:
        _current = None
        work = build()
        work.verify()
        _current = key, work
    return _current[1]


def pytest_configure(config: pytest.Config) -> None:
    machine.set_threads(THREADS)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let contestants vary fastest, so that those of one work follow each other."""
    if "race" in metafunc.fixturenames:
        skip = pytest.mark.skipif(machine.torch is None, reason="torch is not installed: pip install torch")
        names = [pytest.param(name, marks=skip) if name == TORCH else name for name in CONTESTANTS]
        metafunc.parametrize("contestant", names)


@pytest.fixture
def race(benchmark: Any, contestant: str) -> Callable[..., None]:
    """Return race(build, *args), which times this test's contestant at the work build(*args)."""

    def run(build: Callable[..., Work], *args: Hashable) -> None:
        work = _work((build, args), lambda: build(*args))
        opponent = work.contestants[contestant]
        time.sleep(0.0 if QUICK else SPIN_DOWN)
        one, overhead = calibrate(opponent)
        # pytest-benchmark takes a setup for rounds of one call only.
        calls = 1 if opponent.before else max(1, min(1000, round(SHORTEST_ROUND / one)))
        rounds = int(min(max(SECONDS / (one * calls + overhead), ROUNDS[0]), ROUNDS[1]))
        benchmark.group = work.group
        benchmark.name = contestant
        benchmark.extra_info.update(
            contestant=contestant,
            shape=work.shape,
            dtype=work.dtype,
            bytes=work.bytes,
            flops=work.flops,
            threads=THREADS,
            processor=machine.processor(),
            versions=machine.versions(),
        )
        benchmark.pedantic(opponent.run, setup=opponent.before, rounds=rounds, iterations=calls)
        if benchmark.stats is not None:
            median = benchmark.stats.stats.median
            benchmark.extra_info["GB/s"] = round(work.bytes / median * 1e-9, 3)
            benchmark.extra_info["GFLOP/s"] = round(work.flops / median * 1e-9, 3)
            benchmark.extra_info["rate"] = work.rate(median)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the rates, which pytest-benchmark's own table leaves out."""
    session = getattr(config, "_benchmarksession", None)
    done = [bench for bench in getattr(session, "benchmarks", []) if "rate" in bench.extra_info]
    if not done:
        return
    terminalreporter.section("rates")
    terminalreporter.write_line(machine.describe(THREADS))
    terminalreporter.write_line("one contestant after the other: bench/compare.py takes turns, and is the one to quote")
    fastest = {bench.group: bench.stats.median for bench in done if bench.extra_info["contestant"] == "fastgrad"}
    heading = None
    for bench in done:
        if bench.group != heading:
            heading = bench.group
            terminalreporter.write_line(f"{heading}: {bench.extra_info['shape']}")
        median = bench.stats.median
        share = f"{median / fastest[heading]:8.2f}x" if heading in fastest else ""
        name = bench.extra_info["contestant"]
        terminalreporter.write_line(f"    {name:9} {median * 1e3:10.4f} ms {bench.extra_info['rate']:>16} {share}")
