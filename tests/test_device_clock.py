"""The clock of a GPU, on a device whose events behave as CuPy's: nothing is told before somebody has waited."""

from __future__ import annotations

import time

import numpy as np
import pytest

import fastgrad
from fastgrad.profiling import device_clock
from fastgrad.profiling.device_clock import DeviceClock
from fastgrad.profiling.turns import Contestant, by_turns


def xorshift(x: int, steps: int) -> int:
    for _ in range(steps):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
    return x


def test_the_delay_takes_as_many_steps_as_asked(device):
    from fastgrad.kernels.delay_gpu import delay

    for steps in (0, 1, 7, 1000):
        state = device.full(1, 2463534242, np.uint32)
        delay(state, steps)
        assert int(state.get()[0]) == xorshift(2463534242, steps)
    assert xorshift(2463534242, 1) == 723471715  # Marsaglia, Xorshift RNGs, 2003: the first of his generator


@pytest.fixture
def clock(device):
    from fastgrad.kernels import cuda

    return DeviceClock(cuda.device_of(device.empty(1, np.float32)))


def test_times_of_a_kernel(clock, device):
    x = device.ones(1000, np.float32)
    out = device.empty(1000, np.float32)

    def run():
        fastgrad.activation(x, "relu", out=out)

    run()
    for seconds in (
        clock.queued(run, 3),
        clock.launch(run, 3),
        clock.run_time(run),
        clock.run_time(run, 4),
        clock.run_time(run, 2, cold=True),
    ):
        assert 0 < seconds < 1


def test_what_is_timed_waits_behind_a_delay_and_the_cache_is_emptied(clock, emulated_gpu, monkeypatch):
    """The order on the stream: what goes ahead, the delay, the event, the calls, the event."""
    order: list[str] = []
    plain = clock._delay

    def delay(state, steps):
        order.append("delay")
        assert steps * clock._step >= device_clock.HEAD_START * 0.99
        plain(state, steps)

    monkeypatch.setattr(clock, "_delay", delay)
    mark = clock.device.mark
    monkeypatch.setattr(type(clock.device), "mark", lambda self: order.append("event") or mark())
    run = lambda: order.append("run")  # noqa: E731
    clock.run_time(run, 2)
    # The first call tells how long the host needs; the second warms the caches.
    assert order == ["run", "run", "delay", "event", "run", "run", "event"]
    order.clear()
    empty = clock._empty_cache
    monkeypatch.setattr(clock, "_empty_cache", lambda: order.append("empty") or empty())
    clock.run_time(run, 2, cold=True)
    assert order == ["run", "empty", "delay", "event", "run", "event"] * 2
    assert clock._flush.nbytes >= 2 * clock.device.cache


def test_a_launch_is_the_hosts_time_alone(clock, monkeypatch):
    waited: list[str] = []
    monkeypatch.setattr(type(clock.device), "synchronize", lambda self: waited.append("wait") or time.sleep(0.01))
    assert clock.launch(lambda: None) < 0.005 and len(waited) == 2


def test_events_tell_nothing_before_somebody_has_waited(emulated_gpu):
    """What the stand-in takes over from CUDA, so that a clock that forgets to wait fails here."""
    begin, end = emulated_gpu.cuda.Event(), emulated_gpu.cuda.Event()
    with pytest.raises(RuntimeError, match="cudaErrorInvalidResourceHandle"):
        emulated_gpu.cuda.get_elapsed_time(begin, end)
    begin.record()
    end.record()
    with pytest.raises(RuntimeError, match="cudaErrorNotReady"):
        emulated_gpu.cuda.get_elapsed_time(begin, end)
    end.synchronize()
    assert emulated_gpu.cuda.get_elapsed_time(begin, end) >= 0


def test_a_contestant_may_have_a_clock_of_its_own():
    asked: list[int] = []

    def clock(run, calls):
        run()
        asked.append(calls)
        return 0.25

    times = by_turns(
        {"mine": Contestant(lambda: None, clock=clock), "other": Contestant(lambda: None)}, turns=2, pause=0
    )
    assert times.seconds["mine"] == [0.25, 0.25] and times.median("other") < 0.25
    assert asked == [1, 1, 1, 1]  # twice to find how many fit in a turn
