"""A block of a transformer as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._arrays import Array, kept_for_graphs
from fastgrad.activations import KINDS, activation, activation_backward
from fastgrad.glu import geglu, geglu_backward, swiglu, swiglu_backward
from fastgrad.layers.attention import MultiHeadAttention
from fastgrad.layers.base import Layer, Rng, positive
from fastgrad.layers.dense import Linear
from fastgrad.layers.norms import LayerNorm
from fastgrad.layers.regularization import Dropout

GATED = {"swiglu": (swiglu, swiglu_backward), "geglu": (geglu, geglu_backward)}


class TransformerBlock(Layer):
    """Self-attention and a feed-forward network, each with its residual connection and layer norm.

    ======== ===================================================================
    norm     y
    ======== ===================================================================
    "pre"    h + feed(norm2(h)),    h = x + self_attn(norm1(x))
    "post"   norm2(h + feed(h)),    h = norm1(x + self_attn(x))
    ======== ===================================================================

    feed(x) = linear2(f(linear1(x))) with an activation f, or linear2(silu(linear1(x)) linear3(x)) with "swiglu" and the
    same of gelu with "geglu". Parameters are called and begin as those of torch.nn.TransformerEncoderLayer, but for
    linear3. A stack of pre-norm blocks ends in a LayerNorm of its own.

    Sources: Vaswani et al., Attention Is All You Need, 2017; Xiong et al., On Layer Normalization in the Transformer
    Architecture, 2020; Shazeer, GLU Variants Improve Transformer, 2020.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int | None = None,
        activation: str = "gelu",
        causal: bool = False,
        norm: str = "pre",
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        *,
        eps: float = 1e-5,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        """Make a block.

        Args:
            d_model: features of x.
            num_heads: heads of attention, a divisor of d_model.
            d_ff: features inside the feed-forward network; None is 4 d_model.
            activation: "swiglu", "geglu" or a kind of `fastgrad.activation`.
            causal: a step sees itself and those before only.
            norm: "pre" or "post".
            dropout: probability of dropout on the weights of attention, inside the feed-forward network, and on either
                branch before it is added.
            bias: whether the linear maps have one.
            batch_first: arrays are (B, T, d_model); else (T, B, d_model).
            eps: of the norms.
            rng, dtype, device: as of every layer.
        """
        if norm not in ("pre", "post"):
            raise ValueError(f"norm: expected 'pre' or 'post', got {norm!r}")
        if activation not in GATED and activation not in KINDS:
            raise ValueError(f"activation: expected one of {', '.join([*GATED, *KINDS])}, got {activation!r}")
        d_ff = 4 * d_model if d_ff is None else d_ff
        positive(d_model=d_model, d_ff=d_ff)
        rng = np.random.default_rng(rng)
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.place, self.activation = norm, activation
        self.self_attn = MultiHeadAttention(d_model, num_heads, bias, causal, dropout, batch_first, **options)
        self.linear1 = Linear(d_model, d_ff, bias, **options)
        self.linear2 = Linear(d_ff, d_model, bias, **options)
        self.linear3 = Linear(d_model, d_ff, bias, **options) if activation in GATED else None
        self.norm1, self.norm2 = (LayerNorm(d_model, eps, dtype=dtype) for _ in range(2))
        self.dropout, self.dropout1, self.dropout2 = (Dropout(dropout, rng=rng) for _ in range(3))
        self.to(device)

    def forward(self, x: Array, lengths: Any = None) -> Array:
        """Return y of x's shape; lengths (B,) as in MultiHeadAttention. x must not be overwritten before backward."""
        if self.place == "pre":
            h = kept_for_graphs(self._attend(self.norm1.forward(x), lengths) + x)
            y = kept_for_graphs(self._feed(self.norm2.forward(h)) + h)
        else:
            h = self.norm1.forward(kept_for_graphs(self._attend(x, lengths) + x))
            y = self.norm2.forward(kept_for_graphs(self._feed(h) + h))
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx of dy's shape; adds to the gradients of all parameters."""
        if self.place == "pre":
            dh = kept_for_graphs(self.norm2.backward(self._feed_backward(dy)) + dy)
            return kept_for_graphs(self.norm1.backward(self._attend_backward(dh)) + dh)
        dsum = self.norm2.backward(dy)
        dsum = self.norm1.backward(kept_for_graphs(self._feed_backward(dsum) + dsum))
        return kept_for_graphs(self._attend_backward(dsum) + dsum)

    def _attend(self, x: Array, lengths: Any) -> Array:
        return self.dropout1.forward(self.self_attn.forward(x, lengths=lengths))

    def _attend_backward(self, dy: Array) -> Array:
        return self.self_attn.backward(self.dropout1.backward(dy))

    def _feed(self, x: Array) -> Array:
        inner = self.linear1.forward(x)
        up = None
        if self.linear3 is None:
            hidden = activation(inner, self.activation)
        else:
            up = self.linear3.forward(x)
            hidden = GATED[self.activation][0](inner, up)
        y = self.dropout2.forward(self.linear2.forward(self.dropout.forward(hidden)))
        self._keep(y, (inner, up))
        return y

    def _feed_backward(self, dy: Array) -> Array:
        inner, up = self._take(dy)
        dhidden = self.dropout.backward(self.linear2.backward(self.dropout2.backward(dy)))
        if self.linear3 is None:
            return self.linear1.backward(activation_backward(dhidden, inner, self.activation, out=inner))
        dgate, dup = GATED[self.activation][1](dhidden, inner, up, out=(inner, up))
        return kept_for_graphs(self.linear1.backward(dgate) + self.linear3.backward(dup))
