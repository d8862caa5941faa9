"""How accurate the activations are in float32: a markdown table of the worst errors, next to torch's.

    python bench/accuracy.py                    about a million numbers per kind, in seconds
    python bench/accuracy.py --all --no-torch   every finite float32 there is, in four minutes on two cores
    python bench/accuracy.py --all --only gelu  one kind of them

An error is counted in units in the last place (ulp) of the exact value, wherever that is a normal number. A derivative
that crosses zero has no relative accuracy at the crossing that any arithmetic could keep: around it, where |f'| is
below 0.01, the unit is the ulp of 0.01.

The exact values are the reference kernels in float64. Against mpmath their own error is below 1e-13 of the value (1e-6
ulp) and, at a zero of the derivative, below 1e-15 (1e-6 ulp of 0.01). They would take hours for every float32: with
--all the exact values are fastgrad's own float64 kernels, other polynomials with 29 more bits, once these have come
within 1e-4 ulp of the reference kernels on the whole sample.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import machine
import numba
import numpy as np
from inputs import Array
from machine import torch

import fastgrad
from fastgrad.activations import KINDS

BOUND = 4.0  # ulp, the contract
TRUSTED = 1e-4  # ulp by which the exact values may be off
CHUNK = 1 << 17  # its numbers, values and exact values: 4 MB. With half, threads wait for each other in Python
STRIDE = 8191  # of the bit patterns, unless all are taken
# Where the derivative crosses zero.
ZEROS = {"gelu": -0.7517915247, "gelu_tanh": -0.7524614221, "silu": -1.2784645428, "mish": -1.1924312146,
         "hardswish": -1.5}  # fmt: skip
# Lines on which most floats of the stride would miss: (from, to, step). Past 110 exp(-|x|) and its like are 0. The last
# ones take every float next to a zero.
LINES = (
    (-110.0, 110.0, 5e-4),
    (-6.0, 6.0, 2e-5),
    *((zero - 2.0**-11, zero + 2.0**-11, 2.0**-24) for zero in ZEROS.values()),
)
INFINITY = 0x7F800000  # its bit pattern
NEAR_ZERO = 0.25  # from the crossing: as far as |f'| could be below 0.01, and not yet in the tail
SMALL = 0.01
SMALL_UNIT = float(np.spacing(np.float32(SMALL)))
TINY, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

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


@numba.njit(nogil=True, error_model="numpy")
def largest_error(result: Array, exact: Array, x: Array, low: float, high: float) -> np.int64:
    """Return the bits of the largest error of `result` in ulp, which order as the numbers do, with NaN above inf.

    exact : float64; where it is no normal number of float32, no error is counted
    low, high : where exact values below SMALL are measured in the unit of SMALL
    """
    largest = np.int64(0)
    for i in range(x.size):
        size = abs(exact[i])
        # The power of two below the exact value is its bits without the fraction; a float32 has 23 bits after it.
        power = (np.float64(size).view(np.int64) >> 52) << 52
        ulp = np.int64(power).view(np.float64) * 2.0**-23
        if low < x[i] < high and size < SMALL:
            ulp = SMALL_UNIT
        error = abs(np.float64(result[i]) - exact[i]) / ulp
        if TINY <= size <= LARGEST:
            largest = max(largest, np.float64(error).view(np.int64))
    return largest


@numba.njit(nogil=True, error_model="numpy")
def place_of(bits: int, result: Array, exact: Array, x: Array, low: float, high: float) -> float:
    """Return the first x where the error is the one that `largest_error` found."""
    for i in range(x.size):
        if largest_error(result[i : i + 1], exact[i : i + 1], x[i : i + 1], low, high) == bits:
            return float(x[i])
    return math.nan


def worst_error(result: Array, exact: Array, x: Array, zero: float | None, known: Worst) -> Worst:
    """Return the largest error in ulp of values at x where it is above the `known` one, else that.

    zero : where the function that `exact` are the values of crosses zero, if the rule for such places is to hold
    """
    low, high = (math.inf, -math.inf) if zero is None else (zero - NEAR_ZERO, zero + NEAR_ZERO)
    bits = largest_error(result, exact, x, low, high)
    ulps = float(np.int64(bits).view(np.float64))
    if math.isnan(ulps):
        ulps = math.inf
    return Worst(ulps, place_of(bits, result, exact, x, low, high)) if ulps > known.ulps else known


def by_reference(kind: str, x: Array) -> tuple[Array, Array]:
    """Return f(x) and f'(x) in float64, by the definitions."""
    with fastgrad.backend("reference"):
        return by_fastgrad(kind, x.astype(np.float64))


