"""What a monitor takes from the layers of a model: which biases feed a relu, and how open gates are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastgrad._arrays import Array, array_module, to_host
from fastgrad.layers import GRU, LSTM, Activation, Dropout, Layer, Sequential

# Activations whose derivative is exactly 0 on one side: a unit there learns nothing.
DYING = ("relu", "relu6")
SIGMOIDS: dict[type[Layer], tuple[str | None, ...]] = {
    LSTM: ("input", "forget", None, "output"),
    GRU: ("reset", "update", None),
}
# Where the derivative s (1 - s) of a sigmoid is below 0.01, 4 % of its largest.
LOW, HIGH = 0.01, 0.99

Gates = list[tuple[str, int, Array]]  # layer, its gates, their values (B, gates H)


def named_layers(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield (name, layer) of a layer and all below, named as their parameters are."""
    yield prefix, layer
    for name, member in layer._members():
        if isinstance(member, Layer):
            yield from named_layers(member, f"{prefix}.{name}" if prefix else name)


def biases_in_front_of_relus(model: Layer) -> list[Any]:
    """Return the bias of each layer of a Sequential that a relu comes behind, with at most a Dropout between."""
    found = []
    for _, layer in named_layers(model):
        bias = None  # of the last layer, with nothing but a Dropout behind it
        for member in layer.layers if isinstance(layer, Sequential) else ():
            if isinstance(member, Activation) and member.kind in DYING and bias is not None:
                found.append(bias)
            if not isinstance(member, Dropout):
                bias = getattr(member, "bias", None)
    return found


def _cell(layer: Layer) -> Any:
    """Return LSTM or GRU, for a class derived from one of them too."""
    return next(cell for cell in SIGMOIDS if isinstance(layer, cell))


class GateProbe:
    """Watches the gates of the LSTM and GRU layers of a model, in the last step of each sequence.

    wanted : says whether the gates of this forward pass are to be kept
    Layers in evaluation, `LayerNormLSTM`, sequences with `lengths` and the reference kernels are left out.
    """

    def __init__(self, model: Layer, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._latest: dict[str, Gates] = {}
        self._layers = [(name, layer) for name, layer in named_layers(model) if isinstance(layer, LSTM | GRU)]
        for name, layer in self._layers:
            layer.gates_watcher = lambda saved, name=name, layer=layer: self._take(name, layer, saved)

    def _take(self, name: str, layer: LSTM | GRU, saved: list[Any]) -> None:
        if not layer.training or not self._wanted():
            return
        found: Gates = []
        for index, one in enumerate(saved):
            gates = getattr(one.payload, "gates", None)
            if gates is None or getattr(one.payload, "lengths", None) is not None:
                continue
            last = gates[-1] if gates.ndim == 3 else gates
            run = "" if len(saved) == 1 else f" (run {index})"
            # Backward takes the memory: a copy, of one step.
            found.append(
                (f"{name or type(layer).__name__}{run}", len(SIGMOIDS[_cell(layer)]), array_module(last).array(last))
            )
        self._latest[name] = found

    def take(self) -> list[tuple[Any, Gates]]:
        """Return the gates of the latest forward passes, which may lie on a device, and forget them."""
        kinds = dict(self._layers)
        found = [(_cell(kinds[name]), gates) for name, gates in self._latest.items()]
        self._latest = {}
        return found

    def stop(self) -> None:
        """Leave the layers alone."""
        for _, layer in self._layers:
            layer.gates_watcher = None


def saturated(taken: list[tuple[Any, Gates]]) -> dict[tuple[str, str], float]:
    """Return the share of the values of each gate that lie below LOW or above HIGH, by (layer, gate); waits."""
    shares = {}
    for kind, gates in taken:
        for name, count, values in gates:
            parts = np.split(to_host(values), count, axis=-1)
            for gate, part in zip(SIGMOIDS[kind], parts, strict=True):
                if gate is not None:
                    shares[name, gate] = float(np.mean((part < LOW) | (part > HIGH)))
    return shares
