"""Where the time of a training step goes, layer by layer: `profile_model` and its report."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad import _arrays
from fastgrad.layers import Layer
from fastgrad.profiling import show
from fastgrad.profiling.costs import NOTHING, Cost
from fastgrad.profiling.recorder import BACKWARD, FORWARD, OTHER, STEP, Recorder, Span, device_of, tree
from fastgrad.profiling.trace import trace_of


@dataclass(frozen=True)
class LayerTime:
    """One layer, or what else a step does.

    path: of the layer as in the names of its parameters, "" for the model itself; kind: its class; depth: layers around
    it. forward, backward: seconds of a step, with the layers inside of it; of what is no layer `forward` is its own
    time. share: of the step. cost: bytes and flops of both passes, with the layers inside; None where not known.
    """

    path: str
    kind: str
    depth: int
    forward: float
    backward: float
    share: float
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


@dataclass(frozen=True)
class ModelProfile:
    """What `profile_model` found; print it.

    rows: the model and its layers, in their order, then what else a step did. seconds: of a step. steps: how many were
    timed; each time is the mean over the faster half of them. clock: what told the time. spans: every call.
    """

    rows: tuple[LayerTime, ...]
    seconds: float
    steps: int
    clock: str
    spans: tuple[Span, ...]

    def __getitem__(self, path: str) -> LayerTime:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"{path!r}: expected one of {', '.join(repr(row.path) for row in self.rows)}")

    def as_dict(self) -> dict[str, Any]:
        """Return the rows as JSON can hold them."""
        rows = [
            {
                "path": row.path,
                "kind": row.kind,
                "forward_seconds": row.forward,
                "backward_seconds": row.backward,
                "share": row.share,
                "bytes": row.cost and row.cost.bytes,
                "flops": row.cost and row.cost.flops,
            }
            for row in self.rows
        ]
        return {"seconds": self.seconds, "steps": self.steps, "clock": self.clock, "rows": rows}

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write every call as JSON in the Trace Event Format, for ui.perfetto.dev or chrome://tracing.

        Raises OSError where the file can't be written.
        """
        Path(path).write_text(json.dumps(trace_of(self.spans)), encoding="utf-8")

    def __str__(self) -> str:
        width = shutil.get_terminal_size().columns
        head = ["layer", "forward", "backward", "share", "bytes", "flops", "rate"]
        lines = [
            [
                "  " * row.depth + " ".join(filter(None, [row.path.rpartition(".")[2], row.kind])),
                show.duration(row.forward),
                show.duration(row.backward) if row.backward else "",
                f"{row.share:.1%}".replace("%", " %"),
                f"{show.quantity(row.cost.bytes)}B" if row.cost else "-",
                (show.quantity(row.cost.flops).strip() if row.cost.flops else "-") if row.cost else "-",
                row.cost.rate(row.seconds) if row.cost and row.seconds else "-",
            ]
            for row in self.rows
        ]
        widths = [max(len(line[k]) for line in [head, *lines]) for k in range(len(head))]
        if sum(widths) + 2 * len(widths) > width:
            # The rate follows from the rest; then names give way.
            del head[-1], widths[-1]
            lines = [line[:-1] for line in lines]
        widths[0] = max(12, min(widths[0], width - sum(widths[1:]) - 2 * len(widths)))
        text = [
            f"a step: {show.duration(self.seconds)}, the faster half of {show.count(self.steps, 'step')}, {self.clock}"
        ]
        for line in [head, *lines]:
            name = line[0] if len(line[0]) <= widths[0] else f"{line[0][: widths[0] - 1]}…"
            cells = [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]
            text.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(text)


