"""Activation checkpointing: time for memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastgrad._arrays import Array
from fastgrad.layers.base import Layer, describe


class Checkpoint(Layer):
    """A layer of which only the input is kept between forward and backward; backward runs forward once more.

    Gradients are those of the layer alone, bit for bit, for a second forward pass: of n blocks in a row, each in a
    Checkpoint, the memory is that of n inputs and what one block keeps. `Sequential(..., checkpoint_every=k)` takes k
    layers together; k of about the square root of n needs least.

    The second pass finds what the first one found: dropout its offsets, so that it makes the same masks, and
    afterwards the offsets and the running statistics of batch normalisation are what the first pass had left. Of a
    layer of your own whose forward changes numbers in attributes, name these in its class attribute `_counters`.

    Parameters and running statistics are named as if the Checkpoint were not there: `state_dict`s of models with and
    without are the same.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """

    layer: Layer

    def __init__(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: expected a fastgrad layer, got {describe(layer)}")
        vars(self)["layer"] = layer  # past __setattr__, which would put its name before those of the parameters

    def _members(self) -> Iterator[tuple[str, Any]]:
        return self.layer._members()

    def _layers(self) -> Iterator[Layer]:
        yield self.layer

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        return self.layer._named_arrays(prefix)

    def to(self, device: str) -> Checkpoint:
        """Move the layer to a device, see `Layer.to`."""
        self._forget()
        self.layer.to(device)
        return self

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer returns; x and further arguments must not be overwritten before backward."""
        counters = [(layer, name, getattr(layer, name)) for layer in self.layer._walk() for name in layer._counters]
        y = self.layer.forward(x, *args, **kwargs)
        for layer in self.layer._walk():
            layer._forget()
        self._kept = ((x, args, kwargs, counters), (), type(y))
        return y

    def backward(self, dy: Any, *args: Any) -> Any:
        """Return what the layer's backward returns, after its forward; adds to the gradients of the parameters."""
        x, more, options, counters = self._take(None)
        layers = list(self.layer._walk())
        after = [(layer, name, getattr(layer, name)) for layer, name, _ in counters]
        buffers = [getattr(layer, name) for layer in layers for name in layer._buffers if layer.training]
        statistics = [(array, array.copy()) for array in buffers if array is not None]
        for layer, name, value in counters:
            setattr(layer, name, value)
        self.layer.forward(x, *more, **options)
        for layer, name, value in after:
            setattr(layer, name, value)
        for array, value in statistics:
            array[...] = value
        return self.layer.backward(dy, *args)
