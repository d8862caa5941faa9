"""The operations that `fastgrad profile` measures: their arrays, who does them, what they cost, what limits them.

A size is the number of elements of the first array, float32; where that has two axes, of about so many.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastgrad
from fastgrad import _arrays, linear, pruning
from fastgrad.activations import KINDS
from fastgrad.profiling import costs, limits
from fastgrad.profiling.costs import Cost

Array = Any
Run = Callable[[], Any]

# Small enough for any cache, about the size of a second-level cache, and past the caches of most machines.
SIZES = (1 << 12, 1 << 17, 1 << 22)
PRODUCT_SIZES = (1 << 14, 1 << 20)  # 128 and 1,024 rows and columns
# Of x (32, 32, I): T, B; I = H = 64 and 256.
STEPS, BATCH = 32, 32
SEQUENCE_SIZES = (1 << 16, 1 << 18)
COLUMNS = 1024  # of a matrix that has so many elements; the sizes of layers' rows

# Without names: what a training step spends its time on.
DEFAULT = (
    "gelu_backward", "layer_norm_backward", "softmax_cross_entropy", "global_norm", "adam_step", "linear", "lstm",
    "gru",
)  # fmt: skip

ALIASES = {
    "activation": "gelu", "activation_backward": "gelu_backward", "Adam": "adam_step", "AdamW": "adam_step",
    "SGD": "sgd_step", "RMSprop": "rmsprop_step", "LSTM": "lstm", "GRU": "gru", "Linear": "linear",
    "Embedding": "embedding", "LayerNorm": "layer_norm", "BatchNorm": "batch_norm", "Dropout": "dropout",
    "GradientNorm": "global_norm",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    inputs: host arrays. bind: given them, or the same on a device, makes the arrays for results and what comes before,
    and returns the call to be timed, which returns its results. torch: given torch and tensors, the same call there.
    changed: which inputs the call writes. limit: what the machine allows on the CPU.
    """

    shape: str
    cost: Cost
    inputs: tuple[Any, ...]
    bind: Callable[..., Run]
    limit: Callable[[], limits.Limit] | None
    torch: Callable[..., Run] | None = None
    changed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Op:
    """name: as on the command line; sizes: without --sizes; build: returns the case of a size."""

    name: str
    sizes: tuple[int, ...]
    build: Callable[[int], Case]


