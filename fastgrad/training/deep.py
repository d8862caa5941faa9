"""A deep network of equal layers, every remedy a switch: what `fastgrad train digits` and the laboratory train.

    z_0 = W_in x + b_in                        B x inputs -> B x width
    z_l = [z_(l-1) +] W_l act([norm](z_(l-1))) + b_l    l = 1 .. depth, what is in brackets where it is switched on
    logits = W_out act([norm](z_depth)) + b_out

The norm comes before the activation, and the skip connection goes past both: He, Zhang, Ren & Sun, Identity Mappings in
Deep Residual Networks, 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad import init as initialisers
from fastgrad._arrays import Array
from fastgrad.activations import KINDS
from fastgrad.clipping import global_norm
from fastgrad.layers import Activation, BatchNorm, Layer, LayerNorm, Linear, Residual, Sequential

__all__ = ["ACTIVATIONS", "INITS", "NORMS", "DeepNetwork", "Stack"]

ACTIVATIONS = KINDS

# "old" is what Linear itself draws: U(-a, a), a = 1 / sqrt(fan_in).
INITS = {
    "old": None,
    "xavier": initialisers.xavier_uniform,
    "he": initialisers.he_normal,
    "lecun": initialisers.lecun_normal,
    "orthogonal": initialisers.orthogonal,
}

NORMS = {"none": None, "batch": BatchNorm, "layer": LayerNorm}


class Stack(Sequential):
    """A Sequential that measures: `before`, the `blocks` whose gradients are of interest, and `after`.

    After `backward`, `arriving` (blocks,) holds the l2 norm of the gradient of the loss by the output of each block,
    which is what reaches its weights, from the first block to the last.
    """

    def __init__(self, before: Sequence[Layer], blocks: Sequence[Layer], after: Sequence[Layer]) -> None:
        self.arriving = np.zeros(len(blocks))
        self._first = len(before)
        super().__init__(*before, *blocks, *after)

    def backward(self, dy: Array) -> Any:
        """Return the gradient of the input, or None when the first layer is an Embedding, and measure `arriving`."""
        for position in reversed(range(len(self.layers))):
            block = position - self._first
            if 0 <= block < len(self.arriving):
                self.arriving[block] = float(global_norm([dy]))
            dy = self.layers[position].backward(dy)
        return dy


class DeepNetwork(Stack):
    """Linear(inputs, width), `depth` layers of `width` units, Linear(width, classes).

    activation: a name of `fastgrad.activation`; init: one of INITS, with biases of zero except for "old"; norm: one of
    NORMS; residual: a skip connection around each of the `depth` layers, which are the blocks of the stack; rng: of the
    weights, which are the same for all kinds of norm and activation.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        depth: int,
        classes: int,
        *,
        activation: str,
        init: str,
        norm: str = "none",
        residual: bool = False,
        rng: np.random.Generator,
    ) -> None:
        def linear(size: int, units: int) -> Linear:
            layer = Linear(size, units, rng=rng)
            draw: Any = INITS[init]
            if draw is not None and layer.bias is not None:
                layer.weight.data[...] = draw((units, size), rng=rng)
                layer.bias.data[...] = 0.0
            return layer

        def bent() -> list[Layer]:
            kind: Any = NORMS[norm]
            return [*([] if kind is None else [kind(width)]), Activation(activation)]

        def hidden() -> Layer:
            layer = Sequential(*bent(), linear(width, width))
            return Residual(layer) if residual else layer

        entry, blocks = linear(inputs, width), [hidden() for _ in range(depth)]
        super().__init__([entry], blocks, [*bent(), linear(width, classes)])
