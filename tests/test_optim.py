"""Optimizers: torch's trajectories, groups, clipping inside the step, NaN policies, state, errors."""

from __future__ import annotations

import math

import backends
import numpy as np
import pytest
from fastgrad.kernels import runtime
from support import random
from tolerances import assert_close

import fastgrad
from fastgrad.clipping import PROJECTION
from fastgrad.layers import Parameter
from fastgrad.optim import SGD, Adam, AdamW, RMSprop, StepReport

SHAPES = [(5, 3), (7,), (2, 3, 4), (1,), (0,)]
STEPS = 12

CASES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    (RMSprop, {"lr": 0.05}),
    (RMSprop, {"lr": 0.05, "weight_decay": 0.1, "alpha": 0.9, "eps": 1e-6, "maximize": True}),
    (RMSprop, {"lr": 0.05, "momentum": 0.9}),
    (RMSprop, {"lr": 0.05, "centered": True, "weight_decay": 0.1}),
    (RMSprop, {"lr": 0.05, "momentum": 0.8, "centered": True}),
    (Adam, {"lr": 0.05}),
    (Adam, {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
    (Adam, {"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}),
    (Adam, {"lr": 0.05, "maximize": True, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.05}),
    (AdamW, {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
]
IDS = [optimizer.__name__ + "".join(f"-{key}" for key in options if key != "lr") for optimizer, options in CASES]


@pytest.fixture(autouse=True)
def optimizers_on_the_device(request, monkeypatch):
    """Where a test runs on a device, so do its optimizers."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") in backends.DEVICES:
        backends.divert_optimizers(monkeypatch, request.getfixturevalue("backend"))


def gradients(step, dtype):
    # Large and small in turns, so that a clip at 3 acts in some steps only.
    scale = 10.0 ** ((step % 3) - 1)
    return [random(1000 * (step + 1) + k, shape, dtype, scale) for k, shape in enumerate(SHAPES)]


def starts(dtype):
    return [random(k, shape, dtype) for k, shape in enumerate(SHAPES)]


def torch_trajectory(name, options, dtype, max_norm=None, absent=lambda step, k: False):
    """Return torch's parameters after STEPS steps, its optimizer, and the norms seen."""
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.from_numpy(array)) for array in starts(dtype)]
    optimizer = getattr(torch.optim, name)(params, **options)
    norms = []
    for step in range(STEPS):
        for k, (parameter, grad) in enumerate(zip(params, gradients(step, dtype), strict=True)):
            parameter.grad = None if absent(step, k) else torch.from_numpy(grad)
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, math.inf if max_norm is None else max_norm)))
        optimizer.step()
    return [parameter.detach().numpy() for parameter in params], optimizer, norms


def trajectory(make, dtype, absent=lambda step, k: False):
    params = [Parameter(array, name=f"p{k}") for k, array in enumerate(starts(dtype))]
    optimizer = make(params)
    reports = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for k, (parameter, grad) in enumerate(zip(params, gradients(step, dtype), strict=True)):
            if not absent(step, k):
                parameter.grad = grad
        reports.append(optimizer.step())
    return [parameter.data for parameter in params], optimizer, reports


def assert_same(ours, theirs):
    # torch in float32 is no oracle: two roundings of a 12-step trajectory, as "torch" allows.
    for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(mine, other, "torch", magnitude="largest", label=f"parameter {k}")


@pytest.mark.parametrize("max_norm", [None, 3.0])
@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=IDS)
def test_trajectory_is_torchs(backend, dtype, optimizer, options, max_norm):
    expected, _, norms = torch_trajectory(optimizer.__name__, options, dtype, max_norm)
    actual, _, reports = trajectory(lambda p: optimizer(p, **options, max_norm=max_norm), dtype)
    assert_same(actual, expected)
    for report, norm in zip(reports, norms, strict=True):
        assert report.grad_norm == pytest.approx(norm, rel=1e-5)
        assert report.clip_coefficient == pytest.approx(1.0 if max_norm is None else min(1, max_norm / norm), rel=1e-5)
        assert not report.skipped
    if max_norm:
        assert len({report.clip_coefficient < 1 for report in reports}) == 2


