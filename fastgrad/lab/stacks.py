"""Experiment `stacks`: networks of hundreds of layers that learn through skip connections, beside the same without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastgrad import Adam, softmax_cross_entropy
from fastgrad._arrays import Array
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.tasks import ARMS, SYMBOLS, majority, spirals
from fastgrad.lab.words import joined, power, share
from fastgrad.lab.work import Work, means
from fastgrad.layers import Activation, Embedding, Layer, LayerNorm, Linear, Sequential, TransformerBlock
from fastgrad.training.deep import DeepNetwork, Stack

__all__ = ["WITH", "WITHOUT", "run", "sentences"]

WIDTH, BATCH, TEST = 32, 64, 1024

# Of the transformer: features, heads, features inside a block, places of a sequence, and sequences in a step.
FEATURES, HEADS, INSIDE, PLACES, SEQUENCES = 32, 4, 64, 16, 16

WITH, WITHOUT = "with skip connections", "without"


def run(work: Work, depth: int | None = None, blocks: int | None = None, steps: int | None = None) -> Result:
    """Train each network with and without its skip connections."""
    depth, blocks = depth or (200 if work.quick else 1000), blocks or (24 if work.quick else 200)
    steps = steps or (60 if work.quick else 100)
    layers: list[tuple[str, str, int, float]] = []
    losses: list[tuple[str, str, int, float]] = []
    outcome: list[tuple[str, str, float, float, float]] = []
    networks = {
        f"{depth:,}-layer network": _Problem(partial(_network, depth), spirals, BATCH, 3e-4),
        f"{blocks:,}-block transformer": _Problem(
            partial(_transformer, blocks), partial(majority, PLACES), SEQUENCES, 1e-3
        ),
    }
    for title, problem in networks.items():
        for name in (WITH, WITHOUT):
            arriving, curve, accuracy = problem.train(work, f"{title}, {name}", name == WITH, steps)
            layers += [(title, name, layer + 1, value) for layer, value in enumerate(arriving)]
            losses += [(title, name, step, loss) for step, loss in means(curve, 5)]
            outcome.append((title, name, accuracy, arriving[0], arriving[-1]))
    by_layer = Table("layers", ("network", "variant", "layer", "gradient_norm"), layers)
    by_step = Table("losses", ("network", "variant", "step", "loss"), losses)
    summary = Table("accuracy", ("network", "variant", "test_accuracy", "first", "last"), outcome)
    charts = []
    for position, title in enumerate(networks):
        charts += [
            Chart(
                name=f"losses-{position}",
                title=f"{title}: training loss (nats, mean of 5 steps)",
                table=by_step,
                x="step",
                y="loss",
                curves="variant",
                x_title="step",
                y_title="loss (nats)",
                where={"network": title},
            ),
            Chart(
                name=f"layers-{position}",
                title=f"{title}: gradient at each layer before the first step (l2 norm)",
                table=by_layer,
                x="layer",
                y="gradient_norm",
                curves="variant",
                x_title="layer, from the input",
                y_title="gradient norm",
                where={"network": title},
                log_y=True,
            ),
        ]
    return Result(
        name="stacks",
        title="How deep can it go with skip connections?",
        sentences=sentences(summary),
        method=f"The network of {depth:,} layers: {WIDTH} units each, LayerNorm, ReLU, He initialisation, points on "
        f"the {ARMS} arms of a spiral, {BATCH} new ones in each of {steps} steps of Adam (0.0003, gradients clipped to "
        f"1), {TEST:,} test points. The transformer of {blocks:,} blocks: {FEATURES} features, {HEADS} heads, {INSIDE} "
        f"features inside, norm before each part; {PLACES} symbols of {SYMBOLS}, half of them the one "
        f"that is asked for at each place, {SEQUENCES} new sequences in each of {steps} steps of Adam (0.001, "
        f"clipped to 1), {TEST:,} test sequences. Without skip connections the same layers follow each other.",
        charts=charts,
        tables=[summary, by_layer, by_step],
    )


@dataclass(frozen=True)
class _Problem:
    """make(residual, rng): the network; draw(batch, rng): inputs and classes of any shape; batch: of a step; lr: of
    Adam."""

    make: Callable[[bool, np.random.Generator], Stack]
    draw: Callable[[int, np.random.Generator], tuple[Array, Array]]
    batch: int
    lr: float

    def train(self, work: Work, label: str, residual: bool, steps: int) -> tuple[list[float], list[float], float]:
        """Return the gradient at each block before the first step, the loss of every step, and the test accuracy."""
        network = self.make(residual, work.rng(0))
        optimizer = Adam(network.parameters(), lr=self.lr, max_norm=1.0)
        points = work.rng(1)
        losses: list[float] = []
        arriving: list[float] = []
        for _ in work.loop(label, steps):
            x, classes = self.draw(self.batch, points)
            optimizer.zero_grad()
            logits = network.forward(x)
            loss, dlogits = softmax_cross_entropy(logits.reshape(-1, logits.shape[-1]), classes.reshape(-1))
            network.backward(dlogits.reshape(logits.shape))
            arriving = arriving or [float(value) for value in network.arriving]
            optimizer.step()
            losses.append(float(loss))
        network.eval()
        held, right = work.rng(2), []
        # What a thousand layers keep of all test points at once would be gigabytes.
        for _ in range(TEST // self.batch):
            x, classes = self.draw(self.batch, held)
            right.append(float((network.forward(x).argmax(axis=-1) == classes).mean()))
        return arriving, losses, float(np.mean(right))


def _network(depth: int, residual: bool, rng: np.random.Generator) -> Stack:
    return DeepNetwork(2, WIDTH, depth, ARMS, activation="relu", init="he", norm="layer", residual=residual, rng=rng)


def _transformer(blocks: int, residual: bool, rng: np.random.Generator) -> Stack:
    def block() -> Layer:
        whole = TransformerBlock(FEATURES, HEADS, INSIDE, rng=rng)
        if residual:
            return whole
        return Sequential(
            whole.norm1, whole.self_attn, whole.norm2, whole.linear1, Activation(whole.activation), whole.linear2
        )

    entry, inside = Embedding(SYMBOLS, FEATURES, rng=rng), [block() for _ in range(blocks)]
    return Stack([entry], inside, [LayerNorm(FEATURES), Linear(FEATURES, SYMBOLS, rng=rng)])


def sentences(summary: Table) -> tuple[str, str]:
    """Say what each network learned with and without skip connections, and what reaches its first layer."""
    networks = list(dict.fromkeys(summary.column("network")))
    learned, reached = [], []
    for network in networks:
        right = {name: summary.one("test_accuracy", network=network, variant=name) for name in (WITH, WITHOUT)}
        first = {name: summary.one("first", network=network, variant=name) for name in (WITH, WITHOUT)}
        gain = right[WITH] - right[WITHOUT]
        effect = (
            "skip connections make it learn"
            if gain > 0.1
            else "skip connections keep it from learning"
            if gain < -0.1
            else "skip connections make no difference"
        )
        learned.append(
            f"the {network} gets {share(right[WITH])} of the test right with skip connections and "
            f"{share(right[WITHOUT])} without: {effect}"
        )
        reached.append(f"{power(first[WITH])} with and {power(first[WITHOUT])} without them in the {network}")
    text = "; ".join(learned)
    return (
        f"{text[0].upper()}{text[1:]}.",
        f"The gradient that reaches the first layer before training is {joined(reached)}.",
    )
