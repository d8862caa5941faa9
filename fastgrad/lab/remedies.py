"""Experiment `remedies`: one network that cannot learn, with one remedy at a time, and with all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastgrad import Adam, softmax_cross_entropy
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.tasks import ARMS, spirals
from fastgrad.lab.words import count, joined, power, share
from fastgrad.lab.work import Work, means
from fastgrad.training.deep import DeepNetwork

__all__ = ["LEARNED", "REMEDIES", "Recipe", "run", "sentences"]

WIDTH, BATCH, TEST = 64, 128, 2000

# Of three classes: one in three is chance.
LEARNED, CHANCE = 0.95, 1 / ARMS


@dataclass(frozen=True)
class Recipe:
    """How the network is made and stepped."""

    activation: str = "sigmoid"
    init: str = "old"
    norm: str = "none"
    residual: bool = False
    clip: float | None = None


SICK = Recipe()

REMEDIES = {
    "no remedy": SICK,
    "ReLU": replace(SICK, activation="relu"),
    "Xavier initialisation": replace(SICK, init="xavier"),
    "orthogonal initialisation": replace(SICK, init="orthogonal"),
    "ReLU and He initialisation": replace(SICK, activation="relu", init="he"),
    "BatchNorm": replace(SICK, norm="batch"),
    "LayerNorm": replace(SICK, norm="layer"),
    "skip connections": replace(SICK, residual=True),
    "clipping": replace(SICK, clip=1.0),
    "all": Recipe("relu", "he", "layer", True, 1.0),
}


def run(work: Work, depth: int = 30, steps: int | None = None) -> Result:
    """Train the network once with each remedy, from the same seed and on the same points."""
    steps = steps or (150 if work.quick else 600)
    layers: list[tuple[str, int, float]] = []
    losses: list[tuple[str, int, float]] = []
    outcome: list[tuple[str, float, float, float]] = []
    for name, recipe in REMEDIES.items():
        arriving, curve, accuracy = _train(work, name, recipe, depth, steps)
        layers += [(name, layer + 1, value) for layer, value in enumerate(arriving)]
        losses += [(name, step, loss) for step, loss in means(curve)]
        outcome.append((name, accuracy, arriving[0], arriving[-1]))
    by_layer = Table("layers", ("remedy", "layer", "gradient_norm"), layers)
    by_step = Table("losses", ("remedy", "step", "loss"), losses)
    summary = Table("accuracy", ("remedy", "test_accuracy", "first", "last"), outcome)
    charts = [
        Chart(
            name="accuracy",
            title=f"Points of the test set on the right arm, after {steps:,} steps",
            table=summary,
            x="remedy",
            y="test_accuracy",
            curves="remedy",
            x_title="",
            y_title="test accuracy",
            kind="bars",
            percent=True,
        ),
        Chart(
            name="layers",
            title="Gradient at each layer before the first step (l2 norm)",
            table=by_layer,
            x="layer",
            y="gradient_norm",
            curves="remedy",
            x_title="layer, from the input",
            y_title="gradient norm",
            log_y=True,
        ),
        Chart(
            name="losses",
            title="Training loss (nats, mean of 10 steps)",
            table=by_step,
            x="step",
            y="loss",
            curves="remedy",
            x_title="step",
            y_title="loss (nats)",
        ),
    ]
    return Result(
        name="remedies",
        title="Which remedy brings a dead network back?",
        sentences=sentences(summary, depth),
        method=f"A network of {depth} layers of {WIDTH} units with sigmoid and the old uniform initialisation, in "
        f"float32, that sorts points of the plane onto the {ARMS} arms of a spiral: {steps:,} steps of Adam (0.002) on "
        f"{BATCH} new points each, then {TEST:,} test points. Each remedy changes that network in one place; “all” is "
        "ReLU, He initialisation, LayerNorm, skip connections and clipping to 1 together. A third is right by chance.",
        charts=charts,
        tables=[summary, by_layer, by_step],
    )


def _train(work: Work, name: str, recipe: Recipe, depth: int, steps: int) -> tuple[list[float], list[float], float]:
    """Return the gradient at each layer before the first step, the loss of every step, and the test accuracy."""
    rng = work.rng(0)
    network = DeepNetwork(
        2, WIDTH, depth, ARMS, activation=recipe.activation, init=recipe.init, norm=recipe.norm,
        residual=recipe.residual, rng=rng,
    )  # fmt: skip
    optimizer = Adam(network.parameters(), lr=2e-3, max_norm=recipe.clip)
    points = work.rng(1)
    losses: list[float] = []
    arriving: list[float] = []
    for _ in work.loop(name, steps):
        x, arm = spirals(BATCH, points)
        optimizer.zero_grad()
        loss, dlogits = softmax_cross_entropy(network.forward(x), arm)
        network.backward(dlogits)
        arriving = arriving or [float(value) for value in network.arriving]
        optimizer.step()
        losses.append(float(loss))
    x, arm = spirals(TEST, work.rng(2))
    accuracy = float((network.eval().forward(x).argmax(axis=1) == arm).mean())
    return arriving, losses, accuracy


def sentences(summary: Table, depth: int) -> tuple[str, str]:
    """Say which remedies help, half help, and don't."""
    accuracy = dict(zip(summary.column("remedy"), summary.column("test_accuracy"), strict=True))
    first = dict(zip(summary.column("remedy"), summary.column("first"), strict=True))
    single = [name for name in accuracy if name not in ("no remedy", "all")]
    cured = [name for name in single if accuracy[name] >= LEARNED]
    partly = [name for name in single if CHANCE + 0.05 <= accuracy[name] < LEARNED]
    useless = [name for name in single if accuracy[name] < CHANCE + 0.05]

    def listed(names: list[str]) -> str:
        return joined([f"{name} ({share(accuracy[name])})" for name in names])

    start = (
        f"Without a remedy the first of {depth} layers receives a gradient of {power(first['no remedy'])} and the "
        f"network gets {share(accuracy['no remedy'])} right"
    )
    cures = (
        f"{count(len(cured), 'single change')} {'cures' if len(cured) == 1 else 'cure'} it: {listed(cured)}"
        if cured
        else "no single change cures it"
    )
    every = f"all together reach {share(accuracy['all'])}" if "all" in accuracy else ""
    rest = []
    if partly:
        rest.append(f"{listed(partly)} {'helps' if len(partly) == 1 else 'help'} in part")
    if useless:
        rest.append(
            f"{listed(useless)} {'does' if len(useless) == 1 else 'do'} not help this network: "
            f"{'it stays' if len(useless) == 1 else 'they stay'} near chance"
        )
    if not rest:
        rest.append("no change in this run was without effect")
    text = "; ".join(rest)
    return f"{start}; {cures}; {every}.", f"{text[0].upper()}{text[1:]}."
