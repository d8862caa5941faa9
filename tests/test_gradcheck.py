"""fastgrad.testing.gradcheck: right gradients pass, planted faults are caught and named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from support import random

from fastgrad import dropout, dropout_backward, layers, linear, mse
from fastgrad.layers import Layer, Parameter, Sequential
from fastgrad.testing import GradcheckError, gradcheck


def wide(kind, *arguments, **options):
    return kind(*arguments, rng=1, dtype=np.float64, **options)


def rows(*shape):
    return random(1, shape)


LAYERS = {
    "linear": lambda: (wide(layers.Linear, 5, 3), rows(4, 5)),
    "embedding": lambda: (wide(layers.Embedding, 7, 3), np.array([[1, 6], [1, 0]])),
    "activation": lambda: (layers.Activation("gelu"), rows(4, 5)),
    "layer norm": lambda: (layers.LayerNorm(5, dtype=np.float64), rows(4, 5)),
    "batch norm": lambda: (layers.BatchNorm(5, dtype=np.float64), rows(4, 5)),
    "batch norm in evaluation": lambda: (layers.BatchNorm(5, dtype=np.float64).eval(), rows(4, 5)),
    "dropout": lambda: (layers.Dropout(0.4, rng=3), rows(4, 5)),
    "lstm": lambda: (wide(layers.LSTM, 3, 2, 2), (rows(3, 2, 3), (rows(2, 2, 2), rows(2, 2, 2)), [3, 1])),
    "gru": lambda: (wide(layers.GRU, 3, 2), (rows(3, 2, 3), rows(1, 2, 2))),
    "gru with noise": lambda: (
        wide(layers.GRU, 3, 2, zoneout_h=0.3, input_dropout=0.2, recurrent_dropout=0.3), rows(3, 2, 3)
    ),
    "gru with noise, checkpointed": lambda: (
        layers.Checkpoint(wide(layers.GRU, 3, 3, zoneout_h=0.3, recurrent_dropout=0.3)), rows(3, 2, 3)
    ),
    "a stack": lambda: (
        Sequential(
            wide(layers.Embedding, 7, 4), wide(layers.GRU, 4, 4), layers.Dropout(0.3, rng=2),
            layers.Residual(wide(layers.Linear, 4, 4), "pre", 4),
        ),
        np.array([[1, 6, 2], [1, 0, 3]]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(cpu_backend, name):
    layer, inputs = LAYERS[name]()
    before = {key: value.copy() for key, value in layer.state_dict().items()}
    gradcheck(layer, inputs)
    gradcheck(layer, inputs, exhaustive=3)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_on_a_device(device, name):
    layer, inputs = LAYERS[name]()
    layer.to("gpu")

    def there(value):
        if isinstance(value, tuple):
            return tuple(map(there, value))
        return device.asarray(value) if isinstance(value, np.ndarray) else value

    gradcheck(layer, there(inputs), exhaustive=20)


def test_a_used_layer_is_left_as_it_is():
    layer, inputs = LAYERS["a stack"]()
    y = layer.forward(inputs)
    layer.backward(y)
    layer.forward(inputs)
    grads = [parameter.grad.copy() for parameter in layer.parameters()]
    offset = layer[2].offset
    gradcheck(layer, inputs)
    assert layer[2].offset == offset == 2
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)
    layer.backward(y)  # what forward kept is there still


def test_functions(backend):
    x, weight, target = random(1, (4, 3)), random(2, (2, 3)), random(3, (4, 3))
    gradcheck(linear.linear, (x, weight), lambda dy, x, w: linear.linear_backward(dy, x, w, with_bias=False)[:2])
    gradcheck(lambda x: mse(x, target)[0], x, lambda dloss, x: dloss * mse(x, target)[1])
    gradcheck(lambda x: dropout(x, 0.5, 7), x, lambda dy, _: dropout_backward(dy, 0.5, 7))


class Scale(Layer):
    """y = (weight x + bias)^2, with a fault."""

    def __init__(self, size, fault=None):
        self.weight, self.bias = Parameter(random(3, (size,))), Parameter(random(4, (size,)))
        self.fault = fault

    def forward(self, x):
        y = (self.weight.data * x + self.bias.data) ** 2
        self._keep(y, x)
        return y

    def backward(self, dy):
        x = self._take(dy)
        inner = self.weight.data * x + self.bias.data
        g = dy * inner if self.fault == "a missing factor" else 2 * dy * inner
        dweight = (g * x).sum(axis=0)
        if self.fault == "one wrong element":
            dweight[2] *= 1 + 1e-4
        elif self.fault == "a missing term":
            dweight -= (g * x)[-1]
        elif self.fault == "not a number":
            dweight[1] = np.nan
        elif self.fault == "a wrong shape":
            dweight = dweight[None]
        elif self.fault == "float32":
            dweight = dweight.astype(np.float32)
        if self.fault in ("overwritten", "a wrong shape", "float32"):  # past what `accumulate` refuses
            self.weight.grad = dweight
        else:
            self.weight.accumulate(dweight)
        if self.fault == "added twice":
            self.weight.accumulate(dweight)
        if self.fault == "no bias":
            return g * self.weight.data
        self.bias.accumulate(g.sum(axis=0))
        if self.fault == "no dx":
            return None
        return -g * self.weight.data if self.fault == "a wrong sign" else g * self.weight.data


@pytest.mark.parametrize(("fault", "wrong", "text"), [
    ("a wrong sign", ["x"], r"x: 40 of 40 entries are off .* worst at \(\d, \d\): expected -?\d.*, got -?\d"),
    ("a missing factor", ["x", "weight", "bias"], "3 of 3 gradients are wrong"),
    ("a missing term", ["weight"], "weight: 5 of 5 entries"),
    ("one wrong element", ["weight"], r"weight: 1 of 5 entries .* worst at \(2,\)"),
    ("not a number", ["weight"], r"weight: 1 of 5 entries .* at \(1,\): expected .*, got nan"),
    ("a wrong shape", ["weight"], r"weight: the gradient has shape \(1, 5\), expected \(5,\)"),
    ("float32", ["weight"], "weight: the gradient is float32, expected float64"),
    ("overwritten", ["weight"], "weight: a second backward pass does not add to the gradient of the first"),
    ("added twice", ["weight"], "weight: 5 of 5 entries"),
    ("no bias", ["bias"], r"bias: 5 of 5 entries .* got 0\.0"),
    ("no dx", ["x"], "x: backward returned no gradient"),
])  # fmt: skip
def test_planted_faults_of_a_layer(fault, wrong, text):
    x = random(5, (8, 5))
    gradcheck(Scale(5), x)
    with pytest.raises(GradcheckError, match=text) as caught:
        gradcheck(Scale(5, fault), x)
    assert isinstance(caught.value, AssertionError) and "gradcheck of Scale" in str(caught.value)
    assert list(dict.fromkeys(m.name for m in caught.value.mismatches)) == wrong
    worst = caught.value.mismatches[0]
    if fault == "one wrong element":
        assert worst.index == (2,)
        assert worst.got == pytest.approx(worst.expected * (1 + 1e-4), rel=1e-8)


@pytest.mark.parametrize("fault", ["a wrong sign", "a missing term", "one wrong element", "not a number"])
def test_planted_faults_show_along_directions(fault):
    """One entry of 1,500 that is off by 1e-4 of itself is named."""
    x = random(5, (8, 1500))
    gradcheck(Scale(1500), x, exhaustive=100)
    with pytest.raises(GradcheckError) as caught:
        gradcheck(Scale(1500, fault), x, exhaustive=100)
    names = {m.name: m.index for m in caught.value.mismatches}
    assert list(names) == ["x" if fault == "a wrong sign" else "weight"]
    if fault in ("one wrong element", "not a number"):
        assert names["weight"] == (2 if fault == "one wrong element" else 1,)


def test_planted_faults_of_a_function():
    x, y = random(1, (3,)), random(2, (3,))
    gradcheck(np.multiply, (x, y), lambda d, x, y: (d * y, d * x))
    for backward, text in (
        (lambda d, x, y: (d * x, d * y), "2 of 2 gradients"),
        (lambda d, x, y: (d * y,), r"backward: expected 2 gradients in a tuple, got 1"),
        (lambda d, x, y: d * y, "backward: expected 2 gradients in a tuple, got ndarray"),
        (lambda d, x, y: (d * y, None), "1 of 2 gradients"),
    ):
        with pytest.raises(GradcheckError, match=text):
            gradcheck(np.multiply, (x, y), backward)


def test_dropout_that_draws_anew_is_caught():
    layer, x = layers.Dropout(0.5, rng=1), random(1, (4, 5))

    def backward(dy, x):
        layer.forward(x)
        return layer.backward(dy)

    with pytest.raises(GradcheckError):
        gradcheck(layer.forward, x, backward)


def test_a_dropped_state_gradient_is_caught(monkeypatch):
    layer, inputs = LAYERS["lstm"]()
    original = layers.LSTM.backward
    monkeypatch.setattr(layers.LSTM, "backward", lambda self, dy, dstate=None: original(self, dy, None))
    with pytest.raises(GradcheckError, match=r"state\[0\]"):
        gradcheck(layer, inputs)


def test_errors():
    with pytest.raises(TypeError, match=r"weight: expected float64, got float32; .* pass dtype=np\.float64"):
        gradcheck(layers.Linear(3, 2), rows(4, 3))
    with pytest.raises(TypeError, match="x: expected float64, got float32"):
        gradcheck(wide(layers.Linear, 3, 2), rows(4, 3).astype(np.float32))
    with pytest.raises(ValueError, match="expected a float64 array there or among the parameters, got none"):
        gradcheck(layers.Activation("relu"), np.arange(3))


def test_copies_of_layers_leave_out_what_forward_kept():
    layer, inputs = LAYERS["lstm"]()
    layer.forward(*inputs)
    with pytest.raises(RuntimeError, match="expected a forward pass before"):
        copy.deepcopy(layer).backward(random(1, (3, 2, 2)))
