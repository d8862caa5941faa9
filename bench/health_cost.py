"""What the health of gradients costs beside the pass for their norm, and in a whole step, all by turns.

python bench/health_cost.py                    GPT-2 small's tensors and 200 of 1,000, on all cores
python bench/health_cost.py --threads 1
"""

from __future__ import annotations

import argparse

import machine
from bench_health import gradients
from inputs import LISTS, QUICK, copies

import fastgrad
from fastgrad._dispatch import kernels
from fastgrad._tensor_lists import TensorGroups
from fastgrad.profiling.turns import Contestant, by_turns


def passes(name: str, turns: int) -> None:
    """Print what takes how long: the bare norm pass and the one with health, a step without health and with it."""
    grads = gradients(name)

    def norm() -> None:
        groups = TensorGroups("grads", grads)
        kernels("norm").global_norm(groups.lists[0], 2.0)
        groups.done()

    def health() -> None:
        groups = TensorGroups("grads", grads)
        found = kernels("health").health(groups.lists[0])
        kernels("norm").norm_of_norms(found[0], 2.0)
        groups.done()

    params = copies(grads)
    steps = {on: fastgrad.Adam(params, lr=1e-9, max_norm=1.0, health=on) for on in (False, True)}
    monitor = fastgrad.GradientMonitor(steps[True], every=10)
    for pair in (
        {"norm": norm, "norm + health": health},
        {"step": lambda: steps[False].step(grads), "step + health + monitor": lambda: steps[True].step(grads)},
    ):
        for contestant in pair.values():
            contestant()
        times = by_turns({label: Contestant(run) for label, run in pair.items()}, turns=turns)
        bare, full = pair
        print(
            f"{name}: {bare} {times.median(bare) * 1e3:.4g} ms, {full} {times.median(full) * 1e3:.4g} ms: "
            f"{times.paired_ratio(full, bare):.3f}, median of the ratios of {turns} turns"
        )
    monitor.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--turns", type=int, default=3 if QUICK else 25)
    parser.add_argument("--only", default="", help="of the lists: gpt2-small, 200x1000")
    arguments = parser.parse_args()
    machine.set_threads(arguments.threads)
    for name in LISTS:
        if arguments.only in name:
            passes(name, arguments.turns)


if __name__ == "__main__":
    main()
