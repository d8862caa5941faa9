"""Affine map, table look-up and activations as layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastgrad._arrays import Array
from fastgrad._checks import number
from fastgrad.activations import activation, activation_backward, prelu, prelu_backward
from fastgrad.init import float_dtype
from fastgrad.layers.base import Layer, Parameter, Rng, positive, uniform, wrong_shape
from fastgrad.linear import embedding, embedding_backward, linear, linear_backward
from fastgrad.regularization import activation_dropout, activation_dropout_backward


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
        positive(in_features=in_features, out_features=out_features)
        rng = np.random.default_rng(rng)
        self.in_features, self.out_features = in_features, out_features
        bound = 1.0 / math.sqrt(in_features)
        self.weight = Parameter(uniform((out_features, in_features), bound, rng, dtype))
        self.bias = Parameter(uniform((out_features,), bound, rng, dtype)) if bias else None
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return y (..., out_features) for x (..., in_features), which must not be overwritten before backward."""
        self._check_kind("x", x, self.weight)
        if x.shape[-1:] != (self.in_features,):
            wrong_shape("x", f"(..., {self.in_features})", x)
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
        positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        dtype = float_dtype(dtype)
        values = np.random.default_rng(rng).standard_normal((num_embeddings, embedding_dim), dtype=dtype.type)
        self.weight = Parameter(values)
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return weight[x] of shape (*x.shape, embedding_dim) for integers x in [0, num_embeddings)."""
        self._check_kind("x", x, self.weight, integers=True)
        y = embedding(self.weight.data, x)
        self._keep(y, x)
        return y

    def backward(self, dy: Array) -> None:
        """Add to the gradient of weight the rows of dy (*x.shape, embedding_dim). Integers have no gradient: None."""
        x = self._take(dy)
        self.weight.accumulate(embedding_backward(dy, x, self.num_embeddings))


class Activation(Layer):
    """An activation by name, such as Activation("gelu") or Activation("leaky_relu", negative_slope=0.2).

    Names and parameters are those of `fastgrad.activation`; any clipped ReLU is Activation("hardtanh", min_val=0,
    max_val=bound). With `dropout` entries of what comes out are dropped in training, in the same pass, as a `Dropout`
    of that probability behind it would do; it is that layer's `seed` and `offset` that the attributes hold.
    """

    _counters = ("offset",)

    def __init__(self, kind: str, *, dropout: float = 0.0, rng: Rng = None, **params: Any) -> None:
        self.kind = kind
        self.params: dict[str, Any] = params
        activation(np.zeros(0), kind, **params)  # a wrong name or parameter fails here, not in training
        self.dropout = number("dropout", dropout, 0.0, 1.0)
        self.seed = int(np.random.default_rng(rng).integers(1 << 63)) if self.dropout > 0.0 else 0
        self.offset = 0

    def forward(self, x: Array) -> Array:
        """Return y of x's shape; x must not be overwritten before backward."""
        if not self.training or self.dropout == 0.0:
            y = activation(x, self.kind, **self.params)
            self._keep(y, (x, None))
            return y
        y = activation_dropout(x, self.kind, self.dropout, self.seed, self.offset, **self.params)
        self._keep(y, (x, self.offset))
        self.offset += 1
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape."""
        x, offset = self._take(dy)
        if offset is None:
            return activation_backward(dy, x, self.kind, **self.params)
        return activation_dropout_backward(dy, x, self.kind, self.dropout, self.seed, offset, **self.params)


class PReLU(Layer):
    """y = x where x > 0, else weight x, with a learned weight: one, or one per channel (axis 1), from `init`.

    He, Zhang, Ren & Sun, Delving Deep into Rectifiers, 2015, who leave its weight out of weight decay.
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = np.float32, device: str = "cpu"
    ) -> None:
        positive(num_parameters=num_parameters)
        self.num_parameters = num_parameters
        self.weight = Parameter(np.full(num_parameters, number("init", init), float_dtype(dtype)))
        self.to(device)

    def forward(self, x: Array) -> Array:
        """Return y of x's shape, (batch, num_parameters, ...) or any for one weight; keep x until backward."""
        self._check_kind("x", x, self.weight)
        y = prelu(x, self.weight.data)
        self._keep(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradient of weight."""
        dx, dweight = prelu_backward(dy, self._take(dy), self.weight.data)
        self.weight.accumulate(dweight)
        return dx
