"""Time what the layers of a model do, by hooks around their methods that change no result and go away again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fastgrad import _arrays
from fastgrad.layers import Layer
from fastgrad.profiling.costs import Cost
from fastgrad.profiling.layer_costs import of_layer

FORWARD, BACKWARD, OTHER = "forward", "backward", "other"
STEP = "step"


@dataclass
class Span:
    """One call. path: of the layer in its model, "" for the model itself; parent: place of the span around it.

    begin, end: on the host's clock, ns. marks: events before and behind it on a device, seconds: the time between.
    """

    path: str
    kind: str
    phase: str
    step: int
    parent: int | None
    begin: int = 0
    end: int = 0
    cost: Cost | None = None
    marks: list[Any] = field(default_factory=list)
    device_begin: float = 0.0
    device_end: float = 0.0


def tree(layer: Layer, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Layer]]:
    """Yield (path, layer) for a layer and all below, each once, named as their parameters are."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield path, layer
    for name, member in layer._members():
        if isinstance(member, Layer):
            yield from tree(member, f"{path}.{name}" if path else name, seen)


def device_of(model: Layer, *arrays: Any) -> Any | None:
    """Return the device on which a model and its batch lie, None for the CPU."""
    for array in [*arrays, *(parameter.data for parameter in model.parameters())]:
        if _arrays.device_module(array) is not None:
            from fastgrad.kernels import cuda

            return cuda.device_of(array)
    return None


class Recorder:
    """A context in which the passes of a model's layers are recorded, inside of each `step()`.

    device: as `device_of` returns it. On a GPU each call also has a pair of events on the current stream and an NVTX
    range; nothing waits for the device before `finish`.
    """

    def __init__(self, model: Layer, device: Any | None = None) -> None:
        self.model, self.device = model, device
        self.layers = list(tree(model))
        self.spans: list[Span] = []
        self.steps = 0
        self._open: list[int] = []
        self._backward: dict[str, Cost | None] = {}
        self._hooks: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        for path, layer in self.layers:
            for phase in (FORWARD, BACKWARD):
                self.watch(layer, phase, path, type(layer).__name__, phase)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, method, before in reversed(self._hooks):
            if before is None:
                vars(owner).pop(method, None)
            else:
                vars(owner)[method] = before
        self._hooks.clear()

    def watch(self, owner: Any, method: str, path: str, kind: str, phase: str = OTHER) -> None:
        """Also record the calls of a method of any object, until the block ends."""
        self._hooks.append((owner, method, vars(owner).get(method)))
        vars(owner)[method] = self._hook(getattr(owner, method), owner, path, kind, phase)

    def _hook(self, function: Callable[..., Any], owner: Any, path: str, kind: str, phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._open:
                return function(*args, **kwargs)
            with self._span(path, kind, phase) as span:
                result = function(*args, **kwargs)
            if phase == FORWARD:
                x = args[0] if args else next(iter(kwargs.values()), None)
                found = of_layer(owner, x) if _arrays.is_array(x) else None
                span.cost, self._backward[path] = found or (None, None)
            elif phase == BACKWARD:
                span.cost = self._backward.get(path)
            return result

        return call

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Record what is called inside, as one step."""
        with self._span(STEP, "", OTHER):
            yield
        self.steps += 1

    @contextlib.contextmanager
    def _span(self, path: str, kind: str, phase: str) -> Iterator[Span]:
        span = Span(path, kind, phase, self.steps, self._open[-1] if self._open else None)
        self._open.append(len(self.spans))
        self.spans.append(span)
        if self.device is not None:
            self.device.push_range(f"{path or kind} {phase}" if phase != OTHER else path)
            span.marks.append(self.device.mark())
        span.begin = time.perf_counter_ns()
        try:
            yield span
        finally:
            span.end = time.perf_counter_ns()
            if self.device is not None:
                span.marks.append(self.device.mark())
                self.device.pop_range()
            self._open.pop()

    def finish(self) -> list[Span]:
        """Return what was recorded; waits for the device."""
        if self.device is not None and self.spans:
            first = self.spans[0].marks[0]
            self.device.synchronize()
            for span in self.spans:
                if span.marks:
                    span.device_begin, span.device_end = (self.device.seconds(first, mark) for mark in span.marks)
                    span.marks = []
        return self.spans
