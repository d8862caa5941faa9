"""Layers: parameters, their gradients and what the backward pass needs, around fastgrad's functions.

No graph is recorded: `forward` keeps what `backward` needs, and `backward(dy)` is called once after each `forward`, in
the opposite order of layers. It adds to the gradients of the parameters, as in torch, and returns the gradient of the
input. Names in `state_dict` and initial values follow torch.

Layers are made on the CPU and take NumPy arrays there; after `layer.to("gpu")`, or made with `device="gpu"`, they take
and return CuPy arrays. Initial values are drawn on the CPU for both: the same `rng` gives the same numbers.

Dimension letters: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, array_module, device_module, is_array, kind_name, to_host
from fastgrad._checks import number
from fastgrad._dispatch import wrong_array
from fastgrad._gpu import mover
from fastgrad.activations import activation, activation_backward
from fastgrad.linear import embedding, embedding_backward, linear, linear_backward
from fastgrad.normalization import batch_norm, batch_norm_backward, layer_norm, layer_norm_backward
from fastgrad.recurrent import gru, gru_backward, lstm, lstm_backward
from fastgrad.regularization import dropout, dropout_backward

if TYPE_CHECKING:
    from fastgrad.gradient_norm import GradientNorm

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "BatchNorm",
    "Dropout",
    "Embedding",
    "Layer",
    "LayerNorm",
    "Linear",
    "Parameter",
    "Residual",
    "Sequential",
]

Rng = np.random.Generator | int | None


class Parameter:
    """An array that is trained: `data`, `grad` (None until a backward pass, then of the same shape) and `name`.

    `gradient_norm`, where an optimizer has set it, is fed `grad` whenever a backward pass has stored it or added to it.
    """

    __slots__ = ("data", "grad", "gradient_norm", "name")

    def __init__(self, data: Array, grad: Array | None = None, name: str = "") -> None:
        self.data = data
        self.grad = grad
        self.name = name
        self.gradient_norm: GradientNorm | None = None

    def accumulate(self, gradient: Array) -> None:
        """Add `gradient` to `grad`; the first one becomes `grad` itself, so its caller must not use it further."""
        if self.grad is None:
            self.grad = gradient
        else:
            self.grad += gradient
        if self.gradient_norm is not None:
            self.gradient_norm.add(self.grad)

    def __repr__(self) -> str:
        has = "no grad" if self.grad is None else "grad"
        return f"Parameter({self.name or 'unnamed'}, shape={self.data.shape}, {self.data.dtype}, {has})"


class Layer:
    """What all layers share.

    A layer of your own assigns parameters and layers to attributes, where they are found; in a list they are not: make
    a Sequential of it.
    """

    training: bool = True
    _buffers: tuple[str, ...] = ()  # attributes that hold arrays which are kept with the parameters, but not trained
    # What forward kept for backward, with the shape and the type of the output.
    _kept: tuple[Any, tuple[int, ...], type] | None = None

    def __setattr__(self, attribute: str, value: Any) -> None:
        super().__setattr__(attribute, value)
        if isinstance(value, Parameter):
            value.name = attribute
        elif isinstance(value, Layer):
            value._prefix_names(attribute)

    def _members(self) -> Iterator[tuple[str, Any]]:
        """Yield the (name, Parameter or Layer) pairs directly below, in the order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Layer):
                yield name, value

    def _prefix_names(self, prefix: str) -> None:
        for parameter in self.parameters():
            parameter.name = f"{prefix}.{parameter.name}"

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (name, Parameter) of this layer and all below, named by their path as in torch."""
        for name, value in self._members():
            if isinstance(value, Parameter):
                yield prefix + name, value
            else:
                yield from value.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """Return the parameters of this layer and all below, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of the parameters and buffers of this layer and all below, in torch's order."""
        members = list(self._members())
        yield from ((prefix + name, value.data) for name, value in members if isinstance(value, Parameter))
        for name in self._buffers:
            array = getattr(self, name)
            if array is not None:
                yield prefix + name, array
        for name, value in members:
            if isinstance(value, Layer):
                yield from value._named_arrays(f"{prefix}{name}.")

    def train(self, mode: bool = True) -> Self:
        """Switch this layer and all below to training (or with mode=False to evaluation), and return it."""
        self.training = mode
        for _, value in self._members():
            if isinstance(value, Layer):
                value.train(mode)
        return self

    def eval(self) -> Self:
        """Switch this layer and all below to evaluation, and return it."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move this layer and all below to a device, "cpu" or "gpu", and return it.

        Every Parameter stays the same object and gets new `data` and `grad`; arrays in other attributes move as well.
        What a forward pass kept is forgotten. Optimizers made before take their state along in their next step. The
        GPU is the one that is current in CuPy.

        Raises ValueError for another name, and RuntimeError where no GPU can be used, with the reason.
        """
        move = mover(device)
        self._kept = None
        for name, value in vars(self).items():
            vars(self)[name] = _moved(value, move)
        for _, member in self._members():
            if isinstance(member, Layer):
                member.to(device)
            else:
                member.data = move(member.data)
                member.grad = None if member.grad is None else move(member.grad)
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of parameters and running statistics by name: themselves, on the layer's device."""
        return dict(self._named_arrays())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state` (arrays on any device, or CPU tensors of torch, by name) into the parameters, in place.

        Values are converted to the parameters' dtype and device. Raises KeyError when names are missing or too many,
        and ValueError for another shape; nothing is changed then.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if missing or unexpected:
            raise KeyError(
                f"state does not fit this {type(self).__name__}: missing {missing or 'nothing'}, "
                f"unexpected {unexpected or 'nothing'}"
            )
        values = {name: _converted(state[name], own[name]) for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"state[{name!r}]: expected shape {own[name].shape}, got {value.shape}")
        for name, value in values.items():
            own[name][...] = value

    def forward(self, x: Any) -> Any:
        """Return the layer's output for `x`, keeping what backward needs."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Any) -> Any:
        """Return the gradient of the last forward's input, adding to the parameters' gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def _check_kind(self, name: str, value: Any, parameter: Parameter) -> None:
        """Raise TypeError unless `value` is an array on the device of this layer's parameter."""
        if type(value) is type(parameter.data):
            return
        if not is_array(value):
            raise wrong_array(name, value)
        _, device, convert = _other_device(value)
        raise TypeError(
            f"{name} is a {kind_name(value)} array but this {type(self).__name__} is on the {device.upper()}; "
            f"pass {convert}({name}), or move the layer with .to({'cpu' if device == 'gpu' else 'gpu'!r})"
        )

    def _keep(self, y: Array, saved: Any) -> None:
        """Keep `saved` for the backward pass of an output of y's shape and kind."""
        self._kept = (saved, y.shape, type(y))

    def _take(self, dy: Any) -> Any:
        """Return what forward kept, and forget it: its memory is the backward pass's to reuse.

        Raises RuntimeError without a forward before, ValueError when dy has not the shape of its output, and TypeError
        when it lies on another device.
        """
        kept = self._kept
        if kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: expected a forward pass before, got none; call forward(x) once for "
                "each backward(dy)"
            )
        saved, shape, kind = kept
        if dy is not None and getattr(dy, "shape", None) != shape:
            _wrong_shape("dy", f"{shape}, that of the output", dy)
        if dy is not None and type(dy) is not kind and is_array(dy):
            wanted, _, convert = _other_device(dy)
            raise TypeError(f"dy is a {kind_name(dy)} array but forward returned a {wanted} array; pass {convert}(dy)")
        self._kept = None
        return saved


class Linear(Layer):
    """y = x @ weight.T + bias over the last axis of x.

    weight (out_features, in_features), bias (out_features,) or none; both from U(-a, a), a = 1 / sqrt(in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        _positive(in_features=in_features, out_features=out_features)
        rng = np.random.default_rng(rng)
        self.in_features, self.out_features = in_features, out_features
        bound = 1.0 / math.sqrt(in_features)
        self.weight = Parameter(_uniform((out_features, in_features), bound, rng, dtype))
        self.bias = Parameter(_uniform((out_features,), bound, rng, dtype)) if bias else None
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return y (..., out_features) for x (..., in_features), which must not be overwritten before backward."""
        self._check_kind("x", x, self.weight)
        if x.shape[-1:] != (self.in_features,):
            _wrong_shape("x", f"(..., {self.in_features})", x)
        y = linear(x, self.weight.data, None if self.bias is None else self.bias.data)
        self._keep(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx (..., in_features) for dy (..., out_features); adds to the gradients of weight and bias."""
        x = self._take(dy)
        dx, dweight, dbias = linear_backward(dy, x, self.weight.data, with_bias=self.bias is not None)
        self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)
        assert dx is not None
        return dx


class Embedding(Layer):
    """Rows of weight (num_embeddings, embedding_dim), drawn from N(0, 1), picked by integers."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        _positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        dtype = init.float_dtype(dtype)
        values = np.random.default_rng(rng).standard_normal((num_embeddings, embedding_dim), dtype=dtype.type)
        self.weight = Parameter(values)
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return weight[x] of shape (*x.shape, embedding_dim) for integers x in [0, num_embeddings)."""
        self._check_kind("x", x, self.weight)
        y = embedding(self.weight.data, x)
        self._keep(y, x)
        return y

    def backward(self, dy: Array) -> None:
        """Add to the gradient of weight the rows of dy (*x.shape, embedding_dim). Integers have no gradient: None."""
        x = self._take(dy)
        self.weight.accumulate(embedding_backward(dy, x, self.num_embeddings))


class Activation(Layer):
    """An activation by name, such as Activation("gelu") or Activation("leaky_relu", negative_slope=0.2).

    Names and parameters are those of `fastgrad.activation`.
    """

    def __init__(self, kind: str, **params: Any) -> None:
        self.kind = kind
        self.params: dict[str, Any] = params
        activation(np.zeros(0, np.float32), kind, **params)  # a wrong name or parameter fails here, not in training

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; x must not be overwritten before backward."""
        y = activation(x, self.kind, **self.params)
        self._keep(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape."""
        x = self._take(dy)
        return activation_backward(dy, x, self.kind, **self.params)


class LayerNorm(Layer):
    """Normalise over the last axes of x: y = weight (x - mean) / sqrt(var + eps) + bias, see `fastgrad.layer_norm`.

    weight, from ones, and bias, from zeros, have the shape `normalized_shape` (an integer or a tuple), or are none.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        shape = tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        if not shape:
            raise ValueError("normalized_shape: expected the sizes of at least one axis, got ()")
        for size in shape:
            _positive(normalized_shape=size)
        self.normalized_shape, self.eps = shape, number("eps", eps, 0.0)
        dtype = init.float_dtype(dtype)
        self.weight = Parameter(np.ones(shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape, dtype)) if elementwise_affine and bias else None
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return y of x's shape (..., *normalized_shape); x must not be overwritten before backward."""
        if self.weight is not None:
            self._check_kind("x", x, self.weight)
        axes = len(self.normalized_shape)
        if x.shape[-axes:] != self.normalized_shape:
            _wrong_shape("x", f"(..., {', '.join(map(str, self.normalized_shape))})", x)
        rows = x.reshape(*x.shape[:-axes], math.prod(self.normalized_shape))
        weight, bias = (None if p is None else p.data.reshape(-1) for p in (self.weight, self.bias))
        y, saved = layer_norm(rows, weight, bias, self.eps)
        y = y.reshape(x.shape)
        self._keep(y, saved)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of weight and bias."""
        saved = self._take(dy)
        dx, dweight, dbias = layer_norm_backward(dy.reshape(saved.shape), saved)
        for parameter, gradient in ((self.weight, dweight), (self.bias, dbias)):
            if parameter is not None and gradient is not None:
                parameter.accumulate(gradient.reshape(self.normalized_shape))
        return dx.reshape(dy.shape)


class BatchNorm(Layer):
    """Normalise each channel, axis 1 of x (B, C) or (B, C, ...), over all other axes: see `fastgrad.batch_norm`.

    In training by the statistics of the batch, in evaluation by `running_mean` and `running_var` (C,), where they are
    tracked. weight, from ones, and bias, from zeros, are (C,), or none without `affine`. momentum=None averages the
    statistics of all batches alike, as in torch; it waits for the device once a forward.
    """

    _buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        _positive(num_features=num_features)
        self.num_features, self.eps = num_features, number("eps", eps, 0.0)
        self.momentum = None if momentum is None else number("momentum", momentum, 0.0, 1.0)
        dtype, shape = init.float_dtype(dtype), (num_features,)
        self.weight = Parameter(np.ones(shape, dtype)) if affine else None
        self.bias = Parameter(np.zeros(shape, dtype)) if affine else None
        self.running_mean: Array | None = np.zeros(shape, dtype) if track_running_stats else None
        self.running_var: Array | None = np.ones(shape, dtype) if track_running_stats else None
        self.num_batches_tracked: Array | None = np.zeros((), np.int64) if track_running_stats else None
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; x must not be overwritten before backward."""
        if self.weight is not None:
            self._check_kind("x", x, self.weight)
        if x.ndim < 2 or x.shape[1] != self.num_features:
            _wrong_shape("x", f"(batch, {self.num_features}) or (batch, {self.num_features}, ...)", x)
        weight, bias = (None if p is None else p.data for p in (self.weight, self.bias))
        tracked, momentum = self.num_batches_tracked, self.momentum
        if self.training and tracked is not None and momentum is None:
            momentum = 1.0 / (int(tracked) + 1)
        y, saved = batch_norm(
            x, weight, bias, self.running_mean, self.running_var, training=self.training or tracked is None,
            momentum=0.0 if momentum is None else momentum, eps=self.eps,
        )  # fmt: skip
        if self.training and tracked is not None:
            tracked += 1
        self._keep(y, saved)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of weight and bias."""
        dx, dweight, dbias = batch_norm_backward(dy, self._take(dy))
        for parameter, gradient in ((self.weight, dweight), (self.bias, dbias)):
            if parameter is not None and gradient is not None:
                parameter.accumulate(gradient)
        return dx


class Dropout(Layer):
    """In training set entries to 0 with probability p and scale the others by 1 / (1 - p); in evaluation do nothing.

    Attributes:
        seed, offset: of the random numbers, see `fastgrad.dropout`. The seed is drawn from `rng`, and the offset counts
            the forward passes in training: put both back to repeat a run.
    """

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        self.p = number("p", p, 0.0, 1.0)
        self.seed, self.offset = int(np.random.default_rng(rng).integers(1 << 63)), 0

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; in evaluation x itself."""
        if not self.training or self.p == 0.0:
            self._keep(x, None)
            return x
        y = dropout(x, self.p, self.seed, self.offset)
        self._keep(y, self.offset)
        self.offset += 1
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape."""
        offset = self._take(dy)
        return dy if offset is None else dropout_backward(dy, self.p, self.seed, offset)


class _Recurrent(Layer):
    """Layers and directions of a recurrent cell: L x D runs of one kernel each.

    Parameters of layer k are weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}, and those of the reverse
    direction have `_reverse` appended; all from U(-a, a), a = 1 / sqrt(hidden_size).
    """

    _gates: int  # rows of the weights in units of H
    _states: int  # arrays in a state: 2 for (h, c), 1 for h

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        _positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        rng = np.random.default_rng(rng)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.batch_first = bool(bidirectional), bool(batch_first)
        self.dtype = init.float_dtype(dtype)
        self.dstate0: Any = None
        self._directions = 2 if bidirectional else 1
        self._runs: list[list[Parameter]] = []
        bound, rows = 1.0 / math.sqrt(hidden_size), self._gates * hidden_size
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self._directions
            for suffix in ["", "_reverse"][: self._directions]:
                shapes = {"weight_ih": (rows, size), "weight_hh": (rows, hidden_size)}
                run = []
                for name, shape in {**shapes, "bias_ih": (rows,), "bias_hh": (rows,)}.items():
                    parameter = Parameter(_uniform(shape, bound, rng, self.dtype))
                    setattr(self, f"{name}_l{layer}{suffix}", parameter)
                    run.append(parameter)
                self._runs.append(run)
        self.to(device)

    def forward(self, x: Array, state: Any = None, lengths: Any = None) -> Any:
        """Return (y, state): y (T, B, D * H) of the last layer, and the state behind the last step.

        x (T, B, I), or (B, T, I) with batch_first, y likewise. It must not be overwritten before backward.
        state is (h, c) for an LSTM and h for a GRU, each (L * D, B, H) with batch_first as well; None means zeros.
        lengths (B,) are integers in 0..T: what lies behind the length of a sequence is not read, its y is zero, and its
        state is that of its last step, as with torch's packed sequences.
        """
        self._check_kind("x", x, self._runs[0][0])
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            axes = "batch, time" if self.batch_first else "time, batch"
            _wrong_shape("x", f"({axes}, {self.input_size})", x)
        if self.batch_first:
            x = x.swapaxes(0, 1)
        initial = self._split_state("state", state, x.shape[1])
        last: list[tuple[Array, ...]] = []
        saved: list[Any] = []
        for _ in range(self.num_layers):
            outputs = []
            for direction in range(self._directions):
                index = len(saved)
                parameters = [parameter.data for parameter in self._runs[index]]
                starts = [None if part is None else part[index] for part in initial]
                y, ends, kept = self._run(x, starts, parameters, lengths, direction == 1)
                outputs.append(y)
                last.append(ends)
                saved.append(kept)
            x = outputs[0] if len(outputs) == 1 else array_module(x).concatenate(outputs, axis=-1)
        y = x.swapaxes(0, 1) if self.batch_first else x
        self._keep(y, (saved, x.shape[1]))
        return y, self._join_state(last)

    def backward(self, dy: Array | None, dstate: Any = None) -> Array:
        """Return dx of x's shape; adds to the parameters' gradients and keeps the initial state's as `dstate0`.

        dy has y's shape, or is None when only the state has a gradient. dstate, the gradient of the returned state, and
        `dstate0` have the state's form; None, whole or for one of (h, c), means zeros.
        """
        saved, batch = self._take(dy)
        dlast = self._split_state("dstate", dstate, batch)
        if dy is not None and self.batch_first:
            dy = dy.swapaxes(0, 1)
        hidden = self.hidden_size
        dfirst: list[tuple[Array, ...]] = [()] * len(saved)
        for layer in reversed(range(self.num_layers)):
            dx = None
            for direction in range(self._directions):
                index = layer * self._directions + direction
                part = dy
                if dy is not None and self._directions == 2:
                    part = dy[..., direction * hidden : (direction + 1) * hidden]
                dends = [None if array is None else array[index] for array in dlast]
                dinput, dfirst[index], gradients = self._run_backward(part, dends, saved[index])
                for parameter, gradient in zip(self._runs[index], gradients, strict=True):
                    parameter.accumulate(gradient)
                if dx is None:
                    dx = dinput
                else:
                    dx += dinput
            dy = dx
        self.dstate0 = self._join_state(dfirst)
        assert dy is not None
        return dy.swapaxes(0, 1) if self.batch_first else dy

    def _split_state(self, name: str, state: Any, batch: int) -> tuple[Array | None, ...]:
        """Return the arrays of a state in torch's form, each checked, or None for zeros."""
        if state is None:
            return (None,) * self._states
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        if self._states == 1:
            parts, names = (state,), [name]
        elif isinstance(state, tuple | list) and len(state) == 2:
            parts, names = tuple(state), [f"{name}[0] (h)", f"{name}[1] (c)"]
        else:
            raise TypeError(
                f"{name}: expected a pair (h, c) of arrays of shape {shape} or None, got {_describe(state)}"
            )
        for part, what in zip(parts, names, strict=True):
            if part is not None and getattr(part, "shape", None) != shape:
                _wrong_shape(what, f"{shape} (layers x directions, batch, hidden)", part)
            if part is not None:
                self._check_kind(what, part, self._runs[0][0])
        return parts

    def _join_state(self, runs: list[tuple[Array, ...]]) -> Any:
        """Return the states of all runs in torch's form."""
        parts = tuple(
            runs[0][part][None] if len(runs) == 1 else array_module(runs[0][part]).stack([run[part] for run in runs])
            for part in range(self._states)
        )
        return parts[0] if self._states == 1 else parts

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        raise NotImplementedError

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        raise NotImplementedError


class LSTM(_Recurrent):
    """A long short-term memory of `num_layers` layers, in one or both directions; gates in the order i, f, g, o.

    forward(x, state=None, lengths=None) -> y, (h, c);  backward(dy, dstate=None) -> dx, keeps dstate0 = (dh0, dc0).
    Hochreiter & Schmidhuber, Long Short-Term Memory, 1997; Gers, Schmidhuber & Cummins, Learning to Forget, 2000.
    """

    _gates, _states = 4, 2

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        return lstm(x, *starts, *parameters, lengths=lengths, reverse=reverse)

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, dc0, *gradients = lstm_backward(dy, dends[0], dends[1], saved)
        return dx, (dh0, dc0), gradients


class GRU(_Recurrent):
    """A gated recurrent unit of `num_layers` layers, in one or both directions; gates in the order r, z, n.

    forward(x, state=None, lengths=None) -> y, h;  backward(dy, dstate=None) -> dx, keeps dstate0 = dh0.
    `reset_after=True` is the form of torch and cuDNN, False that of the paper (the reset gate before the product).
    Cho et al., Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014.
    """

    _gates, _states = 3, 1

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(*args, **kwargs)

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        y, h, saved = gru(x, *starts, *parameters, lengths=lengths, reverse=reverse, reset_after=self.reset_after)
        return y, (h,), saved

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, *gradients = gru_backward(dy, dends[0], saved)
        return dx, (dh0,), gradients


class Sequential(Layer):
    """Layers one behind the other, named "0", "1", ... as in torch.

    Of a layer that returns (y, state), as LSTM and GRU do, y goes on to the next; the state starts from zeros in each
    forward and is dropped. Carry it yourself where you need it: call the layers one by one, or write a Layer.
    """

    def __init__(self, *layers: Layer) -> None:
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{position}] must be a fastgrad layer, got {_describe(layer)}")
            if any(layer is other for other in layers[:position]):
                raise ValueError(
                    f"layers[{position}] is in this Sequential already, and a layer keeps only its last forward; "
                    "make a second layer"
                )
        self.layers = tuple(layers)
        for name, layer in self._members():
            layer._prefix_names(name)

    def _members(self) -> Iterator[tuple[str, Any]]:
        for position, layer in enumerate(self.layers):
            yield str(position), layer

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def forward(self, x: Any) -> Any:
        """Return the last layer's output for x."""
        for layer in self.layers:
            x = layer.forward(x)
            if isinstance(x, tuple):
                x = x[0]
        return x

    def backward(self, dy: Any) -> Any:
        """Return the gradient of x, or None when the first layer is an Embedding."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


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
            raise TypeError(f"layer: expected a fastgrad layer, got {_describe(layer)}")
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
            _wrong_shape("layer", f"{x.shape} of its output, that of x", part)
        y = x + part
        return self.norm.forward(y) if self.norm is not None and self.place == "post" else y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of the layer and of the norm."""
        if self.norm is not None and self.place == "post":
            dy = self.norm.backward(dy)
        dx = self.layer.backward(dy)
        if self.norm is not None and self.place == "pre":
            dx = self.norm.backward(dx)
        return dy + dx


def _moved(value: Any, move: Callable[[Array], Array]) -> Any:
    """Return an array, or a tuple with arrays in it, on another device; anything else as it is."""
    if is_array(value):
        return move(value)
    if type(value) is tuple and any(map(is_array, value)):
        return tuple(_moved(part, move) for part in value)
    return value


def _converted(value: Any, like: Array) -> Array:
    """Return an array on any device, or what NumPy makes one of, as an array of the dtype and device of `like`."""
    if device_module(value) is not None:
        if type(value) is type(like):
            return value.astype(like.dtype, copy=False)
        value = to_host(value)
    host = np.asarray(np.asarray(value), like.dtype)
    return host if type(like) is np.ndarray else array_module(like).asarray(host)


def _other_device(array: Array) -> tuple[str, str, str]:
    """Return kind of array, name of the device, and cupy's function that takes an array there from where it is."""
    return ("CuPy", "gpu", "cupy.asarray") if device_module(array) is None else ("NumPy", "cpu", "cupy.asnumpy")


def _uniform(shape: tuple[int, ...], bound: float, rng: np.random.Generator, dtype: Any) -> Array:
    return init.uniform(shape, bound, rng, dtype)


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {shape}"


def _wrong_shape(name: str, expected: str, value: Any) -> NoReturn:
    raise ValueError(f"{name}: expected shape {expected}, got {_describe(value)}")
