"""What the trainer tells a person instead of a traceback."""

from __future__ import annotations

__all__ = ["Diverged", "UserError"]


class UserError(Exception):
    """A mistake in the input, the options or the output folder: one clear line, exit status 2."""


class Diverged(Exception):
    """The loss is no longer a number: one clear line, exit status 1."""
