"""The clock of a GPU: launch time apart from run time, with the cache cold or warm.

Events lie on the stream, so they count what the device does, and also its waiting for the host. A kernel of a few
microseconds takes longer to launch than to run; timed on an idle stream it would show the launch. So `run_time` first
gives the stream something to do (kernels/delay.cu) for longer than the host needs, and all that is timed waits in line
behind that, as in NVBench. `launch` is the host's part: how long a call takes to return.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], object]

DELAY_STEPS = 20_000  # of the first delay, which tells how long a step takes: some 14 ns
HEAD_START = 20e-6  # seconds of delay beyond twice the time that the host needs
LONGEST_DELAY = 0.05  # seconds; a call that waits for the device never gets ahead, however long the delay
TIMED = 2e-4  # seconds that calls timed together take at least: an event tells half a microsecond
MOST_CALLS = 50  # timed together: a stream takes some thousand launches before the host must wait


class DeviceClock:
    """Times calls that give work to the current stream of a device. Its own work is on that stream too.

    device: see fastgrad.kernels.cuda.Device
    """

    def __init__(self, device: Any) -> None:
        from fastgrad.kernels.delay_gpu import delay

        self.device, self._delay = device, delay
        with device.here():
            self._state = device.xp.full(1, 1, np.uint32)
            self._flush: Any = None
            delay(self._state, 1)
            begin = device.mark()
            delay(self._state, DELAY_STEPS)
            self._step = max(device.seconds(begin, device.mark()), 1e-6) / DELAY_STEPS

    def queued(self, run: Run, calls: int) -> float:
        """Return the seconds of a call among so many in a row: the device's time or the host's, whichever is longer."""
        begin = self.device.mark()
        for _ in range(calls):
            run()
        return self.device.seconds(begin, self.device.mark()) / calls

    def launch(self, run: Run, calls: int = 1) -> float:
        """Return the seconds that the host takes for a call on an idle device, without waiting for its end."""
        total = 0.0
        for _ in range(calls):
            self.device.synchronize()
            start = time.perf_counter()
            run()
            total += time.perf_counter() - start
        self.device.synchronize()
        return total / calls

    def run_time(self, run: Run, calls: int | None = None, cold: bool = False) -> float:
        """Return the seconds of a call on the device alone.

        calls: timed together. None: one where the cache is to be cold, else enough for the resolution of events.
        cold: write twice the size of the L2 cache before each call; otherwise the call is made once before, untimed.
        """
        if cold:
            return sum(self._behind_delay(run, 1, self._empty_cache) for _ in range(calls or 1)) / (calls or 1)
        if calls is None:
            one = self._behind_delay(run, 1, run)
            calls = min(MOST_CALLS, math.ceil(TIMED / max(one, 1e-7)))
            if calls == 1:
                return one
        return self._behind_delay(run, calls, run)

    def _behind_delay(self, run: Run, calls: int, before: Run) -> float:
        needed = self.launch(run)
        before()
        seconds = min(2 * needed * calls + HEAD_START, LONGEST_DELAY)
        self._delay(self._state, math.ceil(seconds / self._step))
        return self.queued(run, calls)

    def _empty_cache(self) -> None:
        if self._flush is None:
            self._flush = self.device.xp.empty(2 * self.device.cache // 4 + 1, np.float32)
        self._flush.fill(0)
