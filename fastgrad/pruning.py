"""Magnitude pruning: masks of the smallest weights or units, which stay through training, and how many when.

    pruner = Pruner(weights, CubicSparsity(0.0, 0.9, begin=1000, steps=10_000), every=100)
    ...
    optimizer.step()
    pruner.step()

Zhu & Gupta, To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad._arrays import copy_like, to_host
from fastgrad._checks import Array, float_array, number
from fastgrad._dispatch import list_kernels
from fastgrad._tensor_lists import TensorGroups
from fastgrad.layers import Parameter
from fastgrad.layers.base import describe, parameter_list
from fastgrad.schedules import _steps

__all__ = ["CubicSparsity", "Pruner", "apply_masks", "magnitude_mask"]


def magnitude_mask(array: Array, sparsity: float, *, units: bool = False) -> Array:
    """Return the mask of an array that leaves out its smallest entries, 1 what stays and 0 what goes.

    round(sparsity * n) of n go, those of the smallest magnitude, as torch.nn.utils.prune.l1_unstructured; with `units`
    so many rows along axis 0, those of the smallest l2 norm, as ln_structured with n=2 and dim=0. NaN counts as the
    largest.

    Args:
        array: float32 or float64, with `units` of one axis or more.
        sparsity: the share that goes, from 0 to 1.

    Returns:
        An array of the shape and dtype of `array`, beside it. The choice is made on the host: for a device array this
        waits for the device.

    Raises:
        TypeError: not an array, or not float32 or float64.
        ValueError: sparsity outside of 0 to 1, or no axis for units.
    """
    a = float_array("array", array)
    share = number("sparsity", sparsity, 0.0, 1.0)
    if units and a.ndim == 0:
        raise ValueError("array: expected one axis or more with units=True, got shape ()")
    host = to_host(a)
    mask = np.ones(host.shape, host.dtype)
    if units:
        rows = host.reshape(len(host), host.size // max(len(host), 1))
        sizes = np.array([np.linalg.norm(row.astype(np.float64)) for row in rows])
    else:
        sizes = np.abs(host).reshape(-1)
    gone = round(share * sizes.size)
    if gone:
        smallest = np.argsort(sizes, kind="stable")[:gone]
        if units:
            mask[smallest] = 0
        else:
            mask.reshape(-1)[smallest] = 0
    return mask if type(array) is np.ndarray else copy_like(mask, array)


def apply_masks(arrays: Array | list[Array], masks: Array | list[Array]) -> None:
    """Set the entries of arrays in place to 0 where their masks are 0, NaN and Inf too; one launch for any number.

    Args:
        arrays: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
        masks: as many arrays of the same shapes and dtype.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: lengths or shapes differ, an array is read-only or overlaps another.
    """
    groups = TensorGroups("arrays! masks", arrays, masks)
    checked, kept = groups.lists
    if checked:
        list_kernels("mask", checked).apply_masks(checked, kept)
    groups.done()


@dataclass(frozen=True)
class CubicSparsity:
    """final + (initial - final) (1 - (t - begin) / steps)^3 at step t, initial before and final after."""

    initial: float
    final: float
    begin: int
    steps: int

    def __post_init__(self) -> None:
        number("initial", self.initial, 0.0, 1.0)
        number("final", self.final, 0.0, 1.0)
        _steps("begin", self.begin, 0)
        _steps("steps", self.steps)

    def __call__(self, step: int) -> float:
        share = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        return self.final + (self.initial - self.final) * (1 - share) ** 3


class Pruner:
    """Keeps parameters pruned through training: call `step` after each step of the optimizer.

    params: Parameters or arrays, all float32 or all float64, each with a mask of its own.
    sparsity: the share that goes, or a function of the number of the step, from 0, such as `CubicSparsity`.
    every: the masks are chosen anew, by the magnitudes then, in steps 0, every, 2 every, ...; where that waits for a
        device the steps between do not. What was pruned is set to 0 before, so that it stays pruned while sparsity does
        not fall, wherever the optimizer has moved it.
    units: rows along axis 0 in place of single weights.
    """

    def __init__(
        self, params: Any, sparsity: float | Callable[[int], float], *, every: int = 1, units: bool = False
    ) -> None:
        listed = parameter_list("params", params)
        self._parameters = [p if isinstance(p, Parameter) else Parameter(p) for p in listed]
        if not callable(sparsity):
            number("sparsity", sparsity, 0.0, 1.0)
        _steps("every", every)
        self.sparsity, self.every, self.units = sparsity, every, units
        self.steps = 0
        self.masks: list[Array] = []

    def step(self) -> None:
        """Choose the masks anew where it is time, and set to 0 what they leave out."""
        data = [parameter.data for parameter in self._parameters]
        if self.masks:
            if type(self.masks[0]) is not type(data[0]):  # the parameters have been moved
                self.masks = [copy_like(mask, array) for mask, array in zip(self.masks, data, strict=True)]
            # Also before a new choice: the optimizer has moved what was 0.
            apply_masks(data, self.masks)
        if not self.masks or self.steps % self.every == 0:
            share = self.sparsity(self.steps) if callable(self.sparsity) else self.sparsity
            self.masks = [magnitude_mask(array, share, units=self.units) for array in data]
            apply_masks(data, self.masks)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return {"steps": n, "masks": [...]}; the masks are the pruner's own."""
        return {"steps": self.steps, "masks": list(self.masks)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, whose masks are copied.

        Raises ValueError when the masks are not those of these parameters; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping) or not {"masks", "steps"} <= set(state_dict):
            raise ValueError(f"state_dict: expected what state_dict() returns, got {describe(state_dict)}")
        masks, data = state_dict["masks"], [parameter.data for parameter in self._parameters]
        shapes = [mask.shape for mask in masks]
        if masks and shapes != [array.shape for array in data]:
            raise ValueError(f"state_dict: expected masks of {[array.shape for array in data]}, got {shapes}")
        self.masks = [copy_like(mask, array) for mask, array in zip(masks, data, strict=bool(masks))]
        self.steps = int(state_dict["steps"])
