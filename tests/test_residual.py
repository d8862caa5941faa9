"""layers.Residual: against torch, by central differences, and what it does to the gradient of a deep stack."""

from __future__ import annotations

import numpy as np
import pytest
from backends import placed
from support import random
from tolerances import assert_close

from fastgrad.layers import GRU, Activation, BatchNorm, LayerNorm, Linear, Residual, Sequential
from fastgrad.testing import gradcheck

WIDTH = 6


def block(dtype, rng):
    return Sequential(
        Linear(WIDTH, 9, rng=rng, dtype=dtype), Activation("gelu"), Linear(9, WIDTH, rng=rng, dtype=dtype)
    )


def residual(norm, dtype=np.float64, rng=1):
    return Residual(block(dtype, rng), norm, WIDTH if norm else None)


@pytest.mark.parametrize("norm", [None, "pre", "post"])
def test_against_torch(backend, dtype, norm):
    torch = pytest.importorskip("torch")
    layer = residual(norm, dtype)
    inner = torch.nn.Sequential(torch.nn.Linear(WIDTH, 9), torch.nn.GELU(), torch.nn.Linear(9, WIDTH))
    normalise = torch.nn.LayerNorm(WIDTH) if norm else torch.nn.Identity()
    module = torch.nn.ModuleDict({"layer": inner, "norm": normalise})
    module = module.to(torch.float64 if dtype is np.float64 else torch.float32)
    values = {name: random(k, a.shape, dtype) for k, (name, a) in enumerate(layer.state_dict().items(), start=10)}
    layer.load_state_dict(values)
    module.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    x, dy = random(1, (5, 3, WIDTH), dtype), random(2, (5, 3, WIDTH), dtype)
    t = torch.tensor(x, requires_grad=True)
    expected = normalise(t + inner(t)) if norm == "post" else t + inner(normalise(t))
    expected.backward(torch.tensor(dy))
    layer = placed(layer, backend)
    assert_close(layer.forward(x), expected.detach().numpy(), "torch", magnitude="largest")
    assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")
    theirs = dict(module.named_parameters())
    assert {name for name, _ in layer.named_parameters()} == set(theirs)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, theirs[name].grad.numpy(), "torch", magnitude="largest", label=name)


@pytest.mark.parametrize("norm", [None, "pre", "post"])
def test_central_differences(cpu_backend, norm):
    gradcheck(residual(norm), random(1, (3, WIDTH)))


def test_around_a_recurrent_layer_and_with_a_norm_of_ones_own():
    x, dy = random(1, (4, 2, WIDTH)), random(2, (4, 2, WIDTH))
    cell = GRU(WIDTH, WIDTH, rng=3, dtype=np.float64)
    layer = Residual(cell, "pre", norm_layer=BatchNorm(2, dtype=np.float64))
    y = layer.forward(x)
    dx = layer.backward(dy)
    assert y.shape == dx.shape == x.shape and layer.norm.weight.grad is not None
    assert "norm.running_mean" in layer.state_dict()


def first_to_last(layer):
    """Return the norms of the gradient of the first and of the last weight of a stack of 200."""
    stack = Sequential(*[layer(np.random.default_rng(k)) for k in range(200)])
    stack.forward(random(1, (16, 8)))
    stack.backward(random(2, (16, 8)))
    weights = [parameter for name, parameter in stack.named_parameters() if name.endswith("0.weight")]
    assert len(weights) == 200
    return tuple(float(np.linalg.norm(weights[k].grad)) for k in (0, -1))


def test_the_gradient_reaches_the_first_of_200_layers():
    def plain(rng):
        linear = Linear(8, 8, rng=rng, dtype=np.float64)
        linear.weight.data *= 0.3
        return Sequential(linear, Activation("tanh"))

    first, last = first_to_last(plain)
    assert first < 1e-10 * last
    for norm in ("pre", None):
        first, last = first_to_last(lambda rng, norm=norm: Residual(plain(rng), norm, 8 if norm else None))
        assert last / 10 < first < last * 10, norm


def test_errors():
    linear = Linear(3, 4)
    with pytest.raises(TypeError, match="layer: expected a fastgrad layer, got int"):
        Residual(3)
    with pytest.raises(ValueError, match="norm: expected None, 'pre' or 'post', got 'both'"):
        Residual(linear, "both", 3)
    for arguments in ((linear, "pre"), (linear, None, 3)):
        with pytest.raises(ValueError, match="features and norm_layer: expected one of them"):
            Residual(*arguments)
    with pytest.raises(ValueError, match="features and norm_layer"):
        Residual(linear, "pre", 3, norm_layer=LayerNorm(3))
    with pytest.raises(ValueError, match=r"layer: expected shape \(2, 3\) of its output, that of x, got .* \(2, 4\)"):
        Residual(linear).forward(np.zeros((2, 3), np.float32))
