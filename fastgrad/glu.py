"""Gated linear units with their gradients: contracts and checks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastgrad._arrays import empty
from fastgrad._checks import FLOATS, Array, finish, float_array, float_array_like, output
from fastgrad._dispatch import kernels


class GLUGradients(NamedTuple):
    """Gradients of `swiglu` or `geglu`."""

    dgate: Array
    dup: Array


def _plain(*arrays: Any) -> bool:
    # Whether a few look-ups show that all is well: of a call on 64 elements with out they save 3 us in 9. Distinct
    # arrays that own their memory can't overlap. What this does not pass is examined, and may still be right.
    first = arrays[0]
    if type(first) is not np.ndarray or first.dtype not in FLOATS:
        return False
    dtype, shape = first.dtype, first.shape
    for a in arrays:
        if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shape:
            return False
        if a.base is not None or not a.flags.carray:
            return False
    return True


def _contiguous(gate: Array, up: Array, *dy: Array) -> list[Array]:
    if _plain(gate, up, *dy):
        return [gate, up, *dy]
    g = float_array("gate", gate)
    return [g, float_array_like("up", up, "gate", g), *(float_array_like("dy", d, "gate", g) for d in dy)]


def _glu(kind: str, gate: Array, up: Array, out: Array | None) -> Array:
    if out is not None and _plain(gate, up, out):
        kernels("glu", gate).glu(gate, up, kind, out)
        return out
    g, u = _contiguous(gate, up)
    if out is None:
        y = empty(g.shape, g.dtype, g)
    else:
        y = output("out", out, "gate", g, aliases=(("gate", gate), ("up", up)))
    kernels("glu", g).glu(g, u, kind, y)
    return finish(out, y)


def _glu_backward(kind: str, dy: Array, gate: Array, up: Array, out: Any) -> GLUGradients:
    if type(out) is tuple and len(out) == 2 and out[0] is not out[1] and _plain(gate, up, dy, *out):
        kernels("glu", gate).glu_backward(dy, gate, up, kind, *out)
        return GLUGradients(*out)
    g, u, d = _contiguous(gate, up, dy)
    if out is None:
        gradients = GLUGradients(empty(g.shape, g.dtype, g), empty(g.shape, g.dtype, g))
        kernels("glu", g).glu_backward(d, g, u, kind, *gradients)
        return gradients
    if not isinstance(out, tuple | list) or len(out) != 2:
        found = f"{len(out)} entries" if isinstance(out, tuple | list) else type(out).__qualname__
        raise TypeError(f"out: expected a pair of arrays (dgate, dup), got {found}")
    aliases = (("dy", dy), ("gate", gate), ("up", up))
    dgate = output("out[0]", out[0], "gate", g, aliases=aliases)
    apart = () if out[0] is None else (("out[0]", out[0]),)
    dup = output("out[1]", out[1], "gate", g, aliases=aliases, apart=apart)
    kernels("glu", g).glu_backward(d, g, u, kind, dgate, dup)
    return GLUGradients(finish(out[0], dgate), finish(out[1], dup))


def swiglu(gate: Array, up: Array, *, out: Array | None = None) -> Array:
    """Multiply by a gate that passes through silu (SwiGLU; Shazeer, 2020).

        y = silu(gate) up,    silu(x) = x sigmoid(x)

    silu is that of `activation`, with its limit at +-inf: 0 at -inf. The product is an IEEE product: NaN in either
    array gives NaN, and so does an infinite entry times 0.

    Args:
        gate: any shape, float32 or float64. A strided array is copied first.
        up: the shape and dtype of gate.
        out: array of the shape and dtype of gate that receives y. It may be gate or up, and may not overlap them
            otherwise.

    Returns:
        y, the shape and dtype of gate; `out` itself where it is given.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of gate.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    return _glu("silu", gate, up, out)


def swiglu_backward(
    dy: Array, gate: Array, up: Array, *, out: tuple[Array | None, Array | None] | None = None
) -> GLUGradients:
    """Return the gradients of `swiglu`, both in one pass over its arguments.

        dgate = dy up silu'(gate),    dup = dy silu(gate)

    silu' is that of `activation_backward`, right also far out in the tails. The products are IEEE products.

    Args:
        dy: gradient of y, the shape and dtype of gate.
        gate, up: as in `swiglu`.
        out: pair of arrays of the shape and dtype of gate that receive dgate and dup; None for a new one. Each may be
            dy, gate or up, and may not overlap them otherwise, nor each other.

    Returns:
        Named tuple (dgate, dup), each of the shape and dtype of gate; the arrays of `out` themselves where given.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of gate; out is no pair.
        ValueError: a shape does not fit, an array of out is read-only or overlaps.
    """
    return _glu_backward("silu", dy, gate, up, out)


def geglu(gate: Array, up: Array, *, out: Array | None = None) -> Array:
    """Multiply by a gate that passes through gelu (GEGLU; Shazeer, 2020).

        y = gelu(gate) up,    gelu(x) = x Phi(x), Phi the distribution function of the normal law

    Arguments, result, errors and what is said of NaN and Inf are those of `swiglu`.
    """
    return _glu("gelu", gate, up, out)


def geglu_backward(
    dy: Array, gate: Array, up: Array, *, out: tuple[Array | None, Array | None] | None = None
) -> GLUGradients:
    """Return the gradients of `geglu`, both in one pass over its arguments.

        dgate = dy up gelu'(gate),    dup = dy gelu(gate)

    Arguments, result and errors are those of `swiglu_backward`.
    """
    return _glu_backward("gelu", dy, gate, up, out)
