"""The works of bench_lstm.py and bench_gru.py: a sequence or one step of a cell, forward and backward.

All gradients are computed: input, initial state, both weights, both biases.
Flops, G gates: 2 G T B H (I + H) forward and twice that backward. Bytes: x, dx, y, dy, the weights and their gradients,
each once; what is kept between forward and backward is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inputs import CELL, PRODUCT, Array, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad
from fastgrad.profiling import costs, limits


def _weights(gates: int, I: int, H: int) -> list[Array]:  # noqa: E741  the letters of DESIGN and torch
    scale = H**-0.5
    shapes = [(gates * H, I), (gates * H, H), (gates * H,), (gates * H,)]
    return [normal(10 + k, *shape, scale=scale) for k, shape in enumerate(shapes)]


def _torch_module(module: Any, weights: list[Array]) -> list[Any]:
    """Copy the weights into a module of torch; return its parameters."""
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter, weight in zip(parameters, tensors(weights), strict=True):
            parameter.copy_(weight)
    return parameters


def sequence(cell: str, T: int, B: int, I: int, H: int) -> Work:  # noqa: E741
    """A layer over a sequence, with the gradient of its whole output."""
    gates = costs.GATES[cell]
    x, dy = normal(0, T, B, I), normal(1, T, B, H)
    states = [normal(2 + k, B, H, scale=0.5) for k in range(2 if cell == "lstm" else 1)]
    weights = _weights(gates, I, H)

    def by_fastgrad() -> object:
        if cell == "lstm":
            y, ends, saved = fastgrad.lstm(x, *states, *weights)
            return [y, ends, fastgrad.lstm_backward(dy, None, None, saved)]
        y, end, saved = fastgrad.gru(x, *states, *weights)
        return [y, end, fastgrad.gru_backward(dy, None, saved)]

    by_torch: Callable[[], object] | None = None
    if torch:
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](I, H)
        parameters = _torch_module(module, weights)
        x_t, dy_t, *states_t = tensors([x, dy, *states])
        wanted = [x_t.requires_grad_(), *(state.requires_grad_() for state in states_t), *parameters]

        def by_torch() -> object:
            starts = [state[None] for state in states_t]
            y, ends = module(x_t, tuple(starts) if cell == "lstm" else starts[0])
            ends = [end[0] for end in ends] if cell == "lstm" else ends[0]
            return [y, ends, torch.autograd.grad(y, wanted, dy_t)]

    return Work(
        f"{cell} forward + backward {(T, B, I, H)}",
        f"(T, B, I, H) = {(T, B, I, H)}",
        *costs.recurrent(cell, T, B, I, H),
        contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limits.of_products(costs.recurrent(cell, T, B, I, H).flops, PRODUCT),
        rtol=1e-4,
    )


def step(cell: str) -> Work:
    """One step of a cell, with the gradients of all that it returns."""
    gates, (B, H) = costs.GATES[cell], CELL
    x = normal(0, B, H)
    states = [normal(2 + k, B, H, scale=0.5) for k in range(2 if cell == "lstm" else 1)]
    dstates = [normal(4 + k, B, H) for k in range(len(states))]
    weights = _weights(gates, H, H)

    def by_fastgrad() -> object:
        if cell == "lstm":
            h, c, saved = fastgrad.lstm_cell(x, *states, *weights)
            return [h, c, fastgrad.lstm_cell_backward(*dstates, saved)]
        h, saved = fastgrad.gru_cell(x, *states, *weights)
        return [h, fastgrad.gru_cell_backward(*dstates, saved)]

    by_torch: Callable[[], object] | None = None
    if torch:
        module = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[cell](H, H)
        parameters = _torch_module(module, weights)
        x_t, *states_t = tensors([x, *states])
        dstates_t = tensors(dstates)
        wanted = [x_t.requires_grad_(), *(state.requires_grad_() for state in states_t), *parameters]

        def by_torch() -> object:
            ends = module(x_t, tuple(states_t) if cell == "lstm" else states_t[0])
            ends = list(ends) if cell == "lstm" else [ends]
            return [ends, torch.autograd.grad(ends, wanted, dstates_t)]

    return Work(
        f"{cell}_cell forward + backward",
        f"B = {B}, I = H = {H}",
        *costs.recurrent(cell, 1, B, H, H),
        contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limits.of_products(costs.recurrent(cell, 1, B, H, H).flops, PRODUCT),
        rtol=1e-4,
    )
