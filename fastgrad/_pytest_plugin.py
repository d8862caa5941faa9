"""The pytest fixture `gpu_benchmark`: pytest-benchmark's `benchmark`, as right for CUDA kernels as that is for the CPU.

A call that gives work to a GPU returns before the work is done, so a clock of the host times the launch. Here the
device's time is taken with CUDA events, behind a delay that lets the host get ahead, and the launch apart from it:

    def test_scale(gpu_benchmark):
        x = cupy.ones(1 << 20, cupy.float32)
        y = gpu_benchmark(lambda: 2 * x)      # or gpu_benchmark(function, x, ...)

The table and `--benchmark-json` show the device's seconds with warm caches; `extra_info` has those with a cold L2 and
the host's seconds for the launch. Where no GPU has arrays among what is called, it is the plain `benchmark`.

Loaded by every pytest of an environment that has fastgrad: it imports neither CuPy nor Numba before it is used.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ROUNDS = 20  # samples with warm caches
COLD_ROUNDS = 5


class _Clock:
    """A clock for pytest-benchmark: the host's, or one that goes on by times which were measured before.

    Between two calls, at the begin and the end of a round, it goes on by the next of `samples`.
    """

    __name__ = "gpu_benchmark"

    def __init__(self, host: Callable[[], float]) -> None:
        self.samples: Iterator[float] | None = None
        self._host = host
        self._now, self._begun = 0.0, False

    def __call__(self) -> float:
        if self.samples is None:
            return self._host()
        if self._begun:
            self._now += next(self.samples)
        self._begun = not self._begun
        return self._now


class GPUBenchmark:
    """What the fixture returns: call it with a function and its arguments; it returns the function's result.

    Everything else is that of pytest-benchmark's fixture, `group` and `extra_info` for instance.
    """

    def __init__(self, benchmark: Any, clock: _Clock) -> None:
        self._benchmark, self._clock = benchmark, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._benchmark, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._benchmark, name, value)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Time function(*args, **kwargs), on the device that is current if one takes part, else on the CPU.

        A device takes part if one of its arrays is among the arguments, the result, or the variables of `function`.
        """
        benchmark = self._benchmark
        if benchmark.disabled:
            return benchmark(function, *args, **kwargs)
        result = None
        array = _device_array((args, kwargs, _variables(function)))
        if array is None and "cupy" in sys.modules:
            result = function(*args, **kwargs)
            array = _device_array(result)
        if array is None:
            return benchmark(function, *args, **kwargs)
        from fastgrad.kernels import cuda
        from fastgrad.profiling.device_clock import DeviceClock

        device = cuda.device_of(array)
        clock = DeviceClock(device)

        def call() -> Any:
            return function(*args, **kwargs)

        result = call()  # compiles
        warm = [clock.run_time(call) for _ in range(ROUNDS)]
        cold = [clock.run_time(call, cold=True) for _ in range(COLD_ROUNDS)]
        launch = [clock.launch(call) for _ in range(ROUNDS)]
        benchmark.extra_info.update(
            clock="CUDA events",
            device=_name(device),
            device_seconds=statistics.median(warm),
            device_seconds_cold_l2=statistics.median(cold),
            launch_seconds=statistics.median(launch),
        )
        self._clock.samples = iter(warm)
        try:
            benchmark.pedantic(lambda: None, rounds=len(warm))
        finally:
            self._clock.samples = None
        return result


def _variables(function: Any) -> list[Any]:
    cells = getattr(function, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells if _filled(cell)]
    return [
        *held,
        getattr(function, "args", ()),
        getattr(function, "keywords", {}),
        getattr(function, "__self__", None),
    ]


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _device_array(value: Any) -> Any:
    """Return the first device array in nested tuples, lists and dicts, or None."""
    from fastgrad._arrays import device_module

    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := _device_array(part)) is not None), None)
    return value if device_module(value) is not None else None


def _name(device: Any) -> str:
    runtime = device.xp.cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()


@pytest.fixture
def gpu_benchmark(request: pytest.FixtureRequest) -> GPUBenchmark:
    """Time a function whose arrays lie on a GPU: CUDA events, launch and run time apart, cold and warm L2.

    On the CPU it is pytest-benchmark's `benchmark`, which must be installed.
    """
    plugins = request.config.pluginmanager
    if not any(map(plugins.has_plugin, ("benchmark", "pytest_benchmark.plugin"))):
        pytest.fail("gpu_benchmark needs pytest-benchmark: pip install pytest-benchmark", pytrace=False)
    # The clock must be chosen before pytest-benchmark's fixture is made; what a marker of the test says stays.
    marker = request.node.get_closest_marker("benchmark")
    options = dict(marker.kwargs) if marker else {}
    clock = _Clock(options.get("timer", time.perf_counter))
    request.node.add_marker(pytest.mark.benchmark(**{**options, "timer": clock}), append=False)
    return GPUBenchmark(request.getfixturevalue("benchmark"), clock)
