"""Multi-head attention as a layer.

Dimension letters: T queries, S keys, B batch, E features, H heads, D = E / H.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, array_module, empty, kept_for_graphs
from fastgrad._checks import flag, number
from fastgrad.layers.base import Layer, Parameter, Rng, positive, wrong_shape
from fastgrad.layers.dense import Linear
from fastgrad.linear import linear, linear_backward
from fastgrad.scaled_dot_product import attention, attention_backward


class MultiHeadAttention(Layer):
    """Attention of several heads to the sequence itself, or to another one, with torch's parameters.

        q, k, v = x W_q^T + b_q, ...,    y = (heads of softmax(q k^T / sqrt(D)) v side by side) W_out^T + b_out

    in_proj_weight (3E, E), from Xavier's uniform distribution, and in_proj_bias (3E,), zeros, in the order q, k, v;
    out_proj, a Linear (E, E) whose bias begins with zeros. The heads are read and written where the projections have
    them: nothing is transposed, copied or joined.

    Attributes:
        seed, offset: of the random numbers of dropout, as in `Dropout`.

    Source: Vaswani et al., Attention Is All You Need, 2017.
    """

    _counters = ("offset",)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        batch_first: bool = False,
        *,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        """Make a layer.

        Args:
            embed_dim: E.
            num_heads: H, a divisor of E.
            bias: whether the projections have one.
            causal: a step sees itself and those before only.
            dropout: probability that a weight of attention is set to 0 in training.
            batch_first: arrays are (B, T, E); else (T, B, E), as with LSTM and GRU.
            rng, dtype, device: as of every layer.
        """
        positive(embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim = {embed_dim}, got {num_heads}")
        rng = np.random.default_rng(rng)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.causal, self.batch_first = flag("causal", causal), flag("batch_first", batch_first)
        self.dropout = number("dropout", dropout, 0.0, 1.0)
        self.in_proj_weight = Parameter(init.xavier_uniform((3 * embed_dim, embed_dim), rng=rng, dtype=dtype))
        self.in_proj_bias = Parameter(np.zeros(3 * embed_dim, dtype)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype)
        if self.out_proj.bias is not None:
            self.out_proj.bias.data.fill(0)
        self.seed, self.offset = int(rng.integers(1 << 63)), 0
        self.to(device)

    def forward(self, x: Array, context: Array | None = None, lengths: Any = None) -> Array:
        """Return y of x's shape.

        x (T, B, E), or (B, T, E) with batch_first. context (S, B, E), likewise, is what keys and values are taken
        from; None is x itself. lengths (B,) are integers in 0..S: how many steps of context each sequence has, those
        behind are not read. x and context must not be overwritten before backward.
        """
        for name, array in (("x", x), ("context", context)):
            if array is not None:
                self._check_kind(name, array, self.in_proj_weight)
                if array.ndim != 3 or array.shape[-1] != self.embed_dim:
                    axes = "batch, time" if self.batch_first else "time, batch"
                    wrong_shape(name, f"({axes}, {self.embed_dim})", array)
        weight, bias = self.in_proj_weight.data, None if self.in_proj_bias is None else self.in_proj_bias.data
        if context is None:
            q, k, v = self._heads(linear(x, weight, bias), 3)
        else:
            E = self.embed_dim
            first, rest = (None, None) if bias is None else (bias[:E], bias[E:])
            (q,) = self._heads(linear(x, weight[:E], first), 1)
            k, v = self._heads(linear(context, weight[E:], rest), 2)
        options: dict[str, Any] = {}
        if self.training and self.dropout:
            options = {"dropout": self.dropout, "seed": self.seed, "offset": self.offset}
            self.offset += 1
        joined = empty(x.shape, x.dtype, x)
        _, saved = attention(
            q, k, v, causal=self.causal, lengths=lengths, out=self._heads(joined, 1)[0], **options
        )  # fmt: skip
        y = self.out_proj.forward(joined)
        self._keep(y, (x, context, saved))
        return y

    def backward(self, dy: Array) -> Any:
        """Return dx of x's shape, or (dx, dcontext) where forward had a context; adds to all gradients."""
        x, context, saved = self._take(dy)
        (djoined,) = self._heads(self.out_proj.backward(dy), 1)
        E, weight, with_bias = self.embed_dim, self.in_proj_weight.data, self.in_proj_bias is not None
        if context is None:
            dqkv = empty((*x.shape[:-1], 3 * E), x.dtype, x)
            attention_backward(djoined, saved, out=self._heads(dqkv, 3))
            dx, dweight, dbias = linear_backward(dqkv, x, weight, with_bias=with_bias)
            self._accumulate(dweight, dbias)
            return dx
        dq, dkv = empty(x.shape, x.dtype, x), empty((*context.shape[:-1], 2 * E), x.dtype, x)
        attention_backward(djoined, saved, out=(*self._heads(dq, 1), *self._heads(dkv, 2)))
        dx, *first = linear_backward(dq, x, weight[:E], with_bias=with_bias)
        dcontext, *rest = linear_backward(dkv, context, weight[E:], with_bias=with_bias)
        join = array_module(weight).concatenate
        self._accumulate(
            *(None if a is None else kept_for_graphs(join([a, b])) for a, b in zip(first, rest, strict=True))
        )
        return dx, dcontext

    def _heads(self, array: Array, count: int) -> tuple[Array, ...]:
        """Return views (B, H, T, D) of the `count` parts, side by side, of an array of projections."""
        E, H = self.embed_dim, self.num_heads
        if not self.batch_first:
            array = array.swapaxes(0, 1)
        B, T = array.shape[:2]
        parts = (array[..., first * E : (first + 1) * E] for first in range(count))
        return tuple(_split(part, B, T, H, E // H) for part in parts)

    def _accumulate(self, dweight: Array | None, dbias: Array | None) -> None:
        for parameter, gradient in ((self.in_proj_weight, dweight), (self.in_proj_bias, dbias)):
            if parameter is not None and gradient is not None:
                parameter.accumulate(gradient)


def _split(array: Array, B: int, T: int, H: int, D: int) -> Array:
    # Splitting the last axis, of adjacent elements, never copies.
    return array.reshape(B, T, H, D).swapaxes(1, 2)
