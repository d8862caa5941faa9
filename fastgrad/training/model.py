"""The character models, trained to predict the next character: an LSTM or GRU, and a transformer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fastgrad import softmax_cross_entropy
from fastgrad._arrays import Array, array_module
from fastgrad.layers import GRU, LSTM, Embedding, Layer, LayerNorm, Linear, Sequential, TransformerBlock
from fastgrad.training.errors import UserError

__all__ = ["MODELS", "CharacterModel", "CharacterTransformer", "Config", "character_model"]

MODELS = ("lstm", "gru", "transformer")

# What a transformer has in the place of the defaults of Config: it learns most in a minute on two cores so.
TRANSFORMER_DEFAULTS: dict[str, Any] = {"hidden": 128, "layers": 4, "seq_length": 64, "lr": 2e-3}

# No size of a sensible model is larger, and arithmetic on sizes stays far from overflow.
LARGEST = 1_000_000


@dataclass(frozen=True)
class Config:
    """What decides a run to the last bit, together with the text: sizes, optimizer values, seed and dtype."""

    model: str = "lstm"
    embedding: int = 64
    hidden: int = 256
    layers: int = 1
    heads: int = 4
    seq_length: int = 64
    batch: int = 32
    lr: float = 3e-3
    clip: float = 1.0
    seed: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "layers", "heads", "seq_length", "batch"):
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
        for name, allowed in (("model", MODELS), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.model == "transformer" and self.hidden % self.heads:
            raise UserError(
                f"--hidden must divide into {self.heads} heads, got {self.hidden}; change --heads or --hidden"
            )

    @classmethod
    def of(cls, **given: Any) -> Config:
        """Return the Config of these values and, for the others, the defaults of the model among them.

        Raises UserError when a value is wrong, or given to a model that has no use for it.
        """
        model = given.get("model", cls.model)
        unused = "embedding" if model == "transformer" else "heads"
        if unused in given:
            raise UserError(f"--{unused} means nothing to --model {model}; leave it out")
        return cls(**({**TRANSFORMER_DEFAULTS, **given} if model == "transformer" else given))

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Return the Config of `as_dict`. Raises KeyError when a value is missing, UserError when one is wrong."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class _Character(Layer):
    """What character models share.

    carries : whether the state behind a window of training is where the next one starts
    window : characters of a window of validation; the state goes from one to the next
    """

    carries: bool
    window: int

    def loss(self, x: Array, targets: Array, state: Any) -> tuple[Array, Array, Any]:
        """Return the mean cross-entropy in nats (0-d), its gradient by the logits (T, B, V), and the new state."""
        logits, state = self.forward(x, state)
        flat = logits.reshape(-1, logits.shape[-1])
        # The gradient takes the place of the logits, which nobody needs again: 0.8 MB less to write at default size.
        loss, _ = softmax_cross_entropy(flat, targets.reshape(-1), out=flat)
        return loss, logits, state

    def forward(self, x: Array, state: Any = None) -> tuple[Array, Any]:
        raise NotImplementedError

    def read(self, x: Array, state: Any) -> Any:
        """Return the state behind codes x (T, B), of which nothing is to be predicted."""
        raise NotImplementedError


class CharacterModel(_Character):
    """Embedding(V, E) -> LSTM or GRU(E, H, layers) -> Linear(H, V), parameters `embedding.*`, `rnn.*`, `head.*`."""

    carries = True

    def __init__(self, config: Config, vocabulary_size: int, rng: np.random.Generator) -> None:
        dtype = np.dtype(config.dtype)
        cells: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
        self.embedding = Embedding(vocabulary_size, config.embedding, rng=rng, dtype=dtype)
        self.rnn = cells[config.model](config.embedding, config.hidden, config.layers, rng=rng, dtype=dtype)
        self.head = Linear(config.hidden, vocabulary_size, rng=rng, dtype=dtype)
        self.window = config.seq_length

    def forward(self, x: Array, state: Any = None) -> tuple[Array, Any]:
        """Return logits (T, B, V) for codes x (T, B), and the state behind the last step."""
        y, state = self.rnn.forward(self.embedding.forward(x), state)
        return self.head.forward(y), state

    def backward(self, dy: Array) -> None:
        """Add to all gradients, for the gradient dy (T, B, V) of the logits; none flows out of the first state."""
        self.embedding.backward(self.rnn.backward(self.head.backward(dy)))

    def read(self, x: Array, state: Any) -> Any:
        """Return the state behind codes x (T, B), of which nothing is to be predicted."""
        return self.rnn.forward(self.embedding.forward(x), state)[1]


class CharacterTransformer(_Character):
    """Embeddings of characters and of their places -> causal pre-norm blocks -> LayerNorm -> Linear.

    Parameters `embedding.*`, `position.*`, `blocks.*`, `norm.*`, `head.*`. The state is the codes read so far: of them
    forward takes what fits in front of its own into the seq_length places. Training reads whole windows, each from its
    beginning; validation predicts the second half of one, which has seen the first.
    """

    carries = False

    def __init__(self, config: Config, vocabulary_size: int, rng: np.random.Generator) -> None:
        options: dict[str, Any] = {"rng": rng, "dtype": np.dtype(config.dtype)}
        width = config.hidden
        self.places = config.seq_length
        self.window = max(1, config.seq_length // 2)
        self.embedding = Embedding(vocabulary_size, width, **options)
        self.position = Embedding(config.seq_length, width, **options)
        blocks = (TransformerBlock(width, config.heads, causal=True, **options) for _ in range(config.layers))
        self.blocks = Sequential(*blocks)
        self.norm = LayerNorm(width, dtype=np.dtype(config.dtype))
        self.head = Linear(width, vocabulary_size, **options)
        self._numbers = np.arange(config.seq_length).reshape(-1, 1)

    def forward(self, x: Array, state: Any = None) -> tuple[Array, Any]:
        """Return logits (T, B, V) for codes x (T, B), and the codes read so far; T is at most seq_length."""
        new = len(x)
        codes = self.read(x, state)
        codes = codes[-self.places :]
        y = self.embedding.forward(codes)
        y += self.position.forward(codes * 0 + self._numbers[: len(codes)])
        y = self.norm.forward(self.blocks.forward(y))
        return self.head.forward(y[-new:]), codes

    def backward(self, dy: Array) -> None:
        """Add to all gradients, for the gradient dy (T, B, V) of the logits of codes without a state before them."""
        dx = self.blocks.backward(self.norm.backward(self.head.backward(dy)))
        self.position.backward(dx)
        self.embedding.backward(dx)

    def read(self, x: Array, state: Any) -> Any:
        """Return the codes read so far, those of x (T, B) at the end."""
        return x if state is None else array_module(x).concatenate([state, x])


def character_model(config: Config, vocabulary_size: int, rng: np.random.Generator) -> _Character:
    """Return the model of a Config, its parameters drawn from `rng`."""
    kind = CharacterTransformer if config.model == "transformer" else CharacterModel
    return kind(config, vocabulary_size, rng)
