"""How accurate the activations are in float32: a markdown table of the worst errors, next to torch's.

    python bench/accuracy.py                    about a million numbers per kind, in seconds
    python bench/accuracy.py --all --only gelu  every float32 there is

An error is counted in units in the last place (ulp) of the exact value, wherever that is a normal number. A derivative
that crosses zero has no relative accuracy at the crossing that any arithmetic could keep: around it, where |f'| is
below 0.01, the unit is the ulp of 0.01.

The exact values are the reference kernels in float64. Against mpmath their own error is below 1e-13 of the value (1e-6
ulp) and, at a zero of the derivative, below 1e-15 (1e-6 ulp of 0.01).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import machine
import numpy as np
from inputs import Array
from machine import torch

import fastgrad
from fastgrad.activations import KINDS

BOUND = 4.0  # ulp, the contract
CHUNK = 1 << 20
STRIDE = 8191  # of the bit patterns, unless all are taken
# Lines on which most floats of the stride would miss: (from, to, step). Past 110 exp(-|x|) and its like are 0.
LINES = ((-110.0, 110.0, 5e-4), (-6.0, 6.0, 2e-5))
# Where the derivative crosses zero.
ZEROS = {"gelu": -0.7517915247, "gelu_tanh": -0.7524614221, "silu": -1.2784645428, "mish": -1.1924312146,
         "hardswish": -1.5}  # fmt: skip
NEAR_ZERO = 0.25  # from the crossing: as far as |f'| could be below 0.01, and not yet in the tail
SMALL = 0.01

Pair = Callable[[str, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Worst:
    """The largest error in ulp, and the x where it happens."""

    ulps: float = 0.0
    x: float = math.nan

    def __str__(self) -> str:
        if self.ulps == 0:
            return "0"
        size = f"{self.ulps:.2f}" if self.ulps < 1000 else f"{self.ulps:.1e}"
        return f"{size} at {self.x:.7g}"


def unit(exact: Array) -> Array:
    """Return the distance of float32 numbers in the binade of each exact value."""
    return np.ldexp(1.0, np.frexp(exact)[1] - 24)


def errors(result: Array, exact: Array, x: Array, zero: float | None = None) -> Array:
    """Return the error of each float32 result in ulp, 0 where the exact value is no normal number.

    zero : where the function that `exact` are the values of crosses zero, if the rule for such places is to hold
    """
    limits = np.finfo(np.float32)
    size = np.abs(exact)
    ulp = unit(size)
    if zero is not None:
        near = (np.abs(x.astype(np.float64) - zero) < NEAR_ZERO) & (size < SMALL)
        ulp = np.where(near, unit(np.float64(SMALL)), ulp)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(result.astype(np.float64) - exact) / ulp
    error[np.isnan(error)] = np.inf
    return np.where((size >= float(limits.tiny)) & (size <= float(limits.max)), error, 0.0)


def exact_values(kind: str, x: Array) -> tuple[Array, Array]:
    """Return f(x) and f'(x) in float64."""
    with fastgrad.backend("reference"):
        return by_fastgrad(kind, x.astype(np.float64))


def by_fastgrad(kind: str, x: Array) -> tuple[Array, Array]:
    return fastgrad.activation(x, kind), fastgrad.activation_backward(np.ones_like(x), x, kind)


def by_torch(kind: str, x: Array) -> tuple[Array, Array]:
    functional = torch.nn.functional
    special = {
        "identity": lambda t: t * 1.0,
        "gelu_tanh": lambda t: functional.gelu(t, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    t = torch.tensor(x, requires_grad=True)
    y = (special.get(kind) or getattr(functional, kind))(t)
    y.backward(torch.ones_like(y))
    return y.detach().numpy(), t.grad.numpy()


def every_float() -> Iterator[Array]:
    """Yield all finite float32 numbers, a chunk at a time."""
    for start in range(0, 1 << 32, CHUNK):
        x = np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)
        yield x[np.isfinite(x)]


def sample(stride: int = STRIDE, lines: Iterable[tuple[float, float, float]] = LINES) -> Iterator[Array]:
    """Yield every stride-th finite float32 number, and the numbers of some lines, a chunk at a time."""
    bits = np.arange(0, 1 << 32, stride, dtype=np.uint32).view(np.float32)
    parts = [bits[np.isfinite(bits)]]
    parts += [np.linspace(low, high, round((high - low) / step) + 1).astype(np.float32) for low, high, step in lines]
    x = np.concatenate(parts)
    for start in range(0, x.size, CHUNK):
        yield x[start : start + CHUNK]


def measure(kind: str, contestants: list[Pair], chunks: Iterable[Array], threads: int = 1) -> list[tuple[Worst, Worst]]:
    """Return for each contestant its worst errors forward and backward."""

    def one(x: Array) -> list[tuple[Worst, Worst]]:
        found = []
        exact = exact_values(kind, x)
        for contestant in contestants:
            pair = []
            for result, right, zero in zip(contestant(kind, x), exact, (None, ZEROS.get(kind)), strict=True):
                error = errors(result, right, x, zero)
                i = int(error.argmax())
                pair.append(Worst(float(error[i]), float(x[i])))
            found.append((pair[0], pair[1]))
        return found

    worst = [(Worst(), Worst())] * len(contestants)
    with ThreadPoolExecutor(threads) as pool:
        # A few chunks at a time: `every_float` yields four thousand, and the pool would take them all at once.
        pending: list[Array] = []

        def collect() -> None:
            nonlocal worst
            for found in pool.map(one, pending):
                worst = [
                    (max(old[0], new[0], key=lambda w: w.ulps), max(old[1], new[1], key=lambda w: w.ulps))
                    for old, new in zip(worst, found, strict=True)
                ]
            pending.clear()

        for x in chunks:
            if x.size:
                pending.append(x)
            if len(pending) == 2 * threads:
                collect()
        collect()
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every finite float32: minutes for each kind")
    parser.add_argument("--stride", type=int, default=STRIDE, help="of the bit patterns sampled (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="these kinds")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="default: all cores")
    arguments = parser.parse_args()
    if arguments.stride < 1 or arguments.threads < 1:
        parser.error("--stride and --threads must be at least 1")
    machine.set_threads(1)  # the chunks are what runs in parallel
    contestants: list[Pair] = [by_fastgrad]
    if torch and not arguments.no_torch:
        contestants.append(by_torch)
    names = ["fastgrad", "torch"][: len(contestants)]
    print(f"Worst error in ulp, float32, {'all numbers' if arguments.all else 'a sample'}.")
    print(machine.describe(arguments.threads) + "\n")
    titles = [f"{way}, {name}" for way in ("forward", "backward") for name in names]
    print("| kind | " + " | ".join(titles) + " |\n|" + "---|" * (len(titles) + 1))
    over = []
    for kind in arguments.only:
        chunks = every_float() if arguments.all else sample(arguments.stride)
        worst = measure(kind, contestants, chunks, arguments.threads)
        cells = [str(pair[way]) for way in (0, 1) for pair in worst]
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
        if max(w.ulps for w in worst[0]) > BOUND:
            over.append(kind)
    if over:
        sys.exit(f"fastgrad is off by more than {BOUND:g} ulp: {', '.join(over)}")


if __name__ == "__main__":
    main()
