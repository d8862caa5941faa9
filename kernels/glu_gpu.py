"""Launch gated linear units and their gradients on a device; see glu.cu."""

from __future__ import annotations

from typing import Any

from . import cuda

Array = Any

UNROLL, UNROLL_BACKWARD = 4, 2  # as in glu.cu

_FORWARD = cuda.Kernel("glu", "fg_glu", "gate: T*, up: T*, y: T*, n: i64", ["kind"])
_BACKWARD = cuda.Kernel("glu", "fg_glu_backward", "dy: T*, gate: T*, up: T*, dgate: T*, dup: T*, n: i64", ["kind"])


def _launch(kernel: cuda.Kernel, unroll: int, kind: str, *arrays: Array) -> None:
    first = arrays[0]
    device = cuda.device_of(first)
    block = cuda.threads(device)
    grid = cuda.blocks(first.size, block * unroll * (16 // first.itemsize))
    kernel(device, first.dtype, grid, block, *arrays, first.size, kind=kind)


def glu(gate: Array, up: Array, kind: str, out: Array) -> None:
    """Write f(gate) up into `out` (the shape of gate; may be gate or up)."""
    _launch(_FORWARD, UNROLL, kind, gate, up, out)


def glu_backward(dy: Array, gate: Array, up: Array, kind: str, dgate: Array, dup: Array) -> None:
    """Write both gradients (each may be dy, gate or up, but not the same)."""
    _launch(_BACKWARD, UNROLL_BACKWARD, kind, dy, gate, up, dgate, dup)
