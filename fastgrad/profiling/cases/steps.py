"""Norms, clipping and steps of optimizers, on one tensor of n numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastgrad
from fastgrad.profiling import costs, limits
from fastgrad.profiling.cases import Array, Case, Run, moving, named, numbers, rows_of


def global_norm(n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: fastgrad.global_norm([grads])

    def torchs(torch: Any, grads: Any) -> Run:
        return lambda: torch.linalg.vector_norm(grads)

    return Case(
        named(n), costs.norm(n), (numbers(0, n),), bind, lambda: limits.of_memory(limits.reading(n)), torchs
    )  # fmt: skip


def health(n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: fastgrad.health([grads]).norm

    return Case(named(n), costs.norm(n), (numbers(0, n),), bind, lambda: limits.of_memory(limits.reading(n)))


def clipping(name: str, n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: getattr(fastgrad, name)([grads], 1.0)

    def torchs(torch: Any, grads: Any) -> Run:
        holder = torch.nn.Parameter(torch.empty_like(grads))
        holder.grad = grads
        return lambda: torch.nn.utils.clip_grad_norm_([holder], 1.0)

    def limit() -> limits.Limit:
        stream = limits.ones(n)
        return limits.of_memory(limits.reading(n, stream), limits.moving(n, 1, 1, in_place=True, streams=[stream]))

    return Case(named(n), costs.clip(n), (numbers(0, n),), bind, limit, torchs, (0,))


def adaptive_clip(n: int) -> Case:
    shape = rows_of(n)

    def bind(grads: Array, params: Array) -> Run:
        return lambda: fastgrad.adaptive_clip([grads], [params])

    inputs = numbers(0, *shape), numbers(1, *shape)
    size = inputs[0].size
    return Case(named(*shape), costs.elementwise(size, 4, 5), inputs, bind, moving(size, 2, 1, True), changed=(0,))


def _state(n: int, arrays: int) -> tuple[np.ndarray, ...]:
    averages = [np.abs(numbers(2 + k, n, scale=1e-3)) for k in range(arrays)]
    return (numbers(0, n, scale=0.02), numbers(1, n), *averages)


def _torch_step(torch: Any, make: Callable[..., Any], arrays: Sequence[Any], names: Sequence[str]) -> Run:
    param = torch.nn.Parameter(arrays[0])
    param.grad = arrays[1]
    optimizer = make([param])
    optimizer.state[param] = dict(zip(names, arrays[2:], strict=True))
    if "exp_avg" in names:
        optimizer.state[param]["step"] = torch.ones((), device=param.device)
    return optimizer.step


def adam_step(n: int) -> Case:
    def bind(p: Array, g: Array, m: Array, v: Array) -> Run:
        return lambda: fastgrad.adam_step([p], [g], [m], [v], step=10, lr=1e-6)

    def torchs(torch: Any, *arrays: Any) -> Run:
        def make(params: Any) -> Any:
            return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True)

        return _torch_step(torch, make, arrays, ("exp_avg", "exp_avg_sq"))

    return Case(named(n), costs.adam(n), _state(n, 2), bind, moving(n, 4, 3, True), torchs, (0, 2, 3))


def sgd_step(n: int) -> Case:
    def bind(p: Array, g: Array, b: Array) -> Run:
        return lambda: fastgrad.sgd_step([p], [g], [b], lr=1e-6, momentum=0.9)

    def torchs(torch: Any, *arrays: Any) -> Run:
        def make(params: Any) -> Any:
            return torch.optim.SGD(params, lr=1e-6, momentum=0.9, fused=True)

        return _torch_step(torch, make, arrays, ("momentum_buffer",))

    return Case(named(n), costs.sgd(n), _state(n, 1), bind, moving(n, 3, 2, True), torchs, (0, 2))


def rmsprop_step(n: int) -> Case:
    def bind(p: Array, g: Array, v: Array) -> Run:
        return lambda: fastgrad.rmsprop_step([p], [g], [v], lr=1e-6)

    return Case(named(n), costs.rmsprop(n), _state(n, 1), bind, moving(n, 3, 2, True), changed=(0, 2))
