"""What the networks of the laboratory learn: three small problems, drawn anew for every step.

Dimension letters: B batch, T time.
"""

from __future__ import annotations

import numpy as np

from fastgrad._arrays import Array

__all__ = ["ARMS", "SYMBOLS", "adding", "copying", "majority", "spirals"]

ARMS, SYMBOLS = 3, 8


def spirals(batch: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return points x (B, 2) on three arms of a spiral that turns once, and the number of the arm (B,)."""
    arm = rng.integers(0, ARMS, batch)
    radius = np.sqrt(rng.random(batch))
    angle = 2 * np.pi * (arm / ARMS + radius)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + 0.03 * rng.standard_normal((batch, 2))
    return (1.7 * x).astype(np.float32), arm


def adding(steps: int, batch: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return x (T, B, 2), random numbers of [0, 1) and two marks, and the sum (B, 1) of the two marked numbers.

    One mark lies in the first half and one in the second. Hochreiter & Schmidhuber, Long Short-Term Memory, 1997.
    """
    x = np.zeros((steps, batch, 2), np.float32)
    x[:, :, 0] = rng.random((steps, batch), dtype=np.float32)
    sequences = np.arange(batch)
    early, late = rng.integers(0, steps // 2, batch), rng.integers(steps // 2, steps, batch)
    x[early, sequences, 1] = x[late, sequences, 1] = 1
    return x, (x[early, sequences, 0] + x[late, sequences, 0])[:, None]


def copying(steps: int, batch: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return x (T, B, 10), a symbol of eight in the first step, blanks, a call in the last; and the symbol (B,).

    Hochreiter & Schmidhuber, 1997, with one symbol to remember.
    """
    symbol = rng.integers(0, SYMBOLS, batch)
    codes = np.full((steps, batch), SYMBOLS)
    codes[0], codes[-1] = symbol, SYMBOLS + 1
    return np.eye(SYMBOLS + 2, dtype=np.float32)[codes], symbol


def majority(steps: int, batch: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return symbols (T, B) of eight, half of them one and the same, and that one for each place (T, B)."""
    wanted = rng.integers(0, SYMBOLS, (1, batch))
    other = rng.integers(0, SYMBOLS, (steps, batch))
    answer = np.repeat(wanted, steps, axis=0)
    return np.where(rng.random((steps, batch)) < 0.5, answer, other), answer
