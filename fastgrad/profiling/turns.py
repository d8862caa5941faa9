"""Time several callables by turns in one process: A B C, B C A, C A B, ...

The bandwidth of a shared machine moves by a factor of four within minutes. Timing one contestant after the other
compares minutes; taking turns compares code: all contestants meet every phase of the machine. See README.md.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# After a parallel region OpenMP's workers spin for about 10 ms, and OpenBLAS's for about 110 ms, on the cores that the
# next contestant needs. A pause of this many seconds lets them fall asleep.
SPIN_DOWN = 0.15

# A call longer than this does not notice that threads must be woken and that caches are cold after a pause.
LONG_CALL = 0.05


@dataclass(frozen=True)
class Contestant:
    """run: the call that is timed; before: called ahead of each `run`, outside of the clock.

    clock: returns the mean seconds of so many calls of `run`, where the host's clock can't; then without `before`.
    """

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    clock: Callable[[Callable[[], object], int], float] | None = None


@dataclass(frozen=True)
class Times:
    """seconds: per contestant the time of one call in each turn, in the order of the turns."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Return the ratio of the medians: how many times as long `slow` takes."""
        return self.median(slow) / self.median(fast)

    def paired_ratio(self, slow: str, fast: str) -> float:
        """Return the median over turns of the ratio within a turn, which a drift of the machine leaves alone."""
        return statistics.median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))


def _timed(contestant: Contestant, calls: int) -> float:
    """Return the mean seconds of `calls` calls."""
    if contestant.clock is not None:
        return contestant.clock(contestant.run, calls)
    if contestant.before is None:
        start = time.perf_counter()
        for _ in range(calls):
            contestant.run()
        return (time.perf_counter() - start) / calls
    total = 0.0
    for _ in range(calls):
        contestant.before()
        start = time.perf_counter()
        contestant.run()
        total += time.perf_counter() - start
    return total / calls


def calibrate(contestant: Contestant) -> tuple[float, float]:
    """Return the seconds of a call and of what goes before it: of a second call, where the first is a short one."""
    seconds = before = 0.0
    for _ in range(2):
        if contestant.clock is not None:
            seconds = contestant.clock(contestant.run, 1)
            continue
        start = time.perf_counter()
        if contestant.before is not None:
            contestant.before()
        middle = time.perf_counter()
        contestant.run()
        seconds, before = time.perf_counter() - middle, middle - start
        if seconds > LONG_CALL:
            break
    return seconds, before


def by_turns(
    contestants: Mapping[str, Contestant],
    *,
    turns: int = 9,
    pause: float = SPIN_DOWN,
    calls: int | None = None,
    seconds_per_turn: float = 0.02,
) -> Times:
    """Time each contestant once a turn, the order rotating from turn to turn.

    Args:
        contestants: by name; they have run before: kernels are compiled and pages mapped.
        turns: how many, at least 1.
        pause: seconds of sleep ahead of each contestant; 0 turns it off.
        calls: calls in a turn. None: as many as fill `seconds_per_turn`; short calls are then also made once, untimed,
            after each pause.
        seconds_per_turn: see `calls`.

    Raises:
        ValueError: no turns, or no calls.
    """
    if turns < 1 or (calls is not None and calls < 1):
        raise ValueError(f"turns and calls: expected at least 1, got {turns} and {calls}")
    counts, settle = dict.fromkeys(contestants, calls or 1), dict.fromkeys(contestants, False)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        if calls is None:
            for name, contestant in contestants.items():
                one, _ = calibrate(contestant)
                counts[name] = max(1, math.ceil(seconds_per_turn / one))
                settle[name] = one < LONG_CALL
        names = list(contestants)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(turns):
            first = turn % len(names) if names else 0
            for name in names[first:] + names[:first]:
                time.sleep(pause)
                if settle[name]:
                    _timed(contestants[name], 1)
                seconds[name].append(_timed(contestants[name], counts[name]))
    finally:
        if collecting:
            gc.enable()
    return Times(seconds)
