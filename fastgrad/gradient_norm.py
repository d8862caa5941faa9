"""The norm of gradients, taken one by one as they are produced."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad._checks import Array
from fastgrad._dispatch import kernels, list_kernels, on_device
from fastgrad._tensor_lists import TensorGroups, tensor_list


class _Fed(weakref.ref[Array]):
    """An array that was fed, while it lives: its id, what was found in it, and the strides that it had.

    Another dtype or shape set on the object changes the strides; to resize it, NumPy refuses while this refers to it.
    """

    __slots__ = ("found", "key", "strides")

    key: int
    found: list[float]  # as `fastgrad.kernels.health_cpu.health` has it: the norm comes first
    strides: tuple[int, ...]


class GradientNorm:
    """Take the l2 norm of each gradient when it is produced, so that the step reads none of them for the global norm.

    An Adam step with clipping moves 32 bytes a parameter in float32, 4 of them for the norm. Fed right behind the
    kernel that wrote it, a gradient is still in the cache, and the step moves 28:

        norm = fastgrad.GradientNorm()
        ...
        norm.add(dweight)                                # as soon as its final value is there
        ...
        fastgrad.adam_step(params, grads, m, v, step=t, max_norm=1.0, gradient_norm=norm)

    With layers, `Adam(model.parameters(), max_norm=1.0, gradient_norm=norm)` has every Parameter feed its gradient
    when a backward pass stores it or adds to it. Measure whether that pays: each `add` takes 5 us, against 10 us for a
    whole list of small tensors in the step, so it can only pay where memory is slow against the caches and tensors are
    large. On two cores with 32 MB of cache, steps with tensors of 1 to 9 MB took the same time with it and without.

    What was fed must not be changed before the step, other than by `Parameter.accumulate`: scaling a gradient in place
    leaves its old norm here, and the step clips by that. Feed it again: the last time counts. Everything else is
    noticed, and the gradient read as if it had never been fed: another array in its place, also one at the address of
    a freed one; one whose dtype or strides were set; one never fed. So the norm is that of `fastgrad.global_norm` to
    the last bit, whatever was fed. A step uses up what was fed for its gradients. What `fastgrad.health` says is taken
    along, for the report of the step.

    CuPy arrays are refused: on a GPU a launch for each gradient costs more than the one pass over all of them saves.

    missed: how many gradients of the last step or `norm` had to be read.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._fed: dict[int, _Fed] = {}

    def __len__(self) -> int:
        """Return how many living gradients are fed."""
        return len(self._fed)

    def __reduce__(self) -> tuple[Any, ...]:
        return GradientNorm, ()  # a copy has been fed nothing

    def add(self, grads: Array | list[Array]) -> None:
        """Take the norms of these gradients; of one that was fed before, its present value counts.

        Args:
            grads: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; no reference to
                them is kept.

        Raises:
            TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        """
        arrays = tensor_list("grads", grads)
        groups = TensorGroups("grads", arrays)
        refuse_device("GradientNorm", groups.lists[0])
        if not arrays:
            return
        found = list_kernels("health", groups.lists[0]).health(groups.lists[0])
        groups.done()
        for array, column in zip(arrays, found.T.tolist(), strict=True):
            fed = _Fed(array, self._forget)
            fed.key, fed.found, fed.strides = id(array), column, array.strides
            self._fed[fed.key] = fed

    def norm(self, grads: Array | list[Array]) -> Array:
        """Return the global l2 norm of gradients, the bits of `fastgrad.global_norm(grads)`; nothing is used up.

        Args:
            grads: one array or a list of arrays as in `add`, fed or not.

        Returns:
            0-d float64 array.

        Raises:
            TypeError: as in `add`.
        """
        arrays = tensor_list("grads", grads)
        groups = TensorGroups("grads", arrays)
        found = self._health(arrays, groups.lists[0])
        groups.done()
        return np.array(kernels("norm").norm_of_norms(found[0], 2.0))

    def clear(self) -> None:
        """Forget all that was fed."""
        self._fed.clear()

    def _health(self, arrays: Sequence[Array], checked: Sequence[Array], use_up: bool = False) -> Array:
        """Return what `health` finds in each of these arrays, float64 (6, n); checked: the same arrays, contiguous."""
        refuse_device("gradient_norm", checked)
        known = [self._known(array) for array in arrays]
        missing = [k for k, column in enumerate(known) if column is None]
        self.missed = len(missing)
        if use_up:
            for array in arrays:
                self._fed.pop(id(array), None)
        if not known:
            return np.zeros((6, 0))
        if len(missing) == len(known):
            return list_kernels("health", checked).health(checked)
        found = np.array([[0.0] * 6 if column is None else column for column in known]).T
        if missing:
            every = list(checked)
            found[:, missing] = list_kernels("health", every).health([every[k] for k in missing])
        return np.ascontiguousarray(found)

    def _known(self, array: Array) -> list[float] | None:
        fed: Any = self._fed.get(id(array))
        if fed is None or fed() is not array or fed.strides != array.strides:
            return None
        return fed.found

    def _forget(self, fed: Any) -> None:
        self._fed.pop(fed.key, None)


def refuse_device(name: str, arrays: Sequence[Array]) -> None:
    """Raise TypeError for arrays on a device."""
    if on_device(arrays):
        raise TypeError(
            f"{name}: takes NumPy arrays; on a GPU it brings nothing, for a step takes the norm of all gradients in "
            f"one launch, and one for each gradient takes longer; leave it out"
        )


def checked_gradient_norm(value: Any) -> GradientNorm:
    """Return `value`, a GradientNorm. Raises TypeError for something else."""
    if isinstance(value, GradientNorm):
        return value
    raise TypeError(f"gradient_norm: expected a fastgrad.GradientNorm, got {type(value).__qualname__}")
