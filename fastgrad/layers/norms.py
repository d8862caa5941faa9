"""Layer and batch normalisation as layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, is_array
from fastgrad._checks import number
from fastgrad.layers.base import Layer, Parameter, positive, wrong_shape
from fastgrad.normalization import batch_norm, batch_norm_backward, layer_norm, layer_norm_backward


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
            positive(normalized_shape=size)
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
            wrong_shape("x", f"(..., {', '.join(map(str, self.normalized_shape))})", x)
        rows = x.reshape(*x.shape[:-axes], math.prod(self.normalized_shape))
        weight, bias = (None if p is None else p.data.reshape(-1) for p in (self.weight, self.bias))
        y, saved = layer_norm(rows, weight, bias, self.eps)
        y = y.reshape(x.shape)
        self._keep(y, saved)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of weight and bias."""
        saved = self._take(dy)
        rows = dy.reshape(saved.shape) if is_array(dy) else dy
        dx, dweight, dbias = layer_norm_backward(rows, saved)
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
        positive(num_features=num_features)
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
            wrong_shape("x", f"(batch, {self.num_features}) or (batch, {self.num_features}, ...)", x)
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
