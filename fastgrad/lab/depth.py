"""Experiment `depth`: what reaches each layer of a plain deep network, by activation and initialisation."""

from __future__ import annotations

import math

import numpy as np

from fastgrad import softmax_cross_entropy
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.words import count, joined, power
from fastgrad.lab.work import Work
from fastgrad.training.deep import DeepNetwork

__all__ = ["INIT_NAMES", "run", "sentences"]

WIDTH, BATCH, CLASSES = 64, 128, 10

INIT_NAMES = {
    "old": "old uniform",
    "xavier": "Xavier uniform",
    "he": "He normal",
    "lecun": "LeCun normal",
    "orthogonal": "orthogonal",
}

# A gradient within a factor of 100 between the first and the last layer is one that Adam can work with.
ALIVE = 100.0


def run(
    work: Work,
    depths: tuple[int, ...] | None = None,
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu", "gelu", "selu"),
) -> Result:
    """Measure one backward pass of each network."""
    depths = depths or ((10, 50) if work.quick else (10, 30, 100))
    cases = [(depth, kind, start) for depth in depths for kind in activations for start in INIT_NAMES]
    layers: list[tuple[int, str, str, int, float]] = []
    ratios: list[tuple[int, str, str, float, float, float, float]] = []
    for depth, kind, start in work.loop("one backward pass each", cases):
        arriving = _arriving(work, depth, kind, start)
        layers += [(depth, kind, INIT_NAMES[start], layer + 1, value) for layer, value in enumerate(arriving)]
        first, last = arriving[0], arriving[-1]
        ratio = first / last if last > 0 else 0.0
        ratios.append((depth, kind, INIT_NAMES[start], first, last, ratio, math.log10(ratio) if ratio else -math.inf))
    by_layer = Table("layers", ("depth", "activation", "initialisation", "layer", "gradient_norm"), layers)
    columns = ("depth", "activation", "initialisation", "first", "last", "first_over_last", "log10_first_over_last")
    overview = Table("overview", columns, ratios)
    deepest = max(depths)
    charts = [
        Chart(
            name=f"map-{depth}",
            title=f"{depth} layers: gradient at the first layer over that at the last, as a power of ten",
            table=overview,
            x="activation",
            y="log10_first_over_last",
            curves="initialisation",
            x_title="",
            y_title="power of ten",
            where={"depth": depth},
            kind="map",
        )
        for depth in depths
    ]
    charts += [
        Chart(
            name=f"layers-{kind}",
            title=f"{kind}, {deepest} layers: gradient at each layer (l2 norm)",
            table=by_layer,
            x="layer",
            y="gradient_norm",
            curves="initialisation",
            x_title="layer, from the input",
            y_title="gradient norm",
            where={"depth": deepest, "activation": kind},
            log_y=True,
        )
        for kind in activations
    ]
    return Result(
        name="depth",
        title="Where does a plain deep network's gradient die, and where does it burst?",
        sentences=sentences(overview.select(depth=deepest), deepest),
        method=f"Networks of {WIDTH} units a layer without norms or skip connections, in float32, before the first "
        f"step of training: one batch of {BATCH} random inputs and random classes, cross-entropy. The gradient at a "
        "layer is that of the loss by the layer's output, over the whole batch. The old initialisation is uniform "
        "within 1/√fan_in, biases too; the biases of the others are zero.",
        charts=charts,
        tables=[overview, by_layer],
    )


def _arriving(work: Work, depth: int, kind: str, start: str) -> list[float]:
    rng = work.rng(depth)
    x = rng.standard_normal((BATCH, WIDTH), dtype=np.float32)
    targets = rng.integers(0, CLASSES, BATCH)
    network = DeepNetwork(WIDTH, WIDTH, depth, CLASSES, activation=kind, init=start, rng=rng)
    _, dlogits = softmax_cross_entropy(network.forward(x), targets)
    network.backward(dlogits)
    return [float(value) for value in network.arriving]


def sentences(overview: Table, depth: int) -> tuple[str, str]:
    """Say which pairs keep their gradient, which lose it, and which let it burst."""
    pairs = [
        (kind, start, ratio, first)
        for kind, start, ratio, first in zip(
            *(overview.column(name) for name in ("activation", "initialisation", "first_over_last", "first")),
            strict=True,
        )
    ]
    alive = [pair for pair in pairs if 1 / ALIVE <= pair[2] <= ALIVE]
    dead = [pair for pair in pairs if not pair[2] >= 1 / ALIVE]
    burst = [pair for pair in pairs if pair[2] > ALIVE]
    if alive:
        names = joined([f"{kind} with {start}" for kind, start, *_ in alive])
        first = (
            f"Through {depth} layers the gradient keeps its size, within a factor of {ALIVE:g}, in {count(len(alive))} "
            f"of {len(pairs)} pairs of activation and initialisation: {names}."
        )
    else:
        first = (
            f"Through {depth} layers the gradient keeps its size, within a factor of {ALIVE:g}, in none of the "
            f"{len(pairs)} pairs of activation and initialisation."
        )
    parts = []
    if dead:
        zero = sum(pair[3] == 0 for pair in dead)
        worst = min(dead, key=lambda pair: pair[2])
        what = (
            f"to exactly 0 in {count(zero)} of them"
            if zero
            else f"furthest with {worst[0]} and {worst[1]}, to {power(worst[2])} of what the last layer sees"
        )
        parts.append(f"it dies in {count(len(dead))}, {what}")
    if burst:
        worst = max(burst, key=lambda pair: pair[2])
        parts.append(
            f"it bursts in {count(len(burst))}, furthest with {worst[0]} and {worst[1]}, to {power(worst[2])} times"
        )
    if not dead:
        parts.append("it dies in none")
    if not burst:
        parts.append("it bursts in none")
    text = "; ".join(parts)
    return first, f"{text[0].upper()}{text[1:]}."
