"""What may come between the steps of an LSTM or GRU: zoneout, variational dropout, clipping of the state's gradient.

    zoneout (Krueger et al., 2017)          s_t = z s_(t-1) + (1 - z) s~_t, for s = h and s = c; s~ is the step's own
    variational dropout                     x_t m_x in the place of x_t, h m_h in that of h in its products with W_hh;
      (Gal & Ghahramani, 2016)              m_x (B, I) and m_h (B, H) are the same at every step
    clipping                                what a step hands back to the step before, the gradient of the state that it
                                            was given, is clamped to [-bound, bound]

In training z is 1 with probability p, else 0, for each entry and step of its own; in evaluation z = p, the expectation.
m is 0 with probability p, else 1 / (1 - p); in evaluation there is none.

Random numbers: those of dropout_ref.py under (seed, 4 offset + stream), at the place of an entry in (T, B, H) for
zoneout, in (B, H) or (B, I) for dropout. An entry is zoned out where dropout would drop it.

Dimensions: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dropout_ref import dropout

Array = np.ndarray

ZONEOUT_H, ZONEOUT_C, DROPOUT_H, DROPOUT_X = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Noise:
    """Probabilities from 0 to below 1, and where the random numbers come from."""

    zoneout_h: float
    zoneout_c: float
    dropout_h: float
    dropout_x: float
    training: bool
    seed: int
    offset: int

    @property
    def zones(self) -> bool:
        """Whether there is zoneout."""
        return self.zoneout_h > 0 or self.zoneout_c > 0

    @property
    def drops_h(self) -> bool:
        """Whether h is masked."""
        return self.training and self.dropout_h > 0

    @property
    def drops_x(self) -> bool:
        """Whether x is masked."""
        return self.training and self.dropout_x > 0

    @property
    def every_step(self) -> bool:
        """Whether anything is done between two steps; a mask of x is not."""
        return self.zones or self.drops_h

    def counter(self, stream: int) -> int:
        """Return the upper half of the counter of a stream."""
        return 4 * self.offset + stream


def threshold_of(p: float) -> int:
    """Return the random word from which on an entry is kept."""
    return min(round(p * 2**32), 2**32 - 1)


def zone(noise: Noise | None, stream: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Return z (T, B, H)."""
    p = 0.0 if noise is None else noise.zoneout_h if stream == ZONEOUT_H else noise.zoneout_c
    if noise is None or p == 0 or not noise.training:
        return np.full(shape, p, dtype)
    kept = np.ones(shape, dtype)
    dropout(kept.reshape(-1), threshold_of(p), 1.0, noise.seed, noise.counter(stream), kept.reshape(-1))
    return 1 - kept


def mask(noise: Noise | None, stream: int, shape: tuple[int, int], dtype: np.dtype) -> Array:
    """Return m (B, H) or (B, I); ones where nothing is dropped."""
    ones = np.ones(shape, dtype)
    if noise is None or not noise.training:
        return ones
    p = noise.dropout_h if stream == DROPOUT_H else noise.dropout_x
    scale = 1.0 / (1.0 - p)
    dropout(ones.reshape(-1), threshold_of(p), scale, noise.seed, noise.counter(stream), ones.reshape(-1))
    return ones


def masked(x: Array, m: Array) -> Array:
    """Return x m, and 0 where m is 0, whatever x is there."""
    return np.where(m > 0, x * m, 0)


def mixed(z: Array, before: Array, now: Array) -> Array:
    """Return z before + (1 - z) now; where z is 0 or 1 the other does not enter, whatever it is."""
    return np.where(z == 0, now, np.where(z == 1, before, z * before + (1 - z) * now))


def split(z: Array, gradient: Array) -> tuple[Array, Array]:
    """Return the gradients of `before` and `now` of `mixed`."""
    return np.where(z == 0, 0, z * gradient), np.where(z == 1, 0, (1 - z) * gradient)


def clamped(gradient: Array, bound: float | None) -> Array:
    """Return a gradient inside of [-bound, bound]; NaN stays NaN."""
    return gradient if bound is None else np.clip(gradient, -bound, bound).astype(gradient.dtype, copy=False)
