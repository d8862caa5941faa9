"""A piece of work and those who do it: naive NumPy, fastgrad and torch, on the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import torch

import fastgrad
from fastgrad.profiling.costs import Cost
from fastgrad.profiling.limits import Limit
from fastgrad.profiling.turns import Contestant

Array = np.ndarray

NUMPY, FASTGRAD, TORCH, OPTAX, DEEPSPEED = "numpy", "fastgrad", "torch", "optax", "deepspeed"
LIMIT = "limit"
CONTESTANTS = (NUMPY, FASTGRAD, TORCH)  # of the pytest-benchmark suites; `compare.py` takes all


@dataclass(frozen=True)
class Work:
    """group: the heading under which the contestants stand side by side.

    bytes: of the arguments and results of a call, each once as it is read or written; flops: multiplications and
    additions of products and updates, both of fastgrad.profiling.costs.
    contestants: `run` returns the arrays that all must agree on, in one order, in any nesting of tuples and lists.
    limit: what the machine allows, timed in turn with the contestants; built when called, for its arrays.
    rtol: the largest difference of two contestants, relative to the largest entry of the array.
    """

    group: str
    shape: str
    bytes: int
    flops: int
    contestants: dict[str, Contestant]
    limit: Callable[[], Limit] | None = None
    rtol: float = 1e-5
    dtype: str = "float32"

    def rate(self, seconds: float) -> str:
        """Return the rate of a call that took so long, in the unit of what limits it."""
        return Cost(self.bytes, self.flops).rate(seconds)

    def verify(self) -> None:
        """Run every contestant once from its initial state, and compare what they return.

        It is also the warm-up: kernels get compiled and pages mapped.

        Raises:
            AssertionError: two contestants compute something else; nobody must be timed then.
        """
        expected: list[Array] = []
        for name, contestant in self.contestants.items():
            if contestant.before is not None:
                contestant.before()
            found = list(arrays_in(contestant.run()))
            expected = expected or found
            assert len(found) == len(expected), f"{self.group}: {name} returns {len(found)} arrays, not {len(expected)}"
            for k, (a, b) in enumerate(zip(found, expected, strict=True)):
                if a is b:
                    continue
                assert a.shape == b.shape, f"{self.group}: array {k} of {name} has shape {a.shape}, not {b.shape}"
                scale = float(np.max(np.abs(b), initial=0.0))
                worst = float(np.max(np.abs(a - b), initial=0.0))
                assert worst <= self.rtol * scale, (
                    f"{self.group}: array {k} {a.shape} of {name} differs by {worst:g}, "
                    f"more than {self.rtol:g} of its largest entry {scale:g}"
                )


def arrays_in(result: Any) -> Iterator[Array]:
    """Yield the arrays and tensors in nested tuples and lists as NumPy arrays; None is left out."""
    if isinstance(result, tuple | list):
        for part in result:
            yield from arrays_in(part)
    elif torch and isinstance(result, torch.Tensor):
        yield result.detach().numpy()
    elif result is not None:
        yield np.asarray(result)


def contestants(
    numpy: Callable[[], object],
    fastgrad: Callable[[], object],
    torch: Callable[[], object] | None,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Contestant]:
    """Return contestants by name; torch is None where it is not installed. before: see `Contestant`, by name."""
    before = before or {}
    runs = {NUMPY: numpy, FASTGRAD: fastgrad, TORCH: torch}
    return {name: Contestant(run, before.get(name)) for name, run in runs.items() if run is not None}


def on_reference(call: Callable[[], object]) -> Callable[[], object]:
    """Return `call` on the reference kernels, for operations whose reference is what people write by hand."""

    def run() -> object:
        with fastgrad.backend("reference"):
            return call()

    return run


def restore(arrays: Sequence[Array], originals: Sequence[Array]) -> Callable[[], None]:
    """Return a call that writes the originals back into arrays that a contestant has changed."""

    def run() -> None:
        for array, original in zip(arrays, originals, strict=True):
            np.copyto(array, original)

    return run


def tensors(arrays: Sequence[Array]) -> list[Any]:
    """Return torch's tensors on the memory of NumPy arrays.

    NumPy asks the kernel for huge pages and plain malloc does not, which is worth up to 1.7x: so nobody has an
    advantage from where the arrays lie.
    """
    return [torch.from_numpy(array) for array in arrays]
