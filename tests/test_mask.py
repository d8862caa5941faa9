"""Pruning: masks by magnitude, masks that stay through training, the cubic schedule."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import layouts, random

import fastgrad
from fastgrad import pruning
from fastgrad.layers import Linear, Parameter
from fastgrad.optim import Adam

SHAPES = [(13, 17), (), (0,), (3, 0), (65537,), (8, 3, 3)]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.777, 1.0])
def test_masks_are_torchs(dtype, sparsity):
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    for shape in [(13, 17), (50,), (8, 3, 3)]:
        array = random(1, shape, dtype)
        theirs = prune.L1Unstructured(sparsity).compute_mask(torch.tensor(array), torch.ones(shape))
        np.testing.assert_array_equal(pruning.magnitude_mask(array, sparsity), theirs.numpy())
        if len(shape) > 1:
            theirs = prune.LnStructured(sparsity, 2, 0).compute_mask(torch.tensor(array), torch.ones(shape))
            mask = pruning.magnitude_mask(array, sparsity, units=True)
            np.testing.assert_array_equal(mask, theirs.numpy())
            assert mask.dtype == dtype


def test_masks_are_applied(cpu_backend, dtype):
    arrays, masks = ([random(seed + k, shape, dtype) for k, shape in enumerate(SHAPES)] for seed in (0, 50))
    masks = [np.asarray(mask > 0, dtype) for mask in masks]
    arrays[0][0, :3] = np.nan, np.inf, -np.inf
    masks[0][0, :3] = 0
    expected = [np.where(mask != 0, array, dtype(0)) for array, mask in zip(arrays, masks, strict=True)]
    pruning.apply_masks(arrays, masks)
    for array, want in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, want)
    for name, view in layouts(random(7, (13, 17), dtype)).items():
        want = np.where(masks[0] != 0, view, 0)
        pruning.apply_masks(view, masks[0])
        np.testing.assert_array_equal(view, want, err_msg=name)


def test_masks_are_applied_on_a_device(device, dtype):
    arrays, masks = ([random(seed + k, shape, dtype) for k, shape in enumerate(SHAPES)] for seed in (0, 50))
    masks = [np.asarray(mask > 0, dtype) for mask in masks]
    there = [device.asarray(a) for a in arrays]
    pruning.apply_masks(there, [device.asarray(mask) for mask in masks])
    for array, start, mask in zip(there, arrays, masks, strict=True):
        np.testing.assert_array_equal(array.get(), np.where(mask != 0, start, 0))
    np.testing.assert_array_equal(
        pruning.magnitude_mask(there[0], 0.5).get(), pruning.magnitude_mask(there[0].get(), 0.5)
    )


def test_the_cubic_schedule():
    sparsity = pruning.CubicSparsity(0.1, 0.9, begin=5, steps=10)
    for t in range(5, 16):
        assert sparsity(t) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (t - 5) / 10) ** 3)
    assert sparsity(0) == pytest.approx(0.1) and sparsity(100) == 0.9


@pytest.mark.parametrize("units", [False, True])
def test_what_is_pruned_stays_pruned(cpu_backend, units):
    parameters = [Parameter(random(1, (10, 20))), Parameter(random(2, (20,)))]
    optimizer = Adam(parameters, lr=0.05)
    pruner = pruning.Pruner(parameters, pruning.CubicSparsity(0.0, 0.8, begin=2, steps=10), every=3, units=units)
    gone = [np.zeros(p.data.shape, bool) for p in parameters]
    for step in range(30):
        optimizer.step([random(100 + 2 * step + k, p.data.shape) for k, p in enumerate(parameters)])
        pruner.step()
        for before, parameter in zip(gone, parameters, strict=True):
            zero = parameter.data == 0
            assert not (before & ~zero).any()
            before |= zero
        if step == 20:  # goes on elsewhere
            saved = pruner.state_dict()
            pruner = pruning.Pruner(parameters, pruner.sparsity, every=3, units=units)
            pruner.load_state_dict(saved)
            assert pruner.steps == 21
    for parameter in parameters:
        assert np.mean(parameter.data == 0) == pytest.approx(0.8)
        if units and parameter.data.ndim > 1:
            assert {int(n) for n in (parameter.data == 0).sum(axis=1)} == {0, 20}


def test_an_optimizer_does_not_bring_back_what_was_pruned(cpu_backend):
    """Its step moves a pruned weight off 0 before the masks are chosen anew, further than the smallest that is left."""
    weights = np.array([1.0, 0.05, 0.5, 0.04])
    pruner = pruning.Pruner(weights, 0.25)
    pruner.step()
    np.testing.assert_array_equal(weights, [1.0, 0.05, 0.5, 0.0])
    fastgrad.sgd_step(weights, np.array([0.0, 0.0, 0.0, 1.0]), lr=0.3)
    pruner.step()
    np.testing.assert_array_equal(weights, [1.0, 0.05, 0.5, 0.0])


def test_errors():
    with pytest.raises(ValueError, match=r"sparsity: expected a finite number >= 0 and <= 1, got 1\.5"):
        pruning.magnitude_mask(np.zeros(3), 1.5)
    with pytest.raises(ValueError, match=r"array: expected one axis or more with units=True"):
        pruning.magnitude_mask(np.zeros(()), 0.5, units=True)
    with pytest.raises(ValueError, match="every: expected 1 or more steps, got 0"):
        pruning.Pruner([np.zeros(3)], 0.5, every=0)
    for wrong, what in ((Linear(2, 3), "Linear; pass its parameters()"), (None, "None"), ("w", "str")):
        with pytest.raises(TypeError, match=re.escape(f"params: expected a list of Parameters or arrays, got {what}")):
            pruning.Pruner(wrong, 0.5)
    with pytest.raises(ValueError, match="state_dict: expected masks"):
        pruning.Pruner([np.zeros(3)], 0.5).load_state_dict({"steps": 1, "masks": [np.ones(4)]})
