"""What the layer-normalised LSTM learns, for its contract and for all its backends.

A module of its own: importing the package must not import the reference, which takes SciPy along.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Weights(NamedTuple):
    """All that is learned."""

    weight_ih: Array  # (4H, I)
    weight_hh: Array  # (4H, H)
    gain_ih: Array  # (4H,)
    gain_hh: Array  # (4H,)
    gain_c: Array  # (H,)
    bias_ih: Array  # (4H,)
    bias_hh: Array  # (4H,)
    bias_c: Array  # (H,)