def profile_model(model: Layer, batch: Any, *, dy: Any = None, steps: int = 10) -> ModelProfile:
    """Time the layers of a model, forward and backward, on one batch.

    A step is a pass forward and one back; an optimizer takes no part, see `fastgrad train --profile` for a whole step.
    One step goes ahead untimed, as kernels may be compiled in it. On a GPU the times are the device's, from events, and
    each pass is an NVTX range for Nsight Systems. Nothing is changed: afterwards gradients, running statistics, random
    numbers and what the last forward pass kept are what they were before, and the hooks are gone.

    Args:
        model: any tree of fastgrad layers, on any device.
        batch: the array that `model.forward` takes, or a tuple of its arguments.
        dy: gradient of the output, of its shape; ones unless given.
        steps: how many are timed.

    Returns:
        A report: for each layer its time forward and backward, its share of the step, its bytes and flops. `print`
        shows it as a table, `save_trace` writes a file for Perfetto.

    Raises:
        TypeError: model is no layer.
        ValueError: steps is less than 1.
        Whatever forward and backward raise.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model: expected a layer of fastgrad.layers, got {type(model).__qualname__}")
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    args = batch if isinstance(batch, tuple) else (batch,)

    def passes() -> None:
        y = model.forward(*args)
        y = y[0] if isinstance(y, tuple) else y
        model.backward(_arrays.array_module(y).ones(y.shape, y.dtype) if dy is None else dy)

    with unchanged(model):
        passes()
        recorder = Recorder(model, device_of(model, *filter(_arrays.is_array, args)))
        with recorder:
            for _ in range(steps):
                for parameter in model.parameters():
                    parameter.grad = None
                with recorder.step():
                    passes()
        return profile_of(recorder)


@contextmanager
def unchanged(model: Layer) -> Iterator[None]:
    """A context after which a model is what it was: gradients, attributes, arrays and generators in its layers."""
    parameters = [(p, p.grad, p.gradient_norm) for p in model.parameters()]
    kept = [(layer, dict(vars(layer))) for _, layer in tree(model)]
    arrays = [(a, _arrays.contiguous_copy(a)) for _, values in kept for a in values.values() if _arrays.is_array(a)]
    generators = [
        (g, g.bit_generator.state) for _, values in kept for g in values.values() if isinstance(g, np.random.Generator)
    ]
    for parameter, _, _ in parameters:
        parameter.grad = parameter.gradient_norm = None
    try:
        yield
    finally:
        for layer, values in kept:
            vars(layer).clear()
            vars(layer).update(values)
        for array, before in arrays:
            array[...] = before
        for generator, state in generators:
            generator.bit_generator.state = state
        for parameter, grad, norm in parameters:
            parameter.grad, parameter.gradient_norm = grad, norm


def profile_of(recorder: Recorder) -> ModelProfile:
    """Return the report of what a recorder holds; waits for the device."""
    spans = recorder.finish()
    on_device = recorder.device is not None

    def seconds(span: Span) -> float:
        return span.device_end - span.device_begin if on_device else (span.end - span.begin) * 1e-9

    own = [seconds(span) for span in spans]
    inside: dict[int, Cost | None] = {k: span.cost for k, span in enumerate(spans)}
    for k in reversed(range(len(spans))):
        parent = spans[k].parent
        if parent is not None:
            own[parent] -= seconds(spans[k])
            inside[parent] = _sum(inside[parent], inside[k], spans[parent])
    totals: dict[tuple[str, str], list[float]] = {}
    cost: dict[tuple[str, str], Cost | None] = {}
    for k, span in enumerate(spans):
        key = span.path, span.phase
        each = totals.setdefault(key, [0.0] * recorder.steps)
        each[span.step] += own[k] if span.phase == OTHER and span.path != STEP else seconds(span)
        if span.step == 0:
            before = cost.get(key, NOTHING)
            cost[key] = _both(before, inside[k])
    # The faster half of the steps: what came between them and the machine is in the others. Unlike medians of each row,
    # means over the same steps add up.
    whole_steps = totals[STEP, OTHER]
    fast = sorted(range(recorder.steps), key=whole_steps.__getitem__)[: (recorder.steps + 1) // 2]
    mean = {key: statistics.fmean(each[k] for k in fast) for key, each in totals.items()}
    step = mean[STEP, OTHER]
    rows = []
    for path, layer in recorder.layers:
        forward, backward = mean.get((path, FORWARD), 0.0), mean.get((path, BACKWARD), 0.0)
        parts = [cost.get((path, phase), NOTHING) for phase in (FORWARD, BACKWARD)]
        whole = _both(*parts)
        depth = path.count(".") + bool(path)
        rows.append(LayerTime(path, type(layer).__name__, depth, forward, backward, (forward + backward) / step, whole))
    for (path, phase), value in mean.items():
        if phase == OTHER and path != STEP:
            rows.append(LayerTime(path, "", 0, value, 0.0, value / step, None))
    rest = step - sum(row.seconds for row in rows if row.depth == 0)
    rows.append(LayerTime("between", "", 0, max(0.0, rest), 0.0, max(0.0, rest) / step, None))
    clock = "CUDA events" if on_device else "the host's clock"
    return ModelProfile(tuple(rows), step, recorder.steps, clock, tuple(spans))


def _both(one: Cost | None, other: Cost | None) -> Cost | None:
    return None if one is None or other is None else one + other


def _sum(one: Cost | None, other: Cost | None, parent: Span) -> Cost | None:
    """Return the cost of a span with one inside of it; of a layer of an unknown kind that of what is known inside."""
    if other is None:
        return one
    return other if one is None else one + other
