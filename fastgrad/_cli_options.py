"""What the commands of the command line share: options in panels, checks of numbers, the dtypes."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import typer

__all__ = ["Dtype", "Interrupted", "finite", "option", "positive"]


class Interrupted(Exception):
    """Ctrl-C within a command: typer ends the process in silence for a KeyboardInterrupt."""


class Dtype(StrEnum):
    """Floating-point types."""

    float32 = "float32"
    float64 = "float64"


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a finite number above 0.")
    return value


def option(*names: str, panel: str, default: str | None = None, **settings: Any) -> Any:
    """Return a typer option that shows `default`; None inside means "not given": the default, or the checkpoint's."""
    if default is not None:
        settings["show_default"] = default
    return typer.Option(*names, rich_help_panel=panel, **settings)
