"""One Parameter in two layers, as the weight of an Embedding and of the Linear behind it: trained once, as in torch."""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad
from fastgrad import Adam, GradientMonitor, GradientNorm, layers

V, E = 11, 6


def tied(dtype=np.float64):
    model = layers.Sequential(
        layers.Embedding(V, E, rng=0, dtype=dtype), layers.Linear(E, V, bias=False, rng=1, dtype=dtype)
    )
    model[1].weight = model[0].weight
    return model


def test_a_parameter_is_listed_once_under_its_first_name():
    model = tied()
    assert [name for name, _ in model.named_parameters()] == ["0.weight"]
    assert model.parameters() == [model[0].weight] and list(model.state_dict()) == ["0.weight", "1.weight"]
    assert layers.Sequential(model)[0].parameters()[0].name == "0.0.weight"
    embedding, linear = layers.Embedding(V, E), layers.Linear(E, V, bias=False)
    linear.weight = embedding.weight  # before they have a place
    (parameter,) = layers.Sequential(embedding, linear).parameters()
    assert parameter.name == "0.weight"


class Model(layers.Layer):
    def __init__(self):
        self.embedding, self.head = layers.Embedding(V, E), layers.Linear(E, V, bias=False)
        self.head.weight = self.embedding.weight


def test_the_name_in_a_layer_of_ones_own():
    model = Model()
    assert model.parameters()[0].name == "embedding.weight"
    assert GradientMonitor(Adam(model.parameters())).names == ("embedding.weight",)


@pytest.mark.parametrize("fed", [False, True])
def test_training_is_torchs(backend, fed):
    torch = pytest.importorskip("torch")
    model = tied()
    optimizer = Adam(
        model.parameters(), lr=1e-2, max_norm=0.1, gradient_norm=GradientNorm() if fed and backend == "cpu" else None
    )
    weight = torch.tensor(model[0].weight.data.copy(), requires_grad=True)
    theirs = torch.optim.Adam([weight], lr=1e-2)
    x = np.random.default_rng(0).integers(0, V, (5, 3))
    for _ in range(4):
        optimizer.zero_grad()
        _, dlogits = fastgrad.softmax_cross_entropy(model.forward(x), x)
        model.backward(dlogits)
        theirs.zero_grad()
        logits = torch.nn.functional.embedding(torch.tensor(x), weight) @ weight.T
        torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(x.reshape(-1))).backward()
        norm = torch.nn.utils.clip_grad_norm_([weight], 0.1)
        theirs.step()
        assert optimizer.step().grad_norm == pytest.approx(norm.item(), rel=1e-12)
    np.testing.assert_allclose(model[0].weight.data, weight.detach().numpy(), rtol=1e-9)
    assert model[1].weight is model[0].weight
