"""GradientNorm: the bits of the ordinary step whatever was fed, no pass where all was, nothing stale."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from support import layouts, random

import fastgrad
from fastgrad import GradientNorm, _dispatch
from fastgrad.layers import LSTM, Embedding, Linear, Parameter, Sequential
from fastgrad.optim import SGD, Adam, AdamW, RMSprop

SHAPES = [(13, 17), (), (0,), (1,), (33_000,), (2, 3, 5), (4097,), *((k,) for k in range(2, 40))]
STEPS = {
    "adam": lambda p, g, s, t, n: fastgrad.adam_step(p, g, *s[:2], step=t, max_norm=1.0, gradient_norm=n),
    "scaled": lambda p, g, s, t, n: fastgrad.adam_step(
        p, g, *s[:2], step=t, max_norm=1.0, grad_scale=128.0, gradient_norm=n
    ),
    "sgd": lambda p, g, s, t, n: fastgrad.sgd_step(p, g, s[0], lr=0.1, momentum=0.9, max_norm=1.0, gradient_norm=n),
    "rmsprop": lambda p, g, s, t, n: fastgrad.rmsprop_step(p, g, s[0], max_norm=1.0, gradient_norm=n),
}
OPTIMIZERS = [Adam, AdamW, RMSprop, SGD]


def draw(dtype, seed=0, scale=1.0):
    return [random(seed + k, shape, dtype, scale) for k, shape in enumerate(SHAPES)]


def assert_same(ours, others):
    for mine, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.fixture
def passes(monkeypatch):
    """The number of gradients whose norm was taken, pass by pass."""
    seen = []
    for module in {_dispatch.kernels("health"), *_both()}:
        original = module.health
        monkeypatch.setattr(module, "health", lambda a, original=original: seen.append(len(a)) or original(a))
    return seen


def _both():
    for name in _dispatch.BACKENDS:
        with fastgrad.backend(name):
            yield _dispatch.kernels("health")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("fed", [slice(None, None, -1), slice(0, 0), slice(1, 5, 3)], ids=["all", "none", "some"])
def test_the_step_is_the_ordinary_one_bit_for_bit(cpu_backend, dtype, passes, name, fed):
    runs = []
    for norm in (None, GradientNorm()):
        params, state = draw(dtype), [[np.zeros_like(p) for p in draw(dtype)] for _ in range(2)]
        totals = []
        for step in range(1, 4):
            grads = draw(dtype, 100 * step)
            if norm is not None:
                for grad in grads[fed]:
                    norm.add(grad)
                del passes[:]
            totals.append(float(STEPS[name](params, grads, state, step, norm)))
            if norm is not None:
                assert norm.missed == len(grads) - len(grads[fed]) == sum(passes)
                assert len(norm) == 0
        runs.append([*params, *state[0], *state[1], totals])
    assert_same(*runs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_an_optimizers_step_is_the_ordinary_one(cpu_backend, dtype, optimizer, max_norm):
    def train(norm):
        params = draw(dtype)
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.5}]
        made = optimizer(groups, max_norm=max_norm, gradient_norm=norm)
        reports = []
        for step in range(4):
            # Missing gradients make several launches of later steps.
            grads = [None if (step + k) % 3 == 0 else grad for k, grad in enumerate(draw(dtype, 50 * step))]
            present = [grad for grad in grads if grad is not None]
            if norm is not None:
                norm.add(present)
            reports.append(made.step(grads))
            assert reports[-1].grad_norm == fastgrad.global_norm(present)
            assert norm is None or norm.missed == 0
        return params, reports

    (ours, reports), (others, expected) = train(GradientNorm()), train(None)
    assert_same(ours, others)
    assert reports == expected


def test_the_norm_is_global_norm_to_the_last_bit(cpu_backend, dtype):
    info = np.finfo(dtype)
    norm = GradientNorm()
    for scale in (1.0, float(info.max) / 8, float(info.tiny), float(info.smallest_subnormal)):
        grads = [np.full(k, scale, dtype) for k in (5, 1, 40_000)]
        for grad in reversed(grads):
            norm.add(grad)
        assert norm.norm(grads) == fastgrad.global_norm(grads) and norm.missed == 0
    for bad in (math.nan, math.inf, -math.inf):
        grads = draw(dtype)
        grads[4][123] = bad
        norm.add(grads)
        np.testing.assert_array_equal(norm.norm(grads), fastgrad.global_norm(grads))
    for view in layouts(random(3, (13, 17), dtype)).values():
        norm.add(view)
        assert norm.norm([view]) == fastgrad.global_norm([view]) and norm.missed == 0
    assert norm.norm([]) == 0 and norm.norm(view).shape == ()


def retyped(grads):
    grads[0].dtype = np.float32
    del grads[1:]


def strided(grads):
    grads[0].strides = (0,)


def replaced(grads):
    grads[0] = grads[0] * 3


def viewed(grads):
    grads[0] = grads[0][:]


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("change", [retyped, strided, replaced, viewed])
def test_what_is_no_longer_what_was_fed_is_read(cpu_backend, change):
    norm = GradientNorm()
    grads = [random(1, 4), random(2, 4)]
    norm.add(grads)
    change(grads)
    assert norm.norm(grads) == fastgrad.global_norm(grads)
    assert norm.missed == 1


def test_what_was_fed_can_not_be_resized():
    norm, grad = GradientNorm(), np.ones(4)
    norm.add(grad)
    with pytest.raises(ValueError, match="cannot resize"):
        grad.resize(3, refcheck=False)


def test_an_array_in_the_place_of_a_freed_one_is_read(cpu_backend):
    norm = GradientNorm()
    for _ in range(100):
        grads = [np.full(5, 2.0)]
        norm.add(grads)
        before = id(grads[0]), grads[0].__array_interface__["data"]
        grads[0] = None
        grads[0] = np.full(5, 3.0)
        if before == (id(grads[0]), grads[0].__array_interface__["data"]):
            break
    else:
        pytest.skip("the interpreter does not use the place of an object again")
    assert norm.norm(grads) == fastgrad.global_norm(grads) and norm.missed == 1


def test_no_gradient_is_kept_alive():
    norm = GradientNorm()
    for k in range(50):
        kept = [np.ones(k + 1), np.ones(3)]
        norm.add(kept)
        assert len(norm) == 2
    norm.clear()
    assert len(norm) == 0 and norm.norm(kept) == fastgrad.global_norm(kept) and norm.missed == 2
    norm.add(kept)
    del kept
    assert len(norm) == 0


def test_the_last_time_counts_and_a_step_uses_up(cpu_backend):
    norm = GradientNorm()
    grad, p = np.full(4, 3.0), np.zeros(4)
    norm.add(grad)
    grad *= 2
    norm.add(grad)
    norm.add(np.ones(2))
    assert norm.norm(grad) == 12.0
    other = np.ones(7)
    norm.add(other)
    assert fastgrad.sgd_step(p, grad, lr=1.0, max_norm=1.0, gradient_norm=norm) == 12.0
    assert len(norm) == 1  # what another step will ask for
    grad[:] = 0.0  # by hand, and not fed again
    assert fastgrad.sgd_step(p, grad, lr=1.0, max_norm=1.0, gradient_norm=norm) == 0.0 and norm.missed == 1


def model(dtype, rng=1):
    return Sequential(
        Embedding(11, 6, rng=rng, dtype=dtype), LSTM(6, 5, rng=2, dtype=dtype), Linear(5, 3, dtype=dtype, rng=3)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_feed_what_they_accumulate(cpu_backend, dtype, optimizer):
    def train(norm):
        layers = model(dtype)
        made = optimizer(layers.parameters(), lr=0.05, max_norm=0.7, gradient_norm=norm)
        reports = []
        for step in range(3):
            made.zero_grad()
            for part in range(1 + step):  # several backward passes: their sum is what counts
                codes = np.random.default_rng([step, part]).integers(0, 11, (4, 2))
                y = layers.forward(codes)
                layers.backward(random(10 * step + part, y.shape, dtype))
            assert norm is None or len(norm) == len(layers.parameters())
            reports.append(made.step())
            assert norm is None or norm.missed == 0
        return [p.data for p in layers.parameters()], reports

    (ours, reports), (others, expected) = train(GradientNorm()), train(None)
    assert_same(ours, others)
    assert reports == expected and any(report.clip_coefficient < 1 for report in reports)


def test_gradients_that_do_not_come_from_a_backward_pass(cpu_backend):
    norm = GradientNorm()
    params = [Parameter(np.zeros(3)), Parameter(np.zeros(2))]
    made = SGD(params, lr=1.0, max_norm=1e9, gradient_norm=norm)
    params[0].accumulate(np.ones(3))
    params[1].grad = np.full(2, 5.0)  # stored by hand: never fed
    assert made.step().grad_norm == pytest.approx(math.sqrt(53)) and norm.missed == 1
    params[0].accumulate(np.ones(3))
    made.zero_grad()  # fed, then dropped
    assert len(norm) == 0
    params[0].accumulate(np.full(3, 4.0))
    params[0].grad = params[0].grad * 2  # another array than the one fed
    params[1].accumulate(np.zeros(2))
    assert made.step().grad_norm == pytest.approx(math.sqrt(3 * 64)) and norm.missed == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_policies_for_nan(cpu_backend, value):
    for policy in ("skip", "raise", "propagate"):
        norm = GradientNorm()
        parameter = Parameter(np.zeros(3), name="w")
        made = Adam([parameter], max_norm=1.0, nonfinite=policy, gradient_norm=norm)
        parameter.accumulate(np.array([1.0, value, 2.0]))
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="not finite in w "):
                made.step()
        else:
            report = made.step()
            assert report.skipped == (policy == "skip") and not math.isfinite(report.grad_norm)
        assert norm.missed == 0
        assert (parameter.data == 0).all() == (policy != "propagate")


def test_copies_and_pickles_are_fed_nothing():
    norm = GradientNorm()
    parameter = Parameter(np.zeros(2))
    SGD([parameter], max_norm=1.0, gradient_norm=norm)
    parameter.accumulate(np.ones(2))
    for other in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        assert len(norm) == 1 and len(other.gradient_norm) == 0
        np.testing.assert_array_equal(other.grad, parameter.grad)


def test_errors():
    p = np.zeros(3)
    with pytest.raises(TypeError, match=r"gradient_norm: expected a fastgrad.GradientNorm, got float"):
        fastgrad.sgd_step(p, p.copy(), lr=1.0, max_norm=1.0, gradient_norm=1.0)
    with pytest.raises(TypeError, match=r"gradient_norm: expected a fastgrad.GradientNorm, got bool"):
        Adam([p], gradient_norm=True)
    with pytest.raises(TypeError, match=r"grads\[1\]: expected float32 or float64, got int64"):
        GradientNorm().add([p, np.arange(3)])
    with pytest.raises(TypeError, match="grads: expected an array or a list of arrays, got dict"):
        GradientNorm().add({"w": p})