@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=IDS)
def test_missing_gradients_are_left_out_as_in_torch(backend, optimizer, options):
    def absent(step, k):
        return (step + k) % 3 == 0

    expected, _, _ = torch_trajectory(optimizer.__name__, options, np.float64, absent=absent)
    actual, ours, _ = trajectory(lambda p: optimizer(p, **options), np.float64, absent)
    assert_same(actual, expected)
    if optimizer is not SGD:
        assert [entry["step"] for entry in ours.state_dict()["state"].values()] == [8] * len(SHAPES)


def test_defaults_are_torchs():
    torch = pytest.importorskip("torch")
    for optimizer in (SGD, RMSprop, Adam, AdamW):
        theirs = getattr(torch.optim, optimizer.__name__)([torch.zeros(1)]).param_groups[0]
        mine = dict(optimizer([np.zeros(1)]).param_groups[0])
        del mine["params"]
        assert [mine.pop(key) for key in PROJECTION] == [None] * 3
        assert mine == {key: theirs[key] for key in mine}


def test_groups(backend):
    torch = pytest.importorskip("torch")
    ours, theirs = starts(np.float64), [torch.nn.Parameter(torch.from_numpy(a)) for a in starts(np.float64)]
    mine = Adam([{"params": ours[:2], "lr": 0.2}, {"params": ours[2:], "weight_decay": 0.5}], lr=0.01, max_norm=3.0)
    other = torch.optim.Adam([{"params": theirs[:2], "lr": 0.2}, {"params": theirs[2:], "weight_decay": 0.5}], lr=0.01)
    for step in range(STEPS):
        grads = gradients(step, np.float64)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 3.0)  # one norm over both groups
        other.step()
        kept = [grad.copy() for grad in grads]
        assert mine.step(grads).grad_norm == pytest.approx(float(norm), rel=1e-12)
        for grad, before in zip(grads, kept, strict=True):
            np.testing.assert_array_equal(grad, before)  # read, never rewritten
        if step == 5:
            mine.param_groups[1]["lr"] = other.param_groups[1]["lr"] = 0.3
    assert_same(ours, [parameter.detach().numpy() for parameter in theirs])


def poisoned(value, at=1):
    grads = gradients(0, np.float32)
    grads[at].flat[0] = value
    return grads


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [
    lambda p, **o: Adam(p, **o), lambda p, **o: SGD(p, 0.1, momentum=0.9, **o),
    lambda p, **o: RMSprop(p, momentum=0.9, centered=True, **o),
])  # fmt: skip
def test_nonfinite_skip_changes_nothing(backend, make, value):
    params = starts(np.float32)
    optimizer = make(params, max_norm=1.0)
    optimizer.step(gradients(0, np.float32))
    before = [array.copy() for array in params]
    state = {(i, k): np.array(v) for i, entry in optimizer.state_dict()["state"].items() for k, v in entry.items()}
    report = optimizer.step(poisoned(value))
    assert report.skipped and report.clip_coefficient == 0.0 and not math.isfinite(report.grad_norm)
    assert optimizer.skipped_steps == 1
    for array, kept in zip(params, before, strict=True):
        np.testing.assert_array_equal(array, kept)
    for index, entry in optimizer.state_dict()["state"].items():
        for key, now in entry.items():
            np.testing.assert_array_equal(now, state[index, key])
    assert not optimizer.step(gradients(1, np.float32)).skipped
    assert optimizer.skipped_steps == 1