def by_float64(kind: str, x: Array) -> tuple[Array, Array]:
    """Return f(x) and f'(x) in float64, by the kernels."""
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
    for sign in (0, 1 << 31):
        for start in range(sign, sign + INFINITY, CHUNK):
            yield np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)


def sample(stride: int = STRIDE, lines: Iterable[tuple[float, float, float]] = LINES) -> Iterator[Array]:
    """Yield every stride-th finite float32 number, and the numbers of some lines, a chunk at a time."""
    bits = np.arange(0, 1 << 32, stride, dtype=np.uint32).view(np.float32)
    parts = [bits[np.isfinite(bits)]]
    parts += [np.linspace(low, high, round((high - low) / step) + 1).astype(np.float32) for low, high, step in lines]
    x = np.concatenate(parts)
    for start in range(0, x.size, CHUNK):
        yield x[start : start + CHUNK]


def measure(
    kind: str, contestants: Sequence[Pair], exact: Pair, chunks: Iterator[Array], threads: int
) -> list[tuple[Worst, Worst]]:
    """Return for each contestant its worst errors forward and backward."""
    turn = threading.Lock()
    zero = ZEROS.get(kind)

    def work(_: int) -> list[tuple[Worst, Worst]]:
        worst = [(Worst(), Worst())] * len(contestants)
        while True:
            with turn:
                x = next(chunks, None)
            if x is None:
                return worst
            y, dx = exact(kind, x)
            for k, contestant in enumerate(contestants):
                y_found, dx_found = contestant(kind, x)
                forward, backward = worst[k]
                worst[k] = (
                    worst_error(y_found, y, x, None, forward),
                    worst_error(dx_found, dx, x, zero, backward),
                )

    with ThreadPoolExecutor(threads) as pool:
        by_thread = list(pool.map(work, range(threads)))
    ways = [[[found[k][way] for found in by_thread] for way in (0, 1)] for k in range(len(contestants))]
    return [tuple(max(way, key=lambda w: w.ulps) for way in pair) for pair in ways]  # type: ignore[misc]


def trust(kind: str, stride: int, threads: int) -> None:
    """End the program where the float64 kernels are not what the reference kernels are."""
    ((forward, backward),) = measure(kind, [by_float64], by_reference, sample(stride), threads)
    if max(forward.ulps, backward.ulps) > TRUSTED:
        found = ", ".join(f"{w.ulps:.1e} at {w.x:.9g}" for w in (forward, backward))
        sys.exit(f"{kind}: the float64 kernels are off by more than {TRUSTED:g} ulp of float32: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every finite float32")
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
        if arguments.all:
            trust(kind, arguments.stride, arguments.threads)
            worst = measure(kind, contestants, by_float64, every_float(), arguments.threads)
        else:
            worst = measure(kind, contestants, by_reference, sample(arguments.stride), arguments.threads)
        cells = [str(pair[way]) for way in (0, 1) for pair in worst]
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
        if max(w.ulps for w in worst[0]) > BOUND:
            over.append(kind)
    if over:
        sys.exit(f"fastgrad is off by more than {BOUND:g} ulp: {', '.join(over)}")


if __name__ == "__main__":
    main()
