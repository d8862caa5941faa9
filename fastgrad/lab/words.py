"""Words for figures: what the sentences of all experiments are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["count", "joined", "power", "share"]

SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def joined(parts: Sequence[str], last: str = "and") -> str:
    """Return ["a", "b", "c"] as "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def count(number: int, what: str = "") -> str:
    """Return 2, "curve" as "two curves", 0 as "no curves" and 15 as "15 curves"."""
    word = SMALL[number] if number < len(SMALL) else f"{number:,}"
    return f"{word} {what}{'' if number == 1 else 's'}" if what else word


def share(value: float) -> str:
    """Return 0.973 as "97.3 %", which no line break parts."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def power(value: float) -> str:
    """Return 3.2e-15 as "3 x 10^-15" with a true minus and superscript, numbers near 1 as they are, 0 as "0"."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits} × 10{raised}"