def test_nonfinite_raise_names_the_tensors(backend):
    params = [Parameter(array, name=name) for array, name in zip(starts(np.float32), "abcde", strict=True)]
    optimizer = Adam(params, nonfinite="raise")
    before = [parameter.data.copy() for parameter in params]
    with pytest.raises(FloatingPointError, match=r"not finite in c \(norm nan\); nothing was changed"):
        optimizer.step(poisoned(math.nan, at=2))
    plain = Adam(starts(np.float32), nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"params\[1\] \(norm inf\)"):
        plain.step(poisoned(math.inf))
    for parameter, kept in zip(params, before, strict=True):
        np.testing.assert_array_equal(parameter.data, kept)
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_propagate_is_torchs(backend, value, max_norm):
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.from_numpy(array)) for array in starts(np.float32)]
    for parameter, grad in zip(theirs, poisoned(value), strict=True):
        parameter.grad = torch.from_numpy(grad)
    torch.nn.utils.clip_grad_norm_(theirs, max_norm or math.inf)
    if max_norm is None:  # torch's own clip at infinity would already multiply by NaN
        for parameter, grad in zip(theirs, poisoned(value), strict=True):
            parameter.grad = torch.from_numpy(grad)
    torch.optim.SGD(theirs, lr=0.1).step()
    ours = starts(np.float32)
    report = SGD(ours, lr=0.1, max_norm=max_norm, nonfinite="propagate").step(poisoned(value))
    assert not report.skipped
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(other.detach().numpy()))


def test_no_overflow_in_the_norm(backend):
    grads = [np.full(4, 3e38, np.float32)]
    report = SGD([np.zeros(4, np.float32)], lr=1.0, max_norm=1.0).step(grads)
    assert report.grad_norm == pytest.approx(6e38, rel=1e-6) and not report.skipped


@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=IDS)
def test_state_dict_goes_on_bit_for_bit(backend, dtype, optimizer, options):
    params = starts(dtype)
    first = optimizer(params, **options)
    for step in range(4):
        first.step(gradients(step, dtype))
    saved = first.state_dict()
    copied = [array.copy() for array in params]
    second = optimizer(copied, lr=123.0)
    second.load_state_dict(saved)
    for step in range(4, 8):
        assert first.step(gradients(step, dtype)) == second.step(gradients(step, dtype))
    for array, other in zip(params, copied, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=IDS)
def test_torchs_state_dict_fits(backend, optimizer, options):
    torch = pytest.importorskip("torch")
    params, theirs, _ = torch_trajectory(optimizer.__name__, options, np.float64)
    ours = [array.copy() for array in params]
    mine = optimizer(ours, lr=9.0)
    mine.load_state_dict(theirs.state_dict())
    tensors = theirs.param_groups[0]["params"]
    for parameter, grad in zip(tensors, gradients(STEPS, np.float64), strict=True):
        parameter.grad = torch.from_numpy(grad)
    theirs.step()
    mine.step(gradients(STEPS, np.float64))
    assert_same(ours, [parameter.detach().numpy() for parameter in tensors])


def test_load_state_dict_changes_all_or_nothing(backend):
    optimizer = Adam(starts(np.float64), lr=0.5)
    optimizer.step(gradients(0, np.float64))
    good = optimizer.state_dict()
    target = Adam(starts(np.float64))
    for change, match in [
        ({"param_groups": [{**good["param_groups"][0], "params": [0, 1]}]}, "expected groups of .*5.*got .*2"),
        ({"param_groups": [{"params": [0, 1, 2, 3, 4], "lr": 1.0}]}, "lacks"),
        ({"param_groups": [{**good["param_groups"][0], "lr": -1.0}]}, "lr"),
        ({"state": {0: {"exp_avg": np.zeros(3)}}}, "exp_avg of parameter 0"),
        ({"state": {0: {"momentum_buffer": np.zeros(3)}}}, "unknown entry 'momentum_buffer'"),
        ({"state": {0: {"step": 1}}}, r"parameter 0 lacks \['exp_avg', 'exp_avg_sq'\]"),
        ({"state": {17: {}}}, "17"),
    ]:
        with pytest.raises(ValueError, match=match):
            target.load_state_dict({**good, **change})
        assert target.param_groups[0]["lr"] == 1e-3 and target.state_dict()["state"] == {}