def _numbers(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values * np.float32(scale) if scale != 1.0 else values


def _like(array: Array) -> Array:
    return _arrays.empty(array.shape, array.dtype, array)


def _rows(size: int) -> tuple[int, int]:
    columns = min(COLUMNS, size)
    return max(1, size // columns), columns


def _named(*shape: int) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def _moving(n: int, reads: int, writes: int, in_place: bool = False) -> Callable[[], limits.Limit]:
    return lambda: limits.of_memory(limits.moving(n, reads, writes, in_place=in_place))


# --- elementwise

_TORCH_KINDS = {"gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}}


def _activation(kind: str, n: int) -> Case:
    def bind(x: Array) -> Run:
        y = _like(x)
        return lambda: fastgrad.activation(x, kind, out=y)

    def torchs(torch: Any, x: Any) -> Run:
        function = getattr(torch.ops.aten, "gelu" if kind == "gelu_tanh" else kind).out
        y = torch.empty_like(x)
        return lambda: function(x, **_TORCH_KINDS.get(kind, {}), out=y)

    known = kind in ("relu", "silu", "sigmoid", "tanh", "mish", *_TORCH_KINDS)
    return Case(
        _named(n), costs.activation(n), (_numbers(0, n, scale=2.0),), bind, _moving(n, 1, 1), torchs if known else None
    )


def _activation_backward(kind: str, n: int) -> Case:
    def bind(dy: Array, x: Array) -> Run:
        dx = _like(x)
        return lambda: fastgrad.activation_backward(dy, x, kind, out=dx)

    def torchs(torch: Any, dy: Any, x: Any) -> Run:
        aten, dx = torch.ops.aten, torch.empty_like(x)
        calls: dict[str, Run] = {
            "relu": lambda: aten.threshold_backward.grad_input(dy, x, 0, grad_input=dx),
            "silu": lambda: aten.silu_backward.grad_input(dy, x, grad_input=dx),
            "sigmoid": lambda: aten.sigmoid_backward.grad_input(dy, x, grad_input=dx),
            "tanh": lambda: aten.tanh_backward.grad_input(dy, x, grad_input=dx),
            "gelu": lambda: aten.gelu_backward.grad_input(dy, x, approximate="none", grad_input=dx),
            "gelu_tanh": lambda: aten.gelu_backward.grad_input(dy, x, approximate="tanh", grad_input=dx),
            "mish": lambda: aten.mish_backward(dy, x),
        }
        return calls[kind]

    known = kind in ("relu", "silu", "sigmoid", "tanh", "mish", *_TORCH_KINDS)
    inputs = _numbers(1, n), _numbers(0, n, scale=2.0)
    return Case(
        _named(n), costs.activation_backward(n), inputs, bind, _moving(n, 2, 1), torchs if known else None
    )  # fmt: skip


def _glu(unit: str, n: int) -> Case:
    def bind(gate: Array, up: Array) -> Run:
        y = _like(gate)
        return lambda: getattr(fastgrad, unit)(gate, up, out=y)

    return Case(_named(n), costs.glu(n), (_numbers(0, n), _numbers(1, n)), bind, _moving(n, 2, 1))


def _glu_backward(unit: str, n: int) -> Case:
    def bind(dy: Array, gate: Array, up: Array) -> Run:
        out = _like(gate), _like(up)
        return lambda: getattr(fastgrad, f"{unit}_backward")(dy, gate, up, out=out)

    return Case(_named(n), costs.glu_backward(n), tuple(_numbers(k, n) for k in range(3)), bind, _moving(n, 3, 2))


def _prelu(n: int) -> Case:
    shape = _rows(n)

    def bind(x: Array, weight: Array) -> Run:
        y = _like(x)
        return lambda: fastgrad.prelu(x, weight, out=y)

    inputs = _numbers(0, *shape), _numbers(1, shape[1])
    return Case(_named(*shape), costs.activation(inputs[0].size), inputs, bind, _moving(inputs[0].size, 1, 1))


def _prelu_backward(n: int) -> Case:
    shape = _rows(n)

    def bind(dy: Array, x: Array, weight: Array) -> Run:
        return lambda: fastgrad.prelu_backward(dy, x, weight)

    inputs = _numbers(2, *shape), _numbers(0, *shape), _numbers(1, shape[1])
    return Case(_named(*shape), costs.prelu_backward(inputs[0].size), inputs, bind, _moving(inputs[0].size, 2, 1))


def _dropout(n: int) -> Case:
    def bind(x: Array) -> Run:
        y = _like(x)
        return lambda: fastgrad.dropout(x, 0.1, 1, 2, out=y)

    def torchs(torch: Any, x: Any) -> Run:
        return lambda: torch.native_dropout(x, 0.1, True)

    return Case(_named(n), costs.dropout(n), (_numbers(0, n),), bind, _moving(n, 1, 1), torchs)


def _clip_by_value(n: int) -> Case:
    def bind(x: Array) -> Run:
        return lambda: fastgrad.clip_by_value([x], -1.0, 1.0)

    def torchs(torch: Any, x: Any) -> Run:
        return lambda: x.clamp_(-1.0, 1.0)

    return Case(_named(n), costs.activation(n), (_numbers(0, n),), bind, _moving(n, 1, 1, True), torchs, (0,))


def _apply_masks(n: int) -> Case:
    def bind(x: Array, mask: Array) -> Run:
        return lambda: pruning.apply_masks([x], [mask])

    def torchs(torch: Any, x: Any, mask: Any) -> Run:
        return lambda: x.mul_(mask)

    inputs = _numbers(0, n), (_numbers(1, n) > 0).astype(np.float32)
    return Case(_named(n), costs.elementwise(n, 3), inputs, bind, _moving(n, 2, 1, True), torchs, (0,))


# --- rows


def _layer_norm(n: int) -> Case:
    shape = _rows(n)

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        y = _like(x)
        return lambda: fastgrad.layer_norm(x, weight, bias, out=y)[0]

    def torchs(torch: Any, x: Any, weight: Any, bias: Any) -> Run:
        return lambda: torch.native_layer_norm(x, shape[1:], weight, bias, 1e-5)[0]

    inputs = _numbers(0, *shape), _numbers(1, shape[1]), _numbers(2, shape[1])
    size = inputs[0].size
    return Case(_named(*shape), costs.layer_norm(size), inputs, bind, _moving(size, 1, 1), torchs)


def _layer_norm_backward(n: int) -> Case:
    shape = _rows(n)

    def bind(dy: Array, x: Array, weight: Array, bias: Array) -> Run:
        dx = _like(x)
        _, saved = fastgrad.layer_norm(x, weight, bias)
        return lambda: fastgrad.layer_norm_backward(dy, saved, out=dx)

    def torchs(torch: Any, dy: Any, x: Any, weight: Any, bias: Any) -> Run:
        _, mean, rstd = torch.native_layer_norm(x, shape[1:], weight, bias, 1e-5)
        out = {"out0": torch.empty_like(x), "out1": torch.empty_like(weight), "out2": torch.empty_like(bias)}
        function = torch.ops.aten.native_layer_norm_backward.out
        return lambda: function(dy, x, shape[1:], mean, rstd, weight, bias, [True, True, True], **out)

    inputs = _numbers(3, *shape), _numbers(0, *shape), _numbers(1, shape[1]), _numbers(2, shape[1])
    size = inputs[0].size
    return Case(_named(*shape), costs.layer_norm_backward(size), inputs, bind, _moving(size, 2, 1), torchs)


def _batch_norm(n: int) -> Case:
    shape = _rows(n)

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        y = _like(x)
        return lambda: fastgrad.batch_norm(x, weight, bias, training=True, out=y)[0]

    inputs = _numbers(0, *shape), _numbers(1, shape[1]), _numbers(2, shape[1])
    return Case(_named(*shape), costs.batch_norm(inputs[0].size), inputs, bind, _moving(inputs[0].size, 1, 1))


def _batch_norm_backward(n: int) -> Case:
    shape = _rows(n)

    def bind(dy: Array, x: Array, weight: Array, bias: Array) -> Run:
        dx = _like(x)
        _, saved = fastgrad.batch_norm(x, weight, bias, training=True)
        return lambda: fastgrad.batch_norm_backward(dy, saved, out=dx)

    inputs = _numbers(3, *shape), _numbers(0, *shape), _numbers(1, shape[1]), _numbers(2, shape[1])
    return Case(_named(*shape), costs.batch_norm_backward(inputs[0].size), inputs, bind, _moving(inputs[0].size, 2, 1))


def _softmax_cross_entropy(n: int) -> Case:
    shape = _rows(n)

    def bind(logits: Array, targets: Array) -> Run:
        dlogits = _like(logits)
        return lambda: fastgrad.softmax_cross_entropy(logits, targets, out=dlogits)

    def torchs(torch: Any, logits: Any, targets: Any) -> Run:
        leaf = logits.detach().requires_grad_()

        def run() -> Any:
            with torch.enable_grad():
                loss = torch.nn.functional.cross_entropy(leaf, targets)
            return torch.autograd.grad(loss, leaf)

        return run

    inputs = _numbers(0, *shape), np.random.default_rng(1).integers(shape[1], size=shape[0])
    size = inputs[0].size
    return Case(_named(*shape), costs.cross_entropy(size), inputs, bind, _moving(size, 1, 1), torchs)


def _mse(n: int) -> Case:
    def bind(pred: Array, target: Array) -> Run:
        dpred = _like(pred)
        return lambda: fastgrad.mse(pred, target, out=dpred)

    def torchs(torch: Any, pred: Any, target: Any) -> Run:
        one, dpred = torch.ones((), device=pred.device), torch.empty_like(pred)

        def run() -> Any:
            loss = torch.nn.functional.mse_loss(pred, target)
            return loss, torch.ops.aten.mse_loss_backward.grad_input(one, pred, target, 1, grad_input=dpred)

        return run

    return Case(_named(n), costs.mse(n), (_numbers(0, n), _numbers(1, n)), bind, _moving(n, 2, 1), torchs)


def _binary_cross_entropy(n: int) -> Case:
    def bind(logits: Array, targets: Array) -> Run:
        dlogits = _like(logits)
        return lambda: fastgrad.binary_cross_entropy_with_logits(logits, targets, out=dlogits)

    inputs = _numbers(0, n), (_numbers(1, n) > 0).astype(np.float32)
    return Case(_named(n), costs.elementwise(n, 3), inputs, bind, _moving(n, 2, 1))


def _embedding(n: int) -> Case:
    rows, width = _rows(n)

    def bind(weight: Array, indices: Array) -> Run:
        return lambda: linear.embedding(weight, indices)

    def torchs(torch: Any, weight: Any, indices: Any) -> Run:
        y = torch.empty_like(weight)
        return lambda: torch.index_select(weight, 0, indices, out=y)

    inputs = _numbers(0, rows, width), np.random.default_rng(1).integers(rows, size=rows)
    return Case(_named(rows, width), costs.embedding(rows, width), inputs, bind, _moving(rows * width, 1, 1), torchs)


def _embedding_backward(n: int) -> Case:
    rows, width = _rows(n)

    def bind(dy: Array, indices: Array) -> Run:
        return lambda: linear.embedding_backward(dy, indices, rows)

    inputs = _numbers(0, rows, width), np.random.default_rng(1).integers(rows, size=rows)
    cost = costs.embedding_backward(rows, width, rows)
    return Case(_named(rows, width), cost, inputs, bind, _moving(rows * width, 1, 1))


# --- norms and steps: one tensor of n numbers


def _global_norm(n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: fastgrad.global_norm([grads])

    def torchs(torch: Any, grads: Any) -> Run:
        return lambda: torch.linalg.vector_norm(grads)

    return Case(
        _named(n), costs.norm(n), (_numbers(0, n),), bind, lambda: limits.of_memory(limits.reading(n)), torchs
    )  # fmt: skip


def _health(n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: fastgrad.health([grads]).norm

    return Case(_named(n), costs.norm(n), (_numbers(0, n),), bind, lambda: limits.of_memory(limits.reading(n)))


def _clipping(name: str, n: int) -> Case:
    def bind(grads: Array) -> Run:
        return lambda: getattr(fastgrad, name)([grads], 1.0)

    def torchs(torch: Any, grads: Any) -> Run:
        holder = torch.nn.Parameter(torch.empty_like(grads))
        holder.grad = grads
        return lambda: torch.nn.utils.clip_grad_norm_([holder], 1.0)

    def limit() -> limits.Limit:
        stream = limits.ones(n)
        return limits.of_memory(limits.reading(n, stream), limits.moving(n, 1, 1, in_place=True, streams=[stream]))

    return Case(_named(n), costs.clip(n), (_numbers(0, n),), bind, limit, torchs, (0,))


def _adaptive_clip(n: int) -> Case:
    shape = _rows(n)

    def bind(grads: Array, params: Array) -> Run:
        return lambda: fastgrad.adaptive_clip([grads], [params])

    inputs = _numbers(0, *shape), _numbers(1, *shape)
    size = inputs[0].size
    return Case(_named(*shape), costs.elementwise(size, 4, 5), inputs, bind, _moving(size, 2, 1, True), changed=(0,))


def _state(n: int, arrays: int) -> tuple[np.ndarray, ...]:
    averages = [np.abs(_numbers(2 + k, n, scale=1e-3)) for k in range(arrays)]
    return (_numbers(0, n, scale=0.02), _numbers(1, n), *averages)


def _torch_step(torch: Any, make: Callable[..., Any], arrays: Sequence[Any], names: Sequence[str]) -> Run:
    param = torch.nn.Parameter(arrays[0])
    param.grad = arrays[1]
    optimizer = make([param])
    optimizer.state[param] = dict(zip(names, arrays[2:], strict=True))
    if "exp_avg" in names:
        optimizer.state[param]["step"] = torch.ones((), device=param.device)
    return optimizer.step


def _adam_step(n: int) -> Case:
    def bind(p: Array, g: Array, m: Array, v: Array) -> Run:
        return lambda: fastgrad.adam_step([p], [g], [m], [v], step=10, lr=1e-6)

    def torchs(torch: Any, *arrays: Any) -> Run:
        def make(params: Any) -> Any:
            return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True)

        return _torch_step(torch, make, arrays, ("exp_avg", "exp_avg_sq"))

    return Case(_named(n), costs.adam(n), _state(n, 2), bind, _moving(n, 4, 3, True), torchs, (0, 2, 3))


def _sgd_step(n: int) -> Case:
    def bind(p: Array, g: Array, b: Array) -> Run:
        return lambda: fastgrad.sgd_step([p], [g], [b], lr=1e-6, momentum=0.9)

    def torchs(torch: Any, *arrays: Any) -> Run:
        def make(params: Any) -> Any:
            return torch.optim.SGD(params, lr=1e-6, momentum=0.9, fused=True)

        return _torch_step(torch, make, arrays, ("momentum_buffer",))

    return Case(_named(n), costs.sgd(n), _state(n, 1), bind, _moving(n, 3, 2, True), torchs, (0, 2))


def _rmsprop_step(n: int) -> Case:
    def bind(p: Array, g: Array, v: Array) -> Run:
        return lambda: fastgrad.rmsprop_step([p], [g], [v], lr=1e-6)

    return Case(_named(n), costs.rmsprop(n), _state(n, 1), bind, _moving(n, 3, 2, True), changed=(0, 2))


# --- products


def _linear(n: int) -> Case:
    side = max(1, math.isqrt(n))

    def bind(x: Array, weight: Array, bias: Array) -> Run:
        return lambda: linear.linear(x, weight, bias)

    def torchs(torch: Any, x: Any, weight: Any, bias: Any) -> Run:
        y = torch.empty_like(x)
        return lambda: torch.addmm(bias, x, weight.T, out=y)

    cost = costs.linear(side, side, side)
    inputs = _numbers(0, side, side), _numbers(1, side, side), _numbers(2, side)
    return Case(_named(side, side, side), cost, inputs, bind, None, torchs)


def _linear_backward(n: int) -> Case:
    side = max(1, math.isqrt(n))

    def bind(dy: Array, x: Array, weight: Array) -> Run:
        return lambda: linear.linear_backward(dy, x, weight)

    def torchs(torch: Any, dy: Any, x: Any, weight: Any) -> Run:
        dx, dw, db = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(x[0])
        return lambda: (torch.mm(dy, weight, out=dx), torch.mm(dy.T, x, out=dw), torch.sum(dy, 0, out=db))

    cost = costs.linear_backward(side, side, side)
    inputs = tuple(_numbers(k, side, side) for k in range(3))
    return Case(_named(side, side, side), cost, inputs, bind, None, torchs)


def _recurrent(cell: str, n: int) -> Case:
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
    weights = [_numbers(2 + k, *shape, scale=H**-0.5) for k, shape in enumerate(shapes)]
    inputs = _numbers(0, STEPS, BATCH, H), _numbers(1, STEPS, BATCH, H), *weights
    cost = costs.recurrent(cell, STEPS, BATCH, H, H)
    return Case(_named(STEPS, BATCH, H), cost, inputs, bind, None, torchs)


# --- the table


def _table() -> dict[str, Op]:
    ops: dict[str, Op] = {}

    def add(name: str, build: Callable[..., Case], *first: Any, sizes: tuple[int, ...] = SIZES) -> None:
        ops[name] = Op(name, sizes, lambda n: build(*first, n))

    for kind in KINDS:
        add(kind, _activation, kind)
        add(f"{kind}_backward", _activation_backward, kind)
    for unit in ("swiglu", "geglu"):
        add(unit, _glu, unit)
        add(f"{unit}_backward", _glu_backward, unit)
    for name, build in {
        "prelu": _prelu, "prelu_backward": _prelu_backward, "layer_norm": _layer_norm,
        "layer_norm_backward": _layer_norm_backward, "batch_norm": _batch_norm,
        "batch_norm_backward": _batch_norm_backward, "dropout": _dropout, "embedding": _embedding,
        "embedding_backward": _embedding_backward, "softmax_cross_entropy": _softmax_cross_entropy,
        "binary_cross_entropy_with_logits": _binary_cross_entropy, "mse": _mse, "global_norm": _global_norm,
        "health": _health, "adaptive_clip": _adaptive_clip, "clip_by_value": _clip_by_value,
        "apply_masks": _apply_masks, "adam_step": _adam_step, "sgd_step": _sgd_step, "rmsprop_step": _rmsprop_step,
    }.items():  # fmt: skip
        add(name, build)
    for name in ("clip_by_global_norm", "clip_by_norm"):
        add(name, _clipping, name)
    for name, build in {"linear": _linear, "linear_backward": _linear_backward}.items():
        add(name, build, sizes=PRODUCT_SIZES)
    for cell in costs.GATES:
        add(cell, _recurrent, cell, sizes=SEQUENCE_SIZES)
    return ops


OPS = _table()


def chosen(names: Iterable[str]) -> list[Op]:
    """Return the operations of these names, "all" among them for all, or those of DEFAULT.

    Raises:
        ValueError: a name is not known; says which are, and which was meant.
    """
    wanted = [ALIASES.get(name, name) for name in names] or list(DEFAULT)
    if "all" in wanted:
        return list(OPS.values())
    for name in wanted:
        if name not in OPS:
            near = difflib.get_close_matches(name, [*OPS, *ALIASES], 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown operation {name!r}: {meant}Known are {', '.join(OPS)}, and all")
    return [OPS[name] for name in dict.fromkeys(wanted)]
