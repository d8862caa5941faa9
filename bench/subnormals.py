"""What subnormal numbers cost: the same kernels on usual numbers and on subnormal ones, kept and flushed, by turns.

python bench/subnormals.py    a markdown table, in half a minute

Each kernel runs on arrays that fit into the caches, where arithmetic is what it waits for, and on large ones. "usual"
are N(0, 1) gradients; "subnormal" are the same times 2**-130 in float32: each of them, and about all that is computed
of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import machine
import numpy as np
from inputs import QUICK, TRAINER_SEQUENCE, normal

import fastgrad
from fastgrad.profiling.turns import Contestant, by_turns

FACTORS = {"usual": np.float32(1), "subnormal": np.float32(2.0**-130)}
SIZES = (1 << 10, 1 << 12) if QUICK else (1 << 15, 1 << 23)

Call = Callable[[], object]


def adam(size: int, factor: np.float32) -> Call:
    """A step with a vanishing gradient; the averages stay of its size from call to call."""
    param, grad, mean = normal(1, size), normal(2, size) * factor, normal(3, size) * factor
    square = np.square(normal(4, size)) * factor
    return lambda: fastgrad.adam_step(param, grad, mean, square, step=10, lr=1e-9)


def norm(size: int, factor: np.float32) -> Call:
    """The l2 norm, summed in double precision: subnormals are inputs only."""
    grad = normal(5, size) * factor
    return lambda: fastgrad.global_norm(grad)


def gelu_backward(size: int, factor: np.float32) -> Call:
    """One product with dy; the rest is made of x."""
    x, dy = normal(6, size), normal(7, size) * factor
    out = np.empty_like(x)
    return lambda: fastgrad.activation_backward(dy, x, "gelu", out=out)


def lstm_backward(size: int, factor: np.float32) -> Call:
    """Backward through the layer of `fastgrad train`, with a vanishing gradient; `size` does not matter."""
    steps, batch, inputs, hidden = TRAINER_SEQUENCE
    x, dy = normal(8, steps, batch, inputs), normal(9, steps, batch, hidden) * factor
    weights = [normal(10, 4 * hidden, inputs, scale=0.05), normal(11, 4 * hidden, hidden, scale=0.05)]
    _, _, saved = fastgrad.lstm(x, None, None, *weights)
    return lambda: fastgrad.lstm_backward(dy, None, None, saved)


def under(policy: str, call: Call) -> Call:
    """Return `call` under a policy."""

    def run() -> object:
        with fastgrad.subnormals(policy):
            return call()

    return run


ROWS: dict[str, tuple[Callable[[int, np.float32], Call], int]] = {
    **{f"global norm, {size:,}": (norm, size) for size in SIZES},
    **{f"gelu backward, {size:,}": (gelu_backward, size) for size in SIZES},
    **{f"Adam, {size:,}": (adam, size) for size in SIZES},
    f"LSTM backward, (T, B, I, H) = {TRAINER_SEQUENCE}": (lstm_backward, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cores(), help="default: all cores")
    parser.add_argument("--turns", type=int, default=9, help="default: %(default)s")
    arguments = parser.parse_args()
    machine.set_threads(arguments.threads)
    print(f"{machine.describe(arguments.threads)}. float32, medians of {arguments.turns} turns in one process.\n")
    names = [f"{numbers}, {policy}" for numbers in FACTORS for policy in ("keep", "flush")]
    print(f"| microseconds | {' | '.join(names)} | subnormal / usual, keep |\n|---|{'---:|' * (len(names) + 1)}")
    for row, (build, size) in ROWS.items():
        contestants = {}
        for name in names:  # each on arrays of its own: what is flushed once would be zero for the next
            numbers, policy = name.split(", ")
            contestants[name] = Contestant(under(policy, build(size, FACTORS[numbers])))
        for contestant in contestants.values():
            contestant.run()
        times = by_turns(contestants, turns=arguments.turns, pause=0.02)
        micros = [times.median(name) * 1e6 for name in names]
        cells = [f"{t:.1f}" if t < 100 else f"{t:,.0f}" for t in micros]
        ratio = times.paired_ratio("subnormal, keep", "usual, keep")
        print(f"| {row} | {' | '.join(cells)} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