def test_strided_and_single_arrays(backend):
    plain = random(1, (6, 4))
    strided = np.zeros((6, 8))[:, ::2]
    strided[...] = plain
    grad = np.asfortranarray(random(2, (6, 4)))
    fortran = np.asfortranarray(plain)
    for array in (plain, strided, fortran):
        Adam(array, lr=0.1, max_norm=0.5).step(grad)
    np.testing.assert_array_equal(strided, plain)
    np.testing.assert_array_equal(fortran, plain)


def test_strided_arrays_in_groups(backend):
    plain = [random(k, (6, 4)) for k in range(3)]
    strided = [np.zeros((6, 8))[:, ::2] for _ in plain]
    for view, array in zip(strided, plain, strict=True):
        view[...] = array
    made = [
        Adam([{"params": params[:1]}, {"params": params[1:], "lr": 0.3}], lr=0.1, max_norm=0.5)
        for params in (plain, strided)
    ]
    for step in range(3):
        grads = [random(10 * step + k, (6, 4)) for k in range(3)]
        grads[1] = grads[1][::-1]
        assert made[0].step(grads) == made[1].step(grads)
        for view, array in zip(strided, plain, strict=True):
            np.testing.assert_array_equal(view, array)


def test_arrays_of_two_groups_may_not_overlap(backend):
    memory = random(1, 30)
    params = [memory[:10], memory[10:20]]
    made = SGD([{"params": [params[0]]}, {"params": [params[1]]}], lr=0.1)
    made.step([memory[20:30], np.ones(10)])
    before = memory.copy()
    for grads in ([memory[5:15], np.ones(10)], [np.ones(10), memory[5:15]], [np.ones(10), params[0]]):
        with pytest.raises(ValueError, match=r"grads\[[01]\] and params\[[01]\] overlap"):
            made.step(grads)
    with pytest.raises(TypeError, match=r"grads\[1\] is float32"):
        made.step([np.ones(10), np.ones(10, np.float32)])
    with pytest.raises(ValueError, match=r"grads\[1\]: expected the shape of params\[1\]"):
        made.step([np.ones(10), np.ones(11)])
    np.testing.assert_array_equal(memory, before)


def test_nothing_to_do(backend):
    parameter = Parameter(np.ones(3))
    optimizer = Adam([parameter], max_norm=1.0)
    assert optimizer.step() == StepReport(0.0, 1.0, False)
    assert (parameter.data == 1).all() and optimizer.state_dict()["state"] == {}
    parameter.grad = np.zeros(3)
    assert optimizer.step() == StepReport(0.0, 1.0, False)
    assert (parameter.data == 1).all() and optimizer.state_dict()["state"][0]["step"] == 1
    optimizer.zero_grad()
    assert parameter.grad is None


def test_a_dropped_bias_correction_is_noticed(cpu_backend, monkeypatch):
    """A planted fault: Adam that always takes its first step's bias correction must fail the comparison."""
    original = Adam._launch
    monkeypatch.setattr(
        Adam, "_launch", lambda self, stem, g, i, keys, args: original(self, stem, g, i, keys, (1, *args[1:]))
    )
    with pytest.raises(AssertionError, match=r"parameter 0.*entries are off"):
        test_trajectory_is_torchs(cpu_backend, np.float64, Adam, {"lr": 0.05}, None)


