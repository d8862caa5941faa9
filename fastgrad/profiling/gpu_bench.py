"""The contestants of `fastgrad profile` on a GPU: a case with its caches warm and cold, its launch, its copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from fastgrad import _arrays, _gpu
from fastgrad.profiling import environment
from fastgrad.profiling.device_clock import MOST_CALLS, DeviceClock, Run
from fastgrad.profiling.ops import Case
from fastgrad.profiling.turns import Contestant

GPU, GPU_COLD, GPU_LAUNCH, GPU_COPIES, TORCH_GPU, GPU_LIMIT = (
    "gpu", "gpu cold", "gpu launch", "gpu copies", "torch gpu", "gpu limit",
)  # fmt: skip

MOVED = 1 << 27  # float32 numbers copied for the bandwidth: 512 MB, past every L2
PRODUCT = 8192  # rows and columns of the product
COLD_CALLS = 5  # a turn: each empties the L2 first

Make = Callable[[], Contestant]


class GPUBench:
    """A GPU, and the clock on its current stream.

    xp: cupy; name: of the device.
    """

    def __init__(self, xp: Any) -> None:
        from fastgrad.kernels import cuda

        self.xp = xp
        runtime = xp.cuda.runtime
        self.name: str = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        self.clock = DeviceClock(cuda.device_of(xp.empty(1, np.float32)))

    @classmethod
    def of_this_machine(cls) -> Self | None:
        """Return the GPU that is current in CuPy, None where there is none."""
        cupy = _gpu.gpu_status().cupy
        return None if cupy is None else cls(cupy)

    def contestants(self, case: Case) -> dict[str, Make]:
        """Return what makes each contestant of a case, by name."""
        arrays = [self.xp.asarray(array) for array in case.inputs]
        run = case.bind(*arrays)
        makers: dict[str, Make] = {
            GPU: lambda: Contestant(run, clock=self._warm),
            GPU_COLD: lambda: Contestant(run, clock=self._cold),
            GPU_LAUNCH: lambda: Contestant(run, clock=self.clock.launch),
            GPU_COPIES: lambda: self._copies(case, arrays, run),
            GPU_LIMIT: lambda: self.product() if case.cost.arithmetic else self.moving(case.cost.bytes // 8),
        }
        torch = environment.torch()
        if case.torch and torch and torch.cuda.is_available():
            makers[TORCH_GPU] = lambda: Contestant(on_torch(case, "cuda"), clock=self._warm)
        return makers

    def limit_scale(self, case: Case) -> float:
        """Return what the time of the limit's contestant is to be multiplied with."""
        return case.cost.flops / (2 * PRODUCT**3) if case.cost.arithmetic else 1.0

    def moving(self, elements: int) -> Contestant:
        """Return a copy on the device, of so many float32 numbers: 8 bytes each."""
        source, target = (self.xp.ones(max(1, elements), np.float32) for _ in range(2))

        def run() -> None:
            target[...] = source

        return Contestant(run, clock=self._warm)

    def product(self) -> Contestant:
        """Return a product of two float32 matrices."""
        host = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), dtype=np.float32)
        a, b, c = (self.xp.asarray(host) for _ in range(3))
        return Contestant(lambda: self.xp.matmul(a, b, out=c), clock=self._warm)

    def _warm(self, run: Run, calls: int) -> float:
        return self.clock.run_time(run, min(calls, MOST_CALLS))

    def _cold(self, run: Run, calls: int) -> float:
        return self.clock.run_time(run, min(calls, COLD_CALLS), cold=True)

    def _copies(self, case: Case, arrays: list[Any], run: Run) -> Contestant:
        results = [*device_arrays(run()), *(arrays[k] for k in case.changed)]

        def copy() -> None:
            for array in case.inputs:
                self.xp.asarray(array)
            for result in results:
                result.get()

        return Contestant(copy)


def on_torch(case: Case, device: str) -> Run:
    """Return the call of a case in torch.

    On the CPU its tensors lie in NumPy's memory: huge pages are worth up to 1.7x, and nobody is to have an advantage.
    """
    torch = environment.torch()
    assert case.torch is not None
    with torch.no_grad():
        return torch.no_grad()(case.torch(torch, *(torch.from_numpy(array).to(device) for array in case.inputs)))


def device_arrays(value: Any) -> Iterator[Any]:
    """Yield the device arrays in nested tuples and lists."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from device_arrays(part)
    elif _arrays.device_module(value) is not None:
        yield value
