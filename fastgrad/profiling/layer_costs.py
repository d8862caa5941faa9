"""What a pass through a layer must move and compute, from the shapes that it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgrad import layers
from fastgrad.profiling import costs
from fastgrad.profiling.costs import NOTHING, Cost

Costs = tuple[Cost, Cost]  # forward, backward


def _linear(layer: Any, x: Any) -> Costs:
    K, N, size = layer.in_features, layer.out_features, x.itemsize
    M = x.size // K
    return costs.linear(M, K, N, size), costs.linear_backward(M, K, N, size)


def _embedding(layer: Any, x: Any) -> Costs:
    V, E, size = layer.num_embeddings, layer.embedding_dim, layer.weight.data.itemsize
    return (
        costs.embedding(x.size, E, size, x.itemsize),
        costs.embedding_backward(x.size, E, V, size, x.itemsize),
    )


def _recurrent(cell: str) -> Callable[[Any, Any], Costs]:
    def both(layer: Any, x: Any) -> Costs:
        T, B = (x.shape[1], x.shape[0]) if layer.batch_first else x.shape[:2]
        H, directions, forward, backward = layer.hidden_size, 1 + layer.bidirectional, NOTHING, NOTHING
        for k in range(layer.num_layers):
            inputs = layer.input_size if k == 0 else H * directions
            for _ in range(directions):
                forward += costs.recurrent_forward(cell, T, B, inputs, H, x.itemsize)
                backward += costs.recurrent_backward(cell, T, B, inputs, H, x.itemsize)
        return forward, backward

    return both


def _pointwise(forward: Callable[..., Cost], backward: Callable[..., Cost]) -> Callable[[Any, Any], Costs]:
    return lambda layer, x: (forward(x.size, size=x.itemsize), backward(x.size, size=x.itemsize))


def _dropout(layer: Any, x: Any) -> Costs:
    if not layer.training or layer.p == 0.0:
        return NOTHING, NOTHING
    cost = costs.dropout(x.size, x.itemsize)
    return cost, cost


def _residual(layer: Any, x: Any) -> Costs:
    cost = costs.elementwise(x.size, 3, 1, x.itemsize)  # two arrays read, their sum written
    return cost, cost


# Of the layer itself, without those inside of it.
OF: dict[type, Callable[[Any, Any], Costs]] = {
    layers.Linear: _linear,
    layers.Embedding: _embedding,
    layers.LSTM: _recurrent("lstm"),
    layers.GRU: _recurrent("gru"),
    layers.Activation: _pointwise(costs.activation, costs.activation_backward),
    layers.LayerNorm: _pointwise(costs.layer_norm, costs.layer_norm_backward),
    layers.BatchNorm: _pointwise(costs.batch_norm, costs.batch_norm_backward),
    layers.Dropout: _dropout,
    layers.Residual: _residual,
    layers.Sequential: lambda layer, x: (NOTHING, NOTHING),
}


def of_layer(layer: Any, x: Any) -> Costs | None:
    """Return the costs of a pass forward with x and of the one back, None for a layer whose kind is not known."""
    for kind in type(layer).__mro__:
        if kind in OF:
            return OF[kind](layer, x)
    return None
