"""Operations that are matrix products: affine maps, recurrent layers, attention."""

from __future__ import annotations

import math
from typing import Any

import fastgrad
from fastgrad import linear as linear_functions
from fastgrad.profiling import costs
from fastgrad.profiling.cases import Array, Case, Run, like, named, numbers

# Of x (32, 32, I): T, B.
STEPS, BATCH = 32, 32
HEADS, FEATURES = 4, 64  # of attention: q (2, 4, T, 64)


def linear(n: int) -> Case:
    side = max(1, math.isqrt(n))

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        return lambda: linear_functions.linear(x, weight, bias)

    def torchs(torch: Any, x: Any, weight: Any, bias: Any) -> Run:
        y = torch.empty_like(x)
        return lambda: torch.addmm(bias, x, weight.T, out=y)

    cost = costs.linear(side, side, side)
    inputs = numbers(0, side, side), numbers(1, side, side), numbers(2, side)
    return Case(named(side, side, side), cost, inputs, bind, None, torchs)


def linear_backward(n: int) -> Case:
    side = max(1, math.isqrt(n))

    def bind(dy: Array, x: Array, weight: Array) -> Run:
        return lambda: linear_functions.linear_backward(dy, x, weight)

    def torchs(torch: Any, dy: Any, x: Any, weight: Any) -> Run:
        dx, dw, db = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(x[0])
        return lambda: (torch.mm(dy, weight, out=dx), torch.mm(dy.T, x, out=dw), torch.sum(dy, 0, out=db))

    cost = costs.linear_backward(side, side, side)
    inputs = tuple(numbers(k, side, side) for k in range(3))
    return Case(named(side, side, side), cost, inputs, bind, None, torchs)


def recurrent(cell: str, n: int) -> Case:
    H, gates, states = max(1, n // (STEPS * BATCH)), costs.GATES[cell], 2 if cell == "lstm" else 1
    forward, backward = getattr(fastgrad, cell), getattr(fastgrad, f"{cell}_backward")

    def bind(x: Array, dy: Array, *weights: Array) -> Run:
        def run() -> Any:
            y, _, saved = forward(x, *[None] * states, *weights)
            return y, backward(dy, *[None] * states, saved)

        return run

    def torchs(torch: Any, x: Any, dy: Any, *weights: Any) -> Run:
        layer = getattr(torch.nn, cell.upper())(H, H).to(x.device)
        with torch.no_grad():
            for parameter, weight in zip(layer.parameters(), weights, strict=True):
                parameter.copy_(weight)
        leaf = x.detach().requires_grad_()
        wanted = [leaf, *layer.parameters()]

        def run() -> Any:
            with torch.enable_grad():
                y = layer(leaf)[0]
            return y, torch.autograd.grad(y, wanted, dy)

        return run

    shapes = [(gates * H, H), (gates * H, H), (gates * H,), (gates * H,)]
    weights = [numbers(2 + k, *shape, scale=H**-0.5) for k, shape in enumerate(shapes)]
    inputs = numbers(0, STEPS, BATCH, H), numbers(1, STEPS, BATCH, H), *weights
    cost = costs.recurrent(cell, STEPS, BATCH, H, H)
    return Case(named(STEPS, BATCH, H), cost, inputs, bind, None, torchs)


def _heads(n: int) -> tuple[int, int, int, int]:
    return 2, HEADS, max(1, n // (2 * HEADS * FEATURES)), FEATURES


def attention(n: int) -> Case:
    shape = _heads(n)

    def bind(q: Array, k: Array, v: Array) -> Run:
        y = like(q)
        return lambda: fastgrad.attention(q, k, v, out=y)[0]

    def torchs(torch: Any, q: Any, k: Any, v: Any) -> Run:
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    B, H, T, D = shape
    inputs = tuple(numbers(k, *shape) for k in range(3))
    return Case(named(*shape), costs.attention(B, H, T, T, D), inputs, bind, None, torchs)


def attention_backward(n: int) -> Case:
    shape = _heads(n)

    def bind(dy: Array, q: Array, k: Array, v: Array) -> Run:
        _, saved = fastgrad.attention(q, k, v)
        return lambda: fastgrad.attention_backward(dy, saved)

    B, H, T, D = shape
    inputs = tuple(numbers(k, *shape) for k in range(4))
    return Case(named(*shape), costs.attention_backward(B, H, T, T, D), inputs, bind, None)


def layer_norm_lstm(n: int) -> Case:
    H = max(1, n // (STEPS * BATCH))

    def bind(x: Array, dy: Array, *weights: Array) -> Run:
        def run() -> Any:
            y, _, saved = fastgrad.layer_norm_lstm(x, None, None, *weights)
            return y, fastgrad.layer_norm_lstm_backward(dy, None, None, saved)

        return run

    weights = [numbers(2 + k, 4 * H, H, scale=H**-0.5) for k in range(2)]
    gains = [1 + numbers(4 + k, size, scale=0.1) for k, size in enumerate((4 * H, 4 * H, H))]
    inputs = numbers(0, STEPS, BATCH, H), numbers(1, STEPS, BATCH, H), *weights, *gains
    return Case(named(STEPS, BATCH, H), costs.recurrent("lstm", STEPS, BATCH, H, H), inputs, bind, None)
