"""Text drawn from a trained character model."""

from __future__ import annotations

import numpy as np

import fastgrad
from fastgrad._arrays import to_host
from fastgrad.training.trainer import Trainer

__all__ = ["sample"]


def sample(trainer: Trainer, length: int, temperature: float, seed: int = 0) -> str:
    """Return `length` characters, each drawn from softmax(logits / temperature) and fed back; 0 takes the likeliest.

    The model starts from a zero state and a line break (where the text has none, its first character in sorted order).
    The trainer's state and random generator are not touched.
    """
    rng = np.random.default_rng([seed, 2])
    vocabulary = trainer.corpus.vocabulary
    code = max(vocabulary.find("\n"), 0)
    state, codes = None, []
    with fastgrad.backend(trainer.kernels):
        for _ in range(length):
            logits, state = trainer.model.forward(trainer.place(np.array([[code]], dtype=np.int64)), state)
            scores = to_host(logits).reshape(-1).astype(np.float64)
            if temperature > 0:
                # Gumbel's trick: the largest of scores / temperature + Gumbel noise is a draw from the softmax.
                scores = scores / temperature + rng.gumbel(size=scores.shape)
            code = int(np.argmax(scores))
            codes.append(code)
    return "".join(vocabulary[code] for code in codes)
