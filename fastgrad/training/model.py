"""The character model: Embedding -> LSTM or GRU -> Linear, trained to predict the next character."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fastgrad import softmax_cross_entropy
from fastgrad._arrays import Array
from fastgrad.layers import GRU, LSTM, Embedding, Layer, Linear
from fastgrad.training.errors import UserError

__all__ = ["CharacterModel", "Config"]

# No size of a sensible model is larger, and arithmetic on sizes stays far from overflow.
LARGEST = 1_000_000


@dataclass(frozen=True)
class Config:
    """What decides a run to the last bit, together with the text: sizes, optimizer values, seed and dtype."""

    cell: str = "lstm"
    embedding: int = 64
    hidden: int = 256
    layers: int = 1
    seq_length: int = 64
    batch: int = 32
    lr: float = 3e-3
    clip: float = 1.0
    seed: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "layers", "seq_length", "batch"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} must be a whole number from 1 to {LARGEST:,}, got {value!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise UserError(f"--seed must be a whole number of at least 0, got {self.seed!r}")
        for name, low in (("lr", "above 0"), ("clip", "of at least 0 (0 turns clipping off)")):
            value = getattr(self, name)
            number = isinstance(value, int | float) and math.isfinite(value)
            if not number or value < 0 or (name == "lr" and value == 0):
                raise UserError(f"--{name} must be a finite number {low}, got {value!r}")
        for name, allowed in (("cell", ("lstm", "gru")), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Return the Config of `as_dict`. Raises KeyError when a value is missing, UserError when one is wrong."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class CharacterModel(Layer):
    """Embedding(V, E) -> LSTM or GRU(E, H, layers) -> Linear(H, V), parameters `embedding.*`, `rnn.*`, `head.*`."""

    def __init__(self, config: Config, vocabulary_size: int, rng: np.random.Generator) -> None:
        dtype = np.dtype(config.dtype)
        cell = {"lstm": LSTM, "gru": GRU}[config.cell]
        self.embedding = Embedding(vocabulary_size, config.embedding, rng=rng, dtype=dtype)
        self.rnn = cell(config.embedding, config.hidden, config.layers, rng=rng, dtype=dtype)
        self.head = Linear(config.hidden, vocabulary_size, rng=rng, dtype=dtype)

    def forward(self, x: Array, state: Any = None) -> tuple[Array, Any]:
        """Return logits (T, B, V) for codes x (T, B), and the state behind the last step."""
        y, state = self.rnn.forward(self.embedding.forward(x), state)
        return self.head.forward(y), state

    def backward(self, dy: Array) -> None:
        """Add to all gradients, for the gradient dy (T, B, V) of the logits; none flows out of the first state."""
        self.embedding.backward(self.rnn.backward(self.head.backward(dy)))

    def loss(self, x: Array, targets: Array, state: Any) -> tuple[Array, Array, Any]:
        """Return the mean cross-entropy in nats (0-d), its gradient by the logits (T, B, V), and the new state."""
        logits, state = self.forward(x, state)
        flat = logits.reshape(-1, logits.shape[-1])
        # The gradient takes the place of the logits, which nobody needs again: 0.8 MB less to write at default size.
        loss, _ = softmax_cross_entropy(flat, targets.reshape(-1), out=flat)
        return loss, logits, state
