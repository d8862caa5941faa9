"""Spans as a trace for Perfetto and chrome://tracing, in the Trace Event Format's JSON.

Format: "Trace Event Format", Google, 2016: complete events (ph X) with ts and dur in microseconds, and metadata (ph M)
that names processes and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastgrad.profiling.recorder import OTHER, Span

PROCESS, HOST, DEVICE = 1, 1, 2


def trace_of(spans: Sequence[Span]) -> dict[str, Any]:
    """Return the trace: a track of the host, and of a GPU's stream where it was timed."""
    on_device = any(span.device_end for span in spans)
    start = min((span.begin for span in spans), default=0)
    events = [_metadata("process_name", {"name": "fastgrad"}), *_named(HOST, "host")]
    if on_device:
        events += _named(DEVICE, "GPU, current stream")
    for span in spans:
        events.append(_complete(span, HOST, (span.begin - start) / 1e3, (span.end - span.begin) / 1e3))
        if on_device:
            # Both tracks begin together: the clocks of host and device have no common zero.
            duration = span.device_end - span.device_begin
            events.append(_complete(span, DEVICE, span.device_begin * 1e6, duration * 1e6))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _complete(span: Span, thread: int, start: float, duration: float) -> dict[str, Any]:
    name = span.path if span.phase == OTHER else f"{span.path or span.kind} {span.phase}"
    args: dict[str, Any] = {"step": span.step}
    if span.kind:
        args |= {"layer": span.path, "kind": span.kind}
    if span.cost is not None:
        args |= {"bytes": span.cost.bytes, "flops": span.cost.flops}
    return {
        "name": name, "cat": span.phase, "ph": "X", "ts": start, "dur": max(0.0, duration), "pid": PROCESS,
        "tid": thread, "args": args,
    }  # fmt: skip


def _named(thread: int, name: str) -> list[dict[str, Any]]:
    return [
        _metadata("thread_name", {"name": name}, thread),
        _metadata("thread_sort_index", {"sort_index": thread}, thread),
    ]


def _metadata(name: str, args: dict[str, Any], thread: int = HOST) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": PROCESS, "tid": thread, "ts": 0, "args": args}
