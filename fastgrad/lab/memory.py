"""Experiment `memory`: how far back LSTM, GRU and a plain recurrent cell learn, and what reaches the first step."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from fastgrad import Adam, global_norm, mse, softmax_cross_entropy
from fastgrad._arrays import Array
from fastgrad.lab.cell import PlainCell
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.tasks import SYMBOLS, adding, copying
from fastgrad.lab.words import count, joined, power, share
from fastgrad.lab.work import Work, means
from fastgrad.layers import GRU, LSTM, Layer, Linear

__all__ = ["CELLS", "LEARNED", "TASKS", "run", "sentences"]

HIDDEN, BATCH, TEST = 32, 32, 512

# A sum counts as right within this; guessing 1 for each is right in about 18 % of the cases.
CLOSE = 0.1

# Training ends when this share of the answers was right over the last batches.
LEARNED, BATCHES = 0.99, 20

CELLS = ("plain cell", "LSTM", "LSTM, long-memory bias", "GRU", "GRU, long-memory bias")
TASKS = ("adding", "copying")


def run(work: Work, lengths: tuple[int, ...] | None = None, steps: int | None = None) -> Result:
    """Measure the gradients of every cell over the longest sequence, then train each on both tasks and all lengths."""
    lengths = lengths or ((50, 100) if work.quick else (100, 300, 1000))
    steps = steps or (400 if work.quick else 1000)
    longest = max(lengths)
    reach = [
        (name, back, value)
        for name in work.loop("gradients by step", CELLS)
        for back, value in enumerate(_reach(work, name, longest))
    ]
    outcome: list[tuple[str, str, int, float, int]] = []
    curves: list[tuple[str, str, int, float]] = []
    for task in TASKS:
        for length in lengths:
            for name in CELLS:
                learner = _Learner(work, task, length, name)
                right = learner.train(work, steps)
                outcome.append((task, name, length, learner.test(work), len(right)))
                if length == longest:
                    curves += [(task, name, step, value) for step, value in means(right, 20)]
    by_step = Table("reach", ("cell", "steps_back", "gradient_norm"), reach)
    summary = Table("accuracy", ("task", "cell", "length", "test_accuracy", "training_steps"), outcome)
    learning = Table("learning", ("task", "cell", "step", "accuracy"), curves)
    charts = [
        Chart(
            name="reach",
            title=f"Gradient by the input, so many steps before the answer (l2 norm, {longest:,} steps)",
            table=by_step,
            x="steps_back",
            y="gradient_norm",
            curves="cell",
            x_title="steps back from the answer",
            y_title="gradient norm",
            log_y=True,
        )
    ]
    words = {"adding": "sum of two marked numbers", "copying": "symbol of the first step"}
    for task in TASKS:
        charts += [
            Chart(
                name=f"{task}-accuracy",
                title=f"{task.capitalize()} ({words[task]}): right answers by length of the sequence",
                table=summary,
                x="length",
                y="test_accuracy",
                curves="cell",
                x_title="length of the sequence (steps)",
                y_title="test accuracy",
                where={"task": task},
                kind="bars",
                percent=True,
            ),
            Chart(
                name=f"{task}-learning",
                title=f"{task.capitalize()} over {longest:,} steps: right answers while training (mean of 20 batches)",
                table=learning,
                x="step",
                y="accuracy",
                curves="cell",
                x_title="training step",
                y_title="accuracy",
                where={"task": task},
                percent=True,
            ),
        ]
    return Result(
        name="memory",
        title="How far back can a recurrent network learn?",
        sentences=sentences(by_step, summary, longest),
        method=f"{HIDDEN} hidden units, {BATCH} new sequences in each step of Adam (0.01, gradients clipped to 1), at "
        f"most {steps:,} steps, fewer where {share(LEARNED)} of {BATCHES} batches in a row are right; then {TEST} test "
        f"sequences. Adding: a sum counts as right within {CLOSE}, always guessing 1 is right in 18 %. Copying: one of "
        f"{SYMBOLS} symbols, guessing is right in {share(1 / SYMBOLS)}. The plain cell is h' = tanh(W_ih x + W_hh h + "
        "b). The long-memory bias opens the forget (LSTM) or update gate (GRU) for as long as a sequence lasts (Tallec "
        "& Ollivier, 2018). The gradients are those of a random direction in the last state, before training.",
        charts=charts,
        tables=[by_step, summary, learning],
    )


def make_cell(name: str, inputs: int, length: int, rng: np.random.Generator) -> Layer:
    """Return a cell of CELLS for sequences of this length.

    The long-memory bias is b = log(u), u uniform in [1, length - 1], on the gate that keeps the state, and -b on the
    input gate of an LSTM. Tallec & Ollivier, Can recurrent neural networks warp time?, 2018.
    """
    if name == "plain cell":
        return PlainCell(inputs, HIDDEN, rng=rng)
    kind, *bias = name.split(", ")
    cell: Any = LSTM(inputs, HIDDEN, rng=rng) if kind == "LSTM" else GRU(inputs, HIDDEN, rng=rng)
    if bias:
        wanted = np.log(rng.uniform(1, length - 1, HIDDEN))
        first, second = cell.bias_ih_l0.data, cell.bias_hh_l0.data
        # Of an LSTM the gates are i, f, g, o, of a GRU r, z, n: the gate that keeps the state is the second of both.
        first[HIDDEN : 2 * HIDDEN], second[HIDDEN : 2 * HIDDEN] = wanted, 0
        if kind == "LSTM":
            first[:HIDDEN], second[:HIDDEN] = -wanted, 0
    return cell


def _reach(work: Work, name: str, length: int) -> list[float]:
    """Return the norm of the gradient by the input of each step, from the last step back to the first."""
    rng = work.rng(CELLS.index(name))
    x, _ = adding(length, BATCH, work.rng(100))
    cell = make_cell(name, x.shape[2], length, rng)
    y = _states(cell, x)
    dy = np.zeros_like(y)
    direction = work.rng(101).standard_normal(dy[-1].shape, dtype=np.float32)
    dy[-1] = direction / np.linalg.norm(direction)
    dx = cell.backward(dy)
    return [float(global_norm([step])) for step in dx[::-1]]


def _states(cell: Layer, x: Array) -> Array:
    """Return the state of every step (T, B, H) from any cell."""
    y = cell.forward(x)
    return y[0] if isinstance(y, tuple) else y


class _Learner:
    """A cell and a linear map of its last state, on one task."""

    def __init__(self, work: Work, task: str, length: int, name: str) -> None:
        self.task, self.length, self.name = task, length, name
        self.draw = {"adding": adding, "copying": copying}[task]
        key = (TASKS.index(task), length, CELLS.index(name))
        rng = work.rng(*key)
        inputs, outputs = {"adding": (2, 1), "copying": (SYMBOLS + 2, SYMBOLS)}[task]
        self.cell = make_cell(name, inputs, length, rng)
        self.head = Linear(HIDDEN, outputs, rng=rng)
        # The same sequences for all cells.
        self.sequences = work.rng(*key[:2], 100)

    def train(self, work: Work, steps: int) -> list[float]:
        """Return the share of right answers in each batch until the task is learned or the steps are over."""
        optimizer = Adam(self.cell.parameters() + self.head.parameters(), lr=1e-2, max_norm=1.0)
        right: list[float] = []
        recent: deque[float] = deque(maxlen=BATCHES)
        for _ in work.loop(f"{self.task}, {self.length:,} steps, {self.name}", steps):
            x, answer = self.draw(self.length, BATCH, self.sequences)
            optimizer.zero_grad()
            y = _states(self.cell, x)
            out = self.head.forward(y[-1])
            _, dout = mse(out, answer) if self.task == "adding" else softmax_cross_entropy(out, answer)
            dy = np.zeros_like(y)
            dy[-1] = self.head.backward(dout)
            self.cell.backward(dy)
            optimizer.step()
            recent.append(self._right(out, answer))
            right.append(recent[-1])
            if len(recent) == BATCHES and np.mean(recent) >= LEARNED:
                break
        return right

    def test(self, work: Work) -> float:
        """Return the share of right answers on sequences that were not trained on."""
        rng = work.rng(TASKS.index(self.task), self.length, 101)
        shares = []
        for _ in range(TEST // BATCH):
            x, answer = self.draw(self.length, BATCH, rng)
            shares.append(self._right(self.head.forward(_states(self.cell, x)[-1]), answer))
        return float(np.mean(shares))

    def _right(self, out: Any, answer: Array) -> float:
        close = np.abs(out - answer) < CLOSE if self.task == "adding" else out.argmax(axis=1) == answer
        return float(close.mean())


def sentences(reach: Table, summary: Table, longest: int) -> tuple[str, str]:
    """Say what reaches the first step, and who learned what over the longest sequences."""
    first = {name: reach.select(cell=name).column("gradient_norm")[-1] for name in dict.fromkeys(reach.column("cell"))}
    ranked = sorted(first, key=lambda name: first[name], reverse=True)
    lost = [name for name in ranked if first[name] == 0]
    seen = [f"{name} {power(first[name])}" for name in ranked if first[name] > 0]
    parts = []
    if seen:
        parts.append(f"what reaches the first of {longest:,} steps is, from the most: {joined(seen)}")
    if lost:
        parts.append(f"nothing at all, exactly 0, reaches it in {joined([f'the {name}' for name in lost])}")
    text = "; ".join(parts)
    learned = []
    for task in dict.fromkeys(summary.column("task")):
        rows = summary.select(task=task, length=longest)
        score = dict(zip(rows.column("cell"), rows.column("test_accuracy"), strict=True))
        steps = dict(zip(rows.column("cell"), rows.column("training_steps"), strict=True))
        good = [name for name in score if score[name] >= LEARNED - 0.02]
        bad = [f"{name} ({share(score[name])})" for name in score if name not in good]
        words = (
            f"{task} is learned by {joined([f'{name} ({steps[name]:,} training steps)' for name in good])}"
            if good
            else f"{task} is learned by no cell"
        )
        learned.append(f"{words}, not by {joined(bad, 'or')}" if bad and good else words if good else
                       f"{words}: {joined(bad)}")  # fmt: skip
    some = "; ".join(learned)
    return f"{text[0].upper()}{text[1:]}.", f"Over {count(longest)} steps {some}."
