"""Checks of what a recurrent call does between its steps: zoneout, variational dropout, the clamp of the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._checks import flag, number
from fastgrad.kernels.between_steps_ref import Noise


def probability(name: str, value: Any) -> float:
    """Return a checked probability, which is less than 1: nothing would be left of what it drops or keeps back."""
    return number(name, value, 0.0, 1.0, open_high=True)


def noise_of(training: bool, seed: Any, offset: Any, **probabilities: Any) -> Noise | None:
    """Return the checked noise of a call, None where there is none."""
    for value in probabilities.values():
        if type(value) is not float or value != 0.0:
            break
    else:  # which takes 0.3 us, and all below 2.5
        return None
    p = {name: probability(name, value) for name, value in probabilities.items()}
    given = [name for name, value in p.items() if value > 0]
    if not given:
        return None
    random = flag("training", training)
    if random and seed is None:
        raise TypeError(
            f"seed: {given[0]} in training needs random numbers; pass seed=... and another offset each call"
        )
    noise = Noise(
        p["zoneout_h"], p.get("zoneout_c", 0.0), p["recurrent_dropout"], p["input_dropout"], random,
        counted("seed", seed, 64) if random else 0, counted("offset", offset, 62) if random else 0,
    )  # fmt: skip
    return noise if noise.zones or random else None


def counted(name: str, value: Any, bits: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__qualname__}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name}: expected 0 to 2^{bits} - 1, got {value}")
    return int(value)


def clip_of(value: Any) -> float | None:
    """Return the checked bound of the state's gradient, None where there is none."""
    return None if value is None else number("state_grad_clip", value, 0.0)
