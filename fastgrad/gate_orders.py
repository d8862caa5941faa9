"""The order of the gates in the weights of other frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._arrays import Array, array_module, is_array, kept_for_graphs
from fastgrad._checks import finish, output
from fastgrad._dispatch import wrong_array

# Which gate stands at each place, by framework. Keras and ONNX name the update gate z and the candidate h or c.
GATE_ORDERS: dict[str, dict[str, str]] = {
    "lstm": {"torch": "ifgo", "keras": "ifgo", "onnx": "iofg", "cudnn": "ifgo"},
    "gru": {"torch": "rzn", "keras": "zrn", "onnx": "zrn", "cudnn": "rzn"},
}


def reorder_gates(
    array: Array, cell: str, *, source: str, target: str = "torch", axis: int = 0, out: Array | None = None
) -> Array:
    """Return weights or biases with their gates in the order of another framework.

    ======= ============= ============= ============= =============
    cell    torch         keras         onnx          cudnn
    ======= ============= ============= ============= =============
    lstm    i f g o       i f g o       i o f g       i f g o
    gru     r z n         z r n         z r n         r z n
    ======= ============= ============= ============= =============

    Only the order of the gates changes. Keras keeps its kernels transposed, (I, 4H): use axis=1 there and transpose
    afterwards; both a Keras GRU with reset_after and an ONNX GRU or LSTM keep two biases in one array.

    Args:
        array: any dtype; its size along axis is a multiple of the number of gates (lstm 4, gru 3).
        cell: "lstm" or "gru".
        source, target: "torch", "keras", "onnx" or "cudnn".
        axis: the axis of the gates.
        out: array of the shape and dtype of array that receives the result; may not overlap array.

    Returns:
        A new array of the shape and dtype of array, also where nothing moves; `out` itself where it is given.

    Raises:
        TypeError: array or out is no array, or out has another dtype; cell, source or target is no string, or axis no
            integer.
        ValueError: cell, source, target or axis is not known, the axis does not divide into the gates, out has another
            shape, is read-only or overlaps array.
    """
    if not is_array(array):
        raise wrong_array("array", array)
    orders = _chosen("cell", cell, GATE_ORDERS)
    sources, targets = _chosen("source", source, orders), _chosen("target", target, orders)
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise TypeError(f"axis: expected an integer, got {type(axis).__qualname__}")
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis: expected one of the {array.ndim} axes of array, got {axis}")
    gates = len(sources)
    if array.shape[axis] % gates:
        raise ValueError(
            f"array: expected a multiple of {gates} (the gates of a {cell}) along axis {axis}, got shape {array.shape}"
        )
    written = None if out is None else output("out", out, "array", array, apart=(("array", array),))
    module = array_module(array)
    parts = dict(zip(sources, module.split(array, gates, axis=axis), strict=True))
    moved = kept_for_graphs(module.concatenate([parts[gate] for gate in targets], axis=axis, out=written))
    return finish(out, moved)


def _chosen(name: str, value: Any, among: dict[str, Any]) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__qualname__}")
    if value not in among:
        raise ValueError(f"{name}: expected one of {', '.join(among)}, got {value!r}")
    return among[value]
