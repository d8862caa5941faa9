"""Initialisers: fan conventions, moments, bounds, orthogonality, seeds and errors."""

import math

import numpy as np
import pytest

from fastgrad import init, layers

NAMES = ["fan_in_uniform", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal", "lecun_normal", "orthogonal"]

# (name, variance as a function of fan_in and fan_out): the papers' formulas, written out independently.
VARIANCES = [
    ("fan_in_uniform", lambda i, o: 1 / (3 * i)),
    ("xavier_uniform", lambda i, o: 2 / (i + o)),
    ("xavier_normal", lambda i, o: 2 / (i + o)),
    ("he_uniform", lambda i, o: 2 / i),
    ("he_normal", lambda i, o: 2 / i),
    ("lecun_normal", lambda i, o: 1 / i),
]


@pytest.mark.parametrize("shape", [(300, 200), (40, 30, 5, 7)])
@pytest.mark.parametrize(("name", "variance"), VARIANCES)
def test_moments(name, variance, shape):
    weight = getattr(init, name)(shape, rng=3, dtype=np.float64)
    fan_in, fan_out = shape[1] * math.prod(shape[2:]), shape[0] * math.prod(shape[2:])
    expected = variance(fan_in, fan_out)
    # 42,000 and more samples: the sample variance is within 4 % (more than five standard errors).
    assert weight.var() == pytest.approx(expected, rel=0.04)
    assert abs(weight.mean()) < 5 * math.sqrt(expected / weight.size)
    if name.endswith("uniform"):
        bound = math.sqrt(3 * expected)
        assert 0.999 * bound < np.abs(weight).max() <= bound


def test_fans_agree_with_torch():
    torch = pytest.importorskip("torch")
    for shape in [(3, 5), (3, 5, 7), (2, 3, 4, 5)]:
        assert init.fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (11, 5), (4, 3, 2, 2), (1, 6), (0, 3)])
def test_orthogonal(shape):
    weight = init.orthogonal(shape, gain=1.5, rng=1, dtype=np.float64)
    assert weight.shape == shape and weight.flags.c_contiguous
    matrix = weight.reshape(shape[0], -1) if weight.size else weight
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(len(gram)), atol=1e-12)


def test_orthogonal_is_uniform_over_the_group():
    # Without the sign fix the diagonal of Q is mostly of one sign; with it the mean entry is zero.
    diagonal = np.array([init.orthogonal((3, 3), rng=seed, dtype=np.float64)[0, 0] for seed in range(2000)])
    assert abs(diagonal.mean()) < 5 * math.sqrt(1 / 3 / 2000)


@pytest.mark.parametrize("name", NAMES)
def test_dtype_seed_and_generator(name):
    draw = getattr(init, name)
    assert draw((3, 4)).dtype == np.float32
    for dtype in (np.float32, np.float64):
        first = draw((3, 4), rng=5, dtype=dtype)
        assert first.dtype == dtype and first.shape == (3, 4)
        np.testing.assert_array_equal(first, draw((3, 4), rng=np.random.default_rng(5), dtype=dtype))
        assert not np.array_equal(first, draw((3, 4), rng=6, dtype=dtype))
    rng = np.random.default_rng(5)
    assert not np.array_equal(draw((3, 4), rng=rng), draw((3, 4), rng=rng))


@pytest.mark.parametrize("name", NAMES)
def test_errors(name):
    draw = getattr(init, name)
    with pytest.raises(ValueError, match=r"\(out, in\), got \(4,\)"):
        draw((4,))
    with pytest.raises(ValueError, match="negative"):
        draw((4, -1))
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        draw((4, 3), dtype=np.float16)


def test_leaky_slope():
    wide = init.he_normal((200, 300), rng=0, dtype=np.float64)
    leaky = init.he_normal((200, 300), negative_slope=1.0, rng=0, dtype=np.float64)
    np.testing.assert_allclose(leaky * math.sqrt(2), wide)


def test_fan_in_uniform_is_torchs_default_and_others_are_multiples_of_it():
    plain = init.fan_in_uniform((40, 30), rng=0, dtype=np.float64)
    assert 0.999 / math.sqrt(30) < np.abs(plain).max() <= 1 / math.sqrt(30)
    he = init.he_uniform((40, 30), rng=0, dtype=np.float64)
    np.testing.assert_allclose(init.fan_in_uniform((40, 30), c=math.sqrt(6), rng=0, dtype=np.float64), he)
    np.testing.assert_allclose(layers.Linear(30, 40, rng=0, dtype=np.float64).weight.data, plain)


def test_lstm_bias_opens_the_forget_gate(dtype):
    bias = init.lstm_bias(3, forget=1.5, dtype=dtype)
    assert bias.dtype == dtype and bias.shape == (12,)
    layer = layers.LSTM(2, 3, rng=1, dtype=dtype)
    for parameter in layer.parameters():
        parameter.data[...] = 0
    layer.bias_ih_l0.data[...] = bias
    c = np.ones((1, 1, 3), dtype)
    _, (_, cn) = layer.forward(np.zeros((1, 1, 2), dtype), (np.zeros_like(c), c))
    np.testing.assert_allclose(cn, 1 / (1 + math.exp(-1.5)), rtol=1e-6)  # the other gates have nothing to add
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        init.lstm_bias(0)
