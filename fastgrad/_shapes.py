"""The quick check of a call in which all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgrad._dispatch import get_backend


class Shapes:
    """Shapes of the arrays of a call, written in letters; see `fastgrad.kernels.shapes.plan`.

    `fit` passes NumPy arrays that the kernels take as they lie: C-contiguous and aligned, all of one float dtype. Of
    what it does not pass the caller finds out what is wrong, and says so; it may also be right, as a strided array.
    """

    __slots__ = ("_at", "_fit", "_plan", "_words")

    def __init__(self, *words: str) -> None:
        self._words = words
        self._fit: Callable[[int, int], bool] | None = None

    def fit(self, *arrays: Any) -> bool:
        """Say whether all is well."""
        if get_backend() == "reference":
            return False
        if self._fit is None:
            self._prepare()
        return self._fit(id(arrays), self._at)  # type: ignore[misc]

    def _prepare(self) -> None:
        # Not imported before it is used: the checks of the reference kernels need no compiler.
        from fastgrad.kernels import objects, runtime, shapes

        self._plan = shapes.plan(self._words)
        self._at = runtime.address(self._plan)
        self._fit = shapes.fitter() if objects.readable() else lambda arrays, plan: False
