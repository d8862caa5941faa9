"""What a step says of its gradients and of what it changed, and what it does where they are not finite."""

from __future__ import annotations

import math
import pickle

import backends
import numpy as np
import pytest
from support import random
from tolerances import assert_close

import fastgrad
from fastgrad import GradientNorm
from fastgrad.layers import Parameter
from fastgrad.optim import SGD, Adam, AdamW, RMSprop

SHAPES = [(5, 3), (7,), (16385,), (1,), (0,), (33,)]
MAKERS = {
    "SGD": lambda p, **o: SGD(p, lr=0.1, **o),
    "momentum": lambda p, **o: SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1, **o),
    "RMSprop": lambda p, **o: RMSprop(p, lr=0.05, momentum=0.9, centered=True, **o),
    "Adam": lambda p, **o: Adam(p, lr=0.05, amsgrad=True, weight_decay=0.1, **o),
    "AdamW": lambda p, **o: AdamW(p, lr=0.05, weight_decay=0.3, **o),
}


@pytest.fixture(autouse=True)
def optimizers_on_the_device(request, monkeypatch):
    """Where a test runs on a device, so do its optimizers."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") in backends.DEVICES:
        backends.divert_optimizers(monkeypatch, request.getfixturevalue("backend"))


def draw(seed: int, dtype) -> list[np.ndarray]:
    arrays = [random(seed + k, shape, dtype) for k, shape in enumerate(SHAPES)]
    arrays[2][::3] = 0
    return arrays


def ratio(before: np.ndarray, after: np.ndarray) -> float:
    moved, held = (np.linalg.norm(a.astype(np.float64)) for a in (after - before, before))
    return 0.0 if moved == 0 else math.inf if held == 0 else moved / held


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("grouped", [False, True])
def test_each_step_says_what_health_says(backend, dtype, name, grouped):
    params = [Parameter(a, name=f"p{k}") for k, a in enumerate(draw(0, dtype))]
    params[3].data[...] = 0
    groups = [{"params": params[:2], "lr": 0.3}, {"params": params[2:], "weight_decay": 0.0}]
    optimizer = MAKERS[name](groups if grouped else params, max_norm=1.0)
    for step in range(4):
        grads = draw(100 * (step + 1), dtype)
        if step == 2:
            grads[1] = None
        before = [p.data.copy() for p in params]
        given = [g for g in grads if g is not None]
        report = optimizer.step(grads, grad_scale=2.0)
        with fastgrad.backend("reference"):
            expected = fastgrad.health(given, [f"p{k}" for k, g in enumerate(grads) if g is not None])
        h = report.health
        assert h.names == expected.names and h.sizes.tolist() == expected.sizes.tolist() and len(h) == len(given)
        for kind in ("nan", "inf", "zero", "subnormal", "max_abs"):
            np.testing.assert_array_equal(getattr(h, kind), getattr(expected, kind), err_msg=kind)
        assert_close(h.norm, expected.norm, "norm")
        taking_part = [k for k, g in enumerate(grads) if g is not None]
        exact = [ratio(before[k], params[k].data) for k in taking_part]
        np.testing.assert_allclose(h.update_ratio, exact, rtol=1e-5 if dtype is np.float32 else 1e-12)
        if step == 0:
            assert h["p3"].update_ratio == math.inf and h["p4"].update_ratio == 0
        assert report.grad_norm == pytest.approx(0.5 * float(np.linalg.norm(h.norm)), rel=1e-12)


def test_the_norm_has_the_bits_it_has_without(backend, dtype):
    reports = []
    for health in (True, False):
        params, grads = draw(0, dtype), draw(50, dtype)
        optimizer = Adam([{"params": params[:2]}, {"params": params[2:]}], max_norm=1.0, health=health)
        reports.append([optimizer.step(grads) for _ in range(3)] + [a.tobytes() for a in params])
    assert reports[0] == reports[1] and reports[1][0].health is None


def test_fed_gradients_have_their_health(cpu_backend, dtype):
    norm, params, grads = GradientNorm(), draw(0, dtype), draw(50, dtype)
    optimizer, plain = Adam(params, gradient_norm=norm), Adam(draw(0, dtype))
    norm.add(grads[1:4])
    report, expected = optimizer.step(grads), plain.step(grads)
    assert norm.missed == 3 and report == expected
    assert [tuple(t) for t in report.health] == [tuple(t) for t in expected.health]


def test_names_are_told_apart():
    params = [Parameter(np.ones(2), name=name) for name in ("weight", "bias", "weight", "")]
    report = SGD(params, lr=0.1).step([np.ones(2), None, np.ones(2), np.ones(2)])
    assert report.health.names == ("weight (params[0])", "weight (params[2])", "params[3]")
    copy = pickle.loads(pickle.dumps(report))
    assert list(copy.health) == list(report.health) and copy == report
    assert "update/weight" in str(report.health) and "0.1" in str(report.health)


@pytest.mark.parametrize("name", MAKERS)
def test_a_skipped_step_says_what_it_found_and_changes_nothing(backend, name):
    params, grads = draw(0, np.float32), draw(50, np.float32)
    optimizer = MAKERS[name](params)
    optimizer.step(grads)
    before, state = [p.copy() for p in params], pickle.dumps(optimizer.state_dict()["state"])
    grads[1][3], grads[5][:2] = np.nan, np.inf
    h = optimizer.step(grads).health
    assert (h["params[1]"].nan, h["params[5]"].inf, h.nan.sum(), h.inf.sum()) == (1, 2, 1, 2)
    assert h.update_ratio.tolist() == [0] * len(SHAPES)
    for mine, other in zip(params, before, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert pickle.dumps(optimizer.state_dict()["state"]) == state


def test_a_run_of_skipped_steps_raises(backend):
    params = [Parameter(np.ones(3), name="a"), Parameter(np.ones(2), name="b")]
    optimizer = SGD(params, lr=0.1, max_skips=3)
    good, bad = [np.ones(3), np.ones(2)], [np.ones(3), np.array([1.0, np.nan])]
    for grads in (bad, bad, good, bad, bad):
        assert optimizer.step(grads).skipped == (grads is bad)  # two in a row at most
    before = [p.data.copy() for p in params]
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row were skipped, in the last of them .* b \(norm nan\)"
    ):
        _ = optimizer.step(bad).grad_norm  # on a device it comes when the report is read
    for parameter, kept in zip(params, before, strict=True):
        np.testing.assert_array_equal(parameter.data, kept)
    assert optimizer.skipped_steps == 5 and optimizer.state_dict()["skipped_steps"] == 5
    endless = SGD(params, lr=0.1, max_skips=None)
    assert all(endless.step(bad).skipped for _ in range(30))


def test_the_run_is_20_steps_unless_told():
    optimizer = Adam([np.ones(2)], health=False)
    for _ in range(19):
        optimizer.step([np.full(2, np.inf)])
    with pytest.raises(FloatingPointError, match=r"20 steps in a row .* in params\[0\] \(norm inf\)"):
        optimizer.step([np.full(2, np.inf)])
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"max_skips: expected 1 or more, got {wrong}"):
            Adam([np.ones(2)], max_skips=wrong)
    for wrong in (2.0, True):
        with pytest.raises(TypeError, match="max_skips: expected an integer, got"):
            Adam([np.ones(2)], max_skips=wrong)


def test_what_moves_where_nothing_is_in_the_way_of_a_formula(cpu_backend, dtype):
    """Past the end of an array a formula may make NaN of zeros, as Adam does without eps: it is not counted."""
    params = [random(0, 5, dtype)]
    before = params[0].copy()
    report = Adam(params, lr=0.1, eps=0.0).step([random(1, 5, dtype)])
    assert report.health.update_ratio[0] == pytest.approx(ratio(before, params[0]), rel=1e-5)


def test_the_ratio_does_not_depend_on_threads(thread_counts, dtype):
    seen = set()
    for threads in [*thread_counts, *thread_counts]:
        fastgrad.set_num_threads(threads)
        optimizer = Adam([random(0, 300_007, dtype), random(1, 70_000, dtype)])
        seen.add(optimizer.step([random(2, 300_007, dtype), random(3, 70_000, dtype)]).health.update_ratio.tobytes())
    assert len(seen) == 1
