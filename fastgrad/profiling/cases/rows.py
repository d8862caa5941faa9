"""Operations on the rows of a matrix: normalisation, losses, tables."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad
from fastgrad import linear
from fastgrad.profiling import costs
from fastgrad.profiling.cases import Array, Case, Run, like, moving, named, numbers, rows_of


def layer_norm(n: int) -> Case:
    shape = rows_of(n)

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.layer_norm(x, weight, bias, out=y)[0]

    def torchs(torch: Any, x: Any, weight: Any, bias: Any) -> Run:
        return lambda: torch.native_layer_norm(x, shape[1:], weight, bias, 1e-5)[0]

    inputs = numbers(0, *shape), numbers(1, shape[1]), numbers(2, shape[1])
    size = inputs[0].size
    return Case(named(*shape), costs.layer_norm(size), inputs, bind, moving(size, 1, 1), torchs)


def layer_norm_backward(n: int) -> Case:
    shape = rows_of(n)

    def bind(dy: Array, x: Array, weight: Array, bias: Array) -> Run:
        dx = like(x)
        _, saved = fastgrad.layer_norm(x, weight, bias)
        return lambda: fastgrad.layer_norm_backward(dy, saved, out=dx)

    def torchs(torch: Any, dy: Any, x: Any, weight: Any, bias: Any) -> Run:
        _, mean, rstd = torch.native_layer_norm(x, shape[1:], weight, bias, 1e-5)
        out = {"out0": torch.empty_like(x), "out1": torch.empty_like(weight), "out2": torch.empty_like(bias)}
        function = torch.ops.aten.native_layer_norm_backward.out
        return lambda: function(dy, x, shape[1:], mean, rstd, weight, bias, [True, True, True], **out)

    inputs = numbers(3, *shape), numbers(0, *shape), numbers(1, shape[1]), numbers(2, shape[1])
    size = inputs[0].size
    return Case(named(*shape), costs.layer_norm_backward(size), inputs, bind, moving(size, 2, 1), torchs)


def batch_norm(n: int) -> Case:
    shape = rows_of(n)

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        y = like(x)
        return lambda: fastgrad.batch_norm(x, weight, bias, training=True, out=y)[0]

    inputs = numbers(0, *shape), numbers(1, shape[1]), numbers(2, shape[1])
    return Case(named(*shape), costs.batch_norm(inputs[0].size), inputs, bind, moving(inputs[0].size, 1, 1))


def batch_norm_backward(n: int) -> Case:
    shape = rows_of(n)

    def bind(dy: Array, x: Array, weight: Array, bias: Array) -> Run:
        dx = like(x)
        _, saved = fastgrad.batch_norm(x, weight, bias, training=True)
        return lambda: fastgrad.batch_norm_backward(dy, saved, out=dx)

    inputs = numbers(3, *shape), numbers(0, *shape), numbers(1, shape[1]), numbers(2, shape[1])
    return Case(named(*shape), costs.batch_norm_backward(inputs[0].size), inputs, bind, moving(inputs[0].size, 2, 1))


def softmax_cross_entropy(n: int) -> Case:
    shape = rows_of(n)

    def bind(logits: Array, targets: Array) -> Run:
        dlogits = like(logits)
        return lambda: fastgrad.softmax_cross_entropy(logits, targets, out=dlogits)

    def torchs(torch: Any, logits: Any, targets: Any) -> Run:
        leaf = logits.detach().requires_grad_()

        def run() -> Any:
            with torch.enable_grad():
                loss = torch.nn.functional.cross_entropy(leaf, targets)
            return torch.autograd.grad(loss, leaf)

        return run

    inputs = numbers(0, *shape), np.random.default_rng(1).integers(shape[1], size=shape[0])
    size = inputs[0].size
    return Case(named(*shape), costs.cross_entropy(size), inputs, bind, moving(size, 1, 1), torchs)


def mse(n: int) -> Case:
    def bind(pred: Array, target: Array) -> Run:
        dpred = like(pred)
        return lambda: fastgrad.mse(pred, target, out=dpred)

    def torchs(torch: Any, pred: Any, target: Any) -> Run:
        one, dpred = torch.ones((), device=pred.device), torch.empty_like(pred)

        def run() -> Any:
            loss = torch.nn.functional.mse_loss(pred, target)
            return loss, torch.ops.aten.mse_loss_backward.grad_input(one, pred, target, 1, grad_input=dpred)

        return run

    return Case(named(n), costs.mse(n), (numbers(0, n), numbers(1, n)), bind, moving(n, 2, 1), torchs)


def binary_cross_entropy(n: int) -> Case:
    def bind(logits: Array, targets: Array) -> Run:
        dlogits = like(logits)
        return lambda: fastgrad.binary_cross_entropy_with_logits(logits, targets, out=dlogits)

    inputs = numbers(0, n), (numbers(1, n) > 0).astype(np.float32)
    return Case(named(n), costs.elementwise(n, 3), inputs, bind, moving(n, 2, 1))


def embedding(n: int) -> Case:
    rows, width = rows_of(n)

    def bind(weight: Array, indices: Array) -> Run:
        return lambda: linear.embedding(weight, indices)

    def torchs(torch: Any, weight: Any, indices: Any) -> Run:
        y = torch.empty_like(weight)
        return lambda: torch.index_select(weight, 0, indices, out=y)

    inputs = numbers(0, rows, width), np.random.default_rng(1).integers(rows, size=rows)
    return Case(named(rows, width), costs.embedding(rows, width), inputs, bind, moving(rows * width, 1, 1), torchs)


def embedding_backward(n: int) -> Case:
    rows, width = rows_of(n)

    def bind(dy: Array, indices: Array) -> Run:
        return lambda: linear.embedding_backward(dy, indices, rows)

    inputs = numbers(0, rows, width), np.random.default_rng(1).integers(rows, size=rows)
    cost = costs.embedding_backward(rows, width, rows)
    return Case(named(rows, width), cost, inputs, bind, moving(rows * width, 1, 1))
