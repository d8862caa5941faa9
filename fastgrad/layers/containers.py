"""Layers made of layers: a sequence, and a skip connection around one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastgrad._arrays import Array, device_module, kept_for_graphs
from fastgrad.layers.base import Layer, describe, positive, wrong_shape
from fastgrad.layers.checkpoint import Checkpoint
from fastgrad.layers.norms import LayerNorm


class _Chain(Layer):
    """Layers one behind the other; of a layer that returns (y, state), y goes on."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.steps = tuple(layers)

    def _members(self) -> Iterator[tuple[str, Any]]:
        for position, layer in enumerate(self.steps):
            yield str(position), layer

    def forward(self, x: Any) -> Any:
        """Return the last layer's output for x."""
        for layer in self.steps:
            x = layer.forward(x)
            if isinstance(x, tuple):
                x = x[0]
        return x

    def backward(self, dy: Any) -> Any:
        """Return the gradient of x, or None when the first layer is an Embedding."""
        for layer in reversed(self.steps):
            dy = layer.backward(dy)
        return dy


class Sequential(_Chain):
    """Layers one behind the other, named "0", "1", ... as in torch.

    Of a layer that returns (y, state), as LSTM and GRU do, y goes on to the next; the state starts from zeros in each
    forward and is dropped. Carry it yourself where you need it: call the layers one by one, or write a Layer.

    checkpoint_every: keep only the inputs of every so many layers between forward and backward, which runs the rest
        once more, see `Checkpoint`; None keeps all. Names and results stay what they are.
    """

    def __init__(self, *layers: Layer, checkpoint_every: int | None = None) -> None:
        seen: set[int] = set()
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{position}] must be a fastgrad layer, got {describe(layer)}")
            if id(layer) in seen:
                raise ValueError(
                    f"layers[{position}] is in this Sequential already, and a layer keeps only its last forward; "
                    "make a second layer"
                )
            seen.add(id(layer))
        self.layers = self.steps = tuple(layers)
        if checkpoint_every is not None:
            positive(checkpoint_every=checkpoint_every)
            runs = (layers[at : at + checkpoint_every] for at in range(0, len(layers), checkpoint_every))
            self.steps = tuple(Checkpoint(_Chain(run)) for run in runs)
        for name, layer in reversed(list(self._members())):  # what layers share is named after the first
            layer._prefix_names(name)

    def _members(self) -> Iterator[tuple[str, Any]]:
        for position, layer in enumerate(self.layers):
            yield str(position), layer

    def _forget(self) -> None:
        super()._forget()
        for step in self.steps:
            step._forget()

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]


class Residual(Layer):
    """A skip connection around a layer that keeps the shape of its input: the gradient also goes past it.

    ============== =========================
    norm           y
    ============== =========================
    None           x + layer(x)
    "pre"          x + layer(layer_norm(x))
    "post"         layer_norm(x + layer(x))
    ============== =========================

    The norm is a LayerNorm over the last axis of size `features`, the attribute `norm`; or pass a layer of your own as
    `norm_layer`. Of a layer that returns (y, state), y is added.

    Sources: He et al., Deep Residual Learning for Image Recognition, 2016; Xiong et al., On Layer Normalization in the
    Transformer Architecture, 2020.
    """

    def __init__(
        self, layer: Layer, norm: str | None = None, features: int | None = None, *, norm_layer: Layer | None = None
    ) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: expected a fastgrad layer, got {describe(layer)}")
        if norm not in (None, "pre", "post"):
            raise ValueError(f"norm: expected None, 'pre' or 'post', got {norm!r}")
        if (norm is None) != (features is None and norm_layer is None) or None not in (features, norm_layer):
            raise ValueError("features and norm_layer: expected one of them with norm='pre' or 'post', else none")
        self.layer, self.place = layer, norm
        if features is not None:
            dtypes = {parameter.data.dtype for parameter in layer.parameters()}
            norm_layer = LayerNorm(features, dtype=dtypes.pop() if len(dtypes) == 1 else np.float32)
            if any(device_module(parameter.data) is not None for parameter in layer.parameters()):
                norm_layer.to("gpu")
        self.norm = norm_layer

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; x must not be overwritten before backward."""
        inside = self.norm.forward(x) if self.norm is not None and self.place == "pre" else x
        part = self.layer.forward(inside)
        if isinstance(part, tuple):
            part = part[0]
        if part.shape != x.shape:
            wrong_shape("layer", f"{x.shape} of its output, that of x", part)
        y = kept_for_graphs(x + part)
        return self.norm.forward(y) if self.norm is not None and self.place == "post" else y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of the layer and of the norm."""
        if self.norm is not None and self.place == "post":
            dy = self.norm.backward(dy)
        dx = self.layer.backward(dy)
        if self.norm is not None and self.place == "pre":
            dx = self.norm.backward(dx)
        return kept_for_graphs(dy + dx)
