"""Gated linear units (Shazeer, 2020): an activation f of the gate times the up projection; swiglu: silu, geglu: gelu.

y = f(gate) up,    dgate = dy up f'(gate),    dup = dy f(gate)
"""

from __future__ import annotations

import numpy as np

from .activation_ref import FUNCTIONS

Array = np.ndarray


def glu(gate: Array, up: Array, kind: str, out: Array) -> None:
    """Write f(gate) up into `out` (the shape of gate; may be gate or up)."""
    with np.errstate(all="ignore"):
        np.multiply(FUNCTIONS[kind][0](gate), up, out=out)


def glu_backward(dy: Array, gate: Array, up: Array, kind: str, dgate: Array, dup: Array) -> None:
    """Write both gradients (each may be dy, gate or up, but not the same)."""
    function, derivative = FUNCTIONS[kind]
    with np.errstate(all="ignore"):
        dgate[...], dup[...] = dy * up * derivative(gate), dy * function(gate)
