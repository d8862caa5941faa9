"""Experiment `explosion`: the same exploding run with and without clipping."""

from __future__ import annotations

import math

import numpy as np

from fastgrad import SGD, global_norm, softmax_cross_entropy
from fastgrad.lab.cell import PlainCell
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.tasks import SYMBOLS, copying
from fastgrad.lab.words import power, share
from fastgrad.lab.work import Work
from fastgrad.layers import Linear

__all__ = ["RUNS", "run", "sentences"]

HIDDEN, BATCH, LENGTH, GAIN, TEST = 32, 32, 20, 1.3, 512

RUNS = {"without clipping": None, "clipped to a norm of 1": 1.0}


def run(work: Work, steps: int | None = None) -> Result:
    """Train the plain recurrent cell twice, from the same weights and on the same sequences."""
    steps = steps or (200 if work.quick else 500)
    curves: list[tuple[str, int, float, float]] = []
    outcome: list[tuple[str, float]] = []
    for name, max_norm in RUNS.items():
        losses, norms, accuracy = _train(work, name, max_norm, steps)
        curves += [(name, step + 1, loss, norm) for step, (loss, norm) in enumerate(zip(losses, norms, strict=True))]
        outcome.append((name, accuracy))
    by_step = Table("steps", ("run", "step", "loss", "gradient_norm"), curves)
    summary = Table("accuracy", ("run", "test_accuracy"), outcome)
    charts = [
        Chart(
            name=name,
            title=title,
            table=by_step,
            x="step",
            y=column,
            curves="run",
            x_title="step",
            y_title=axis,
            log_y=True,
        )
        for name, title, column, axis in (
            ("loss", "Training loss (nats)", "loss", "loss (nats)"),
            ("norm", "Norm of the gradient before clipping (l2, all parameters)", "gradient_norm", "gradient norm"),
        )
    ]
    return Result(
        name="explosion",
        title="What does clipping do to an exploding run?",
        sentences=sentences(by_step, summary),
        method=f"The plain recurrent cell with {HIDDEN} units, W_hh {GAIN:g} times an orthogonal matrix, so that "
        f"gradients grow from step to step; copying one of {SYMBOLS} symbols over {LENGTH} steps; SGD with momentum "
        f"(0.1, 0.9) for {steps:,} steps on {BATCH} new sequences each. Both runs have the same first weights and the "
        f"same sequences. Right by chance is {share(1 / SYMBOLS)}, a loss of {math.log(SYMBOLS):.2f} nats.",
        charts=charts,
        tables=[summary, by_step],
    )


def _train(work: Work, name: str, max_norm: float | None, steps: int) -> tuple[list[float], list[float], float]:
    """Return loss and gradient norm of each step, and the test accuracy."""
    rng, sequences = work.rng(0), work.rng(1)
    cell = PlainCell(SYMBOLS + 2, HIDDEN, orthogonal=GAIN, rng=rng)
    head = Linear(HIDDEN, SYMBOLS, rng=rng)
    # A gradient that is not finite goes into the weights: that is what this run is to show.
    optimizer = SGD(
        cell.parameters() + head.parameters(), lr=0.1, momentum=0.9, max_norm=max_norm, nonfinite="propagate"
    )
    losses, norms = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in work.loop(name, steps):
            x, symbol = copying(LENGTH, BATCH, sequences)
            optimizer.zero_grad()
            y = cell.forward(x)
            loss, dlogits = softmax_cross_entropy(head.forward(y[-1]), symbol)
            dy = np.zeros_like(y)
            dy[-1] = head.backward(dlogits)
            cell.backward(dy)
            norms.append(float(global_norm([parameter.grad for parameter in cell.parameters() + head.parameters()])))
            optimizer.step()
            losses.append(float(loss))
        x, symbol = copying(LENGTH, TEST, work.rng(2))
        accuracy = float((head.forward(cell.forward(x)[-1]).argmax(axis=1) == symbol).mean())
    return losses, norms, accuracy


def sentences(by_step: Table, summary: Table) -> tuple[str, str]:
    """Say how far the norm goes in each run, and which of them learned."""
    told, ends = {}, {}
    for name in RUNS:
        rows = by_step.select(run=name)
        losses, norms = rows.column("loss"), rows.column("gradient_norm")
        broken = next((step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
        peak = max((norm for norm in norms if math.isfinite(norm)), default=math.nan)
        told[name] = f"to {power(peak)}" + (f", and the loss is no number from step {broken:,} on" if broken else "")
        ends[name] = float(np.mean(losses[-20:]))
    free, held = RUNS
    first = f"Without clipping the norm of the gradient goes up {told[free]}; clipped, {told[held]}."
    right = {name: summary.one("test_accuracy", run=name) for name in RUNS}
    facts = (
        f"a loss of {_nats(ends[held])} and {share(right[held])} right answers, without a loss of {_nats(ends[free])} "
        f"and {share(right[free])}"
    )
    if right[held] > right[free] + 0.05:
        return first, f"Clipping saves the run: with it training ends at {facts}."
    if right[free] > right[held] + 0.05:
        return first, f"Clipping harms this run: with it training ends at {facts}."
    return first, f"Clipping makes no difference to what this run learns: with it training ends at {facts}."


def _nats(loss: float) -> str:
    return f"{loss:.3g} nats" if math.isfinite(loss) else "no number"