P = np.zeros(3)
ERRORS = [
    (lambda: Adam([]), ValueError, "at least one parameter"),
    (lambda: Adam([P, P]), ValueError, r"params\[1\] is params\[0\] again"),
    (lambda: Adam([P, np.zeros(3, np.float32)]), TypeError, r"params\[1\] is float32 but params\[0\] is float64"),
    (lambda: Adam([np.zeros(3, int)]), TypeError, "int64"),
    (lambda: Adam([[1.0]]), TypeError, r"params\[0\]"),
    (lambda: Adam([P], lr=-1.0), ValueError, "lr"),
    (lambda: Adam([P], lr=math.nan), ValueError, "lr"),
    (lambda: Adam([P], betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
    (lambda: Adam([P], betas=0.9), ValueError, "betas: expected two"),
    (lambda: Adam([P], nonfinite="ignore"), ValueError, "nonfinite.*'skip'.*'ignore'"),
    (lambda: Adam([P], max_norm=-1.0), ValueError, "max_norm"),
    (lambda: RMSprop([P], alpha=1.5), ValueError, "alpha: expected a finite number >= 0 and <= 1, got 1.5"),
    (lambda: RMSprop([P], momentum=-0.1), ValueError, "momentum"),
    (lambda: RMSprop([P], eps=math.nan), ValueError, "eps"),
    (lambda: SGD([P], nesterov=True), ValueError, "nesterov: needs momentum"),
    (lambda: SGD([{"params": [P], "beta": 1}]), ValueError, r"unknown entries \['beta'\]"),
    (lambda: SGD([{"lr": 1}]), ValueError, "no entry 'params'"),
    (lambda: SGD([{"params": [P]}, P]), TypeError, r"params\[1\]"),
    (lambda: SGD([P]).step(), ValueError, r"params\[0\] is a plain array"),
    (lambda: SGD([P]).step([P, P]), ValueError, "grads: expected 1 entries, one for each parameter, got 2"),
    (lambda: SGD([P]).step([np.zeros(4)]), ValueError, r"grads\[0\].*\(3,\).*\(4,\)"),
    (lambda: SGD([P]).step([np.zeros(3, np.float32)]), TypeError, r"grads\[0\] is float32"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- limits of the weights

LIMITS = [
    {"weight_range": (-0.4, 0.6)},
    {"max_weight_norm": 1.5},
    {"max_weight_norm": 0.9, "weight_norm_axis": 0},
]


def clipped_by_hand(params, limits):
    if "weight_range" in limits:
        fastgrad.clip_by_value(params, *limits["weight_range"])
    else:
        fastgrad.clip_by_norm(params, limits["max_weight_norm"], axis=limits.get("weight_norm_axis"))


@pytest.mark.parametrize("limits", LIMITS, ids=["range", "norm", "rows"])
@pytest.mark.parametrize("optimizer", [SGD, RMSprop, AdamW])
def test_weights_are_clipped_after_each_step(backend, dtype, optimizer, limits):
    ours, free = starts(dtype), starts(dtype)
    limited = optimizer([{"params": ours[:3], **limits}, {"params": ours[3:]}], lr=0.05)
    other = optimizer(free, lr=0.05)
    for step in range(STEPS):
        grads = gradients(step, dtype)
        grads[1] = None if step == 2 else grads[1]
        limited.step(grads)
        other.step(grads)
        with fastgrad.backend("reference"):
            clipped_by_hand([free[0], free[2]] if step == 2 else free[:3], limits)
        assert_same(ours, free)
    assert (np.abs(ours[0]) < np.abs(starts(dtype)[0])).any()


@pytest.mark.parametrize(("optimizer", "options"), [
    (SGD, {"momentum": 0.9}), (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (SGD, {"maximize": True}),
    (RMSprop, {"momentum": 0.5, "centered": True}), (RMSprop, {"centered": True, "weight_decay": 0.1}),
    (Adam, {"amsgrad": True, "weight_decay": 0.1}), (AdamW, {"amsgrad": True}),
])  # fmt: skip
def test_a_range_of_weights_has_the_bits_of_a_pass_of_its_own(backend, dtype, optimizer, options):
    ours, free = starts(dtype), starts(dtype)
    limited, other = optimizer(ours, lr=0.05, weight_range=(-0.4, 0.6), **options), optimizer(free, lr=0.05, **options)
    for step in range(3):
        grads = gradients(step, dtype)
        if step == 2:
            grads[0][...] = np.nan
        limited.nonfinite = other.nonfinite = "propagate"
        limited.step(grads)
        other.step(grads)
        fastgrad.clip_by_value(free, -0.4, 0.6)
        for mine, wanted in zip(ours, free, strict=True):
            np.testing.assert_array_equal(mine, wanted)


def test_a_range_of_weights_is_part_of_the_update_on_the_cpu(monkeypatch):
    params, ran = [np.ones(5, np.float32)], []
    with fastgrad.backend("cpu"):
        optimizer = AdamW(params, weight_range=(-0.5, 0.5))
        run = runtime.run
        monkeypatch.setattr(runtime, "run", lambda kernel, *args: ran.append(kernel.name) or run(kernel, *args))
        optimizer.step([np.ones(5, np.float32)])
    assert (params[0] == 0.5).all()
    assert [name.split(".")[0] for name in ran] == ["health_cpu", "adam_cpu"]


def test_rows_of_weights_against_torch_renorm(backend):
    torch = pytest.importorskip("torch")
    ours, theirs = starts(np.float64)[0], torch.nn.Parameter(torch.from_numpy(starts(np.float64)[0]))
    mine = SGD([ours], lr=0.1, momentum=0.9, max_weight_norm=0.8, weight_norm_axis=0)
    other = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for step in range(STEPS):
        grad = gradients(step, np.float64)[0]
        theirs.grad = torch.from_numpy(grad.copy())
        mine.step([grad])
        other.step()
        with torch.no_grad():
            theirs.copy_(torch.renorm(theirs, 2, 0, 0.8))
    assert np.abs(ours - theirs.detach().numpy()).max() < 1e-4  # 1e-6 against 1e-7 beside the norm, in each step


def test_a_skipped_step_leaves_weights_inside_their_limits(backend):
    params = [np.array([0.5, -0.5])]
    optimizer = SGD(params, lr=1.0, weight_range=(-1, 1))
    assert optimizer.step([np.array([np.nan, 1.0])]).skipped
    np.testing.assert_array_equal(params[0], [0.5, -0.5])


def test_limits_go_along_with_the_state(backend):
    import json

    params = starts(np.float64)
    optimizer = Adam(params, weight_range=(-1, 1))
    groups = json.loads(json.dumps(optimizer.state_dict()["param_groups"]))
    other = Adam(params)
    other.load_state_dict({"state": {}, "param_groups": groups})
    assert other.param_groups[0]["weight_range"] == (-1.0, 1.0)
    assert other.param_groups[0]["max_weight_norm"] is None
    for key in PROJECTION:  # as torch's own
        del groups[0][key]
    other.load_state_dict({"state": {}, "param_groups": groups})
    assert other.param_groups[0]["weight_range"] is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"weight_range": (1, -1)}, r"weight_range\[0\]: expected at most weight_range\[1\] = -1.0, got 1.0"),
        ({"weight_range": 1.0}, r"weight_range: expected two numbers \(low, high\) or None, got 1.0"),
        ({"weight_range": (0, 1), "max_weight_norm": 1}, "weight_range: expected None beside max_weight_norm"),
        ({"max_weight_norm": -1}, "max_weight_norm: expected a number >= 0, got -1.0"),
        ({"max_weight_norm": 1, "weight_norm_axis": 1}, r"weight_norm_axis: expected None .* or 0 .*, got 1"),
        ({"weight_norm_axis": 0}, "weight_norm_axis: needs max_weight_norm"),
    ],
)
def test_limits_that_make_no_sense(limits, message):
    with pytest.raises(ValueError, match=message):
        AdamW([np.zeros(3)], **limits)
    with pytest.raises(ValueError, match=message):
        SGD([{"params": [np.zeros(3)], **limits}])
