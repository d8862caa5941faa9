"""adam_step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from fastgrad.kernels import adam_ref
from support import layouts, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import adam_step

SHAPES = [(13, 17), (), (0,), (1,), (65537,), (2, 3, 5), (4097,)]
OPTIONS = {
    "adamw": {"weight_decay": 0.01},
    "adam": {"decoupled": False},
    "coupled": {"decoupled": False, "weight_decay": 0.1},
    "amsgrad": {"decoupled": False, "amsgrad": True},
    "amsgrad-decay-maximize": {"weight_decay": 0.05, "amsgrad": True, "maximize": True},
    "maximize": {"decoupled": False, "maximize": True, "weight_decay": 0.1},
    "constants": {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3},
    "no-momentum": {"betas": (0.0, 0.0)},
    "no-eps": {"eps": 0.0},
    "clipped": {"max_norm": 0.5, "weight_decay": 0.01},
    "loose": {"max_norm": 1e6},
    "scaled": {"grad_scale": 1024.0},
    "scaled-clipped-maximize": {"grad_scale": 8.0, "max_norm": 2.0, "maximize": True},
}


SMALL = [(13, 17), (), (1,), (2, 3, 5), (67,)]


def start(dtype, shapes=SHAPES, amsgrad=False):
    """Return params and state zeros, as keyword arguments of adam_step."""
    lists = {"params": [random(k, shape, dtype) for k, shape in enumerate(shapes)]}
    for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])):
        lists[name] = [np.zeros(shape, dtype) for shape in shapes]
    return lists


def gradients(step, dtype, shapes=SHAPES, scale=1.0):
    return [random(1000 * step + k, shape, dtype, scale=scale / step) for k, shape in enumerate(shapes)]


def train(dtype, steps=3, shapes=SHAPES, *, amsgrad=False, **options):
    lists = start(dtype, shapes, amsgrad)
    norms = []
    for step in range(1, steps + 1):
        grads = gradients(step, dtype, shapes)
        before = [g.copy() for g in grads]
        norms.append(adam_step(grads=grads, step=step, **lists, **options))
        for grad, same in zip(grads, before, strict=True):
            np.testing.assert_array_equal(grad, same)
    return lists, norms


def oracle_train(dtype, steps=3, shapes=SHAPES, *, amsgrad=False, **options):
    """Train in float64 on the reference, from the parameters and gradients that `dtype` can hold."""
    lists = {name: [a.astype(np.float64) for a in arrays] for name, arrays in start(dtype, shapes, amsgrad).items()}
    norms = []
    with fastgrad.backend("reference"):
        for step in range(1, steps + 1):
            grads = [g.astype(np.float64) for g in gradients(step, dtype, shapes)]
            norms.append(adam_step(grads=grads, step=step, **lists, **options))
    return lists, norms


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_float64(backend, dtype, options):
    lists, norms = train(dtype, **options)
    expected, expected_norms = oracle_train(dtype, **options)
    for name, arrays in lists.items():
        for array, wanted in zip(arrays, expected[name], strict=True):
            assert array.dtype == dtype
            assert_close(array, wanted, "step", magnitude="largest", label=f"{name} {array.shape}")
    for norm, wanted in zip(norms, expected_norms, strict=True):
        assert (norm is None) == ("max_norm" not in options)
        if norm is not None:
            assert norm.shape == () and norm.dtype == np.float64
            assert_close(norm, wanted, "norm")


@pytest.mark.parametrize(
    "name", [name for name in OPTIONS if "clipped" not in name and name not in {"loose", "scaled"}]
)
def test_trajectory_of_torch(backend, name):
    torch = pytest.importorskip("torch")
    options = OPTIONS[name]
    lists, _ = train(np.float64, steps=20, shapes=SMALL, **options)
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64, SMALL)["params"]]
    given = {name: value for name, value in options.items() if name != "decoupled"}
    optimizer = {True: torch.optim.AdamW, False: torch.optim.Adam}[options.get("decoupled", True)]
    optimizer = optimizer(parameters, **{"lr": 1e-3, "weight_decay": 0.0} | given)
    for step in range(1, 21):
        for parameter, grad in zip(parameters, gradients(step, np.float64, SMALL), strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
    names = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "max_exp_avg_sq": "max_exp_avg_sq"}
    for k, parameter in enumerate(parameters):
        assert_close(lists["params"][k], parameter.detach().numpy(), "torch", magnitude="largest")
        for ours, theirs in names.items():
            if ours in lists:
                assert_close(lists[ours][k], optimizer.state[parameter][theirs].numpy(), "torch", magnitude="largest")


def test_clip_and_step_of_torch(backend):
    torch = pytest.importorskip("torch")
    lists, norms = train(np.float64, steps=5, max_norm=0.7, grad_scale=4.0, decoupled=False)
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64)["params"]]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for step in range(1, 6):
        for parameter, grad in zip(parameters, gradients(step, np.float64), strict=True):
            parameter.grad = torch.tensor(grad) / 4.0
        norm = torch.nn.utils.clip_grad_norm_([p for p in parameters if p.numel()], 0.7)
        assert_close(norms[step - 1], norm.numpy(), "torch")
        optimizer.step()
    for k, parameter in enumerate(parameters):
        assert_close(lists["params"][k], parameter.detach().numpy(), "torch", magnitude="largest")


def test_the_first_step_is_the_sign(backend, dtype):
    # m / (sqrt(v) + eps) is g / (|g| + eps) after both corrections.
    param, grad = np.zeros(3, dtype), np.array([1e-3, -5.0, 2.0], dtype)
    adam_step(param, grad, np.zeros(3, dtype), np.zeros(3, dtype), step=1, lr=0.1, eps=0.0)
    assert_close(param, [-0.1, 0.1, -0.1], "step")


def test_late_steps_and_small_gradients(backend, dtype):
    # A device takes subnormal float32 for 0, which (1 - beta2) times the square of 1e-18 is.
    least = 1e-17 if backend in ("emulated", "gpu") and dtype is np.float32 else 1e-18
    grads = [np.array([least, -3e-15, 1e-12, 1.0], dtype)]
    m, v = [grads[0] * dtype(0.5)], [np.square(grads[0].astype(np.float64)).astype(dtype)]
    params = [np.zeros(4, dtype)]
    inputs = [[a.astype(np.float64) for a in x] for x in (params, grads, m, v)]
    adam_step(params, grads, m, v, step=10**7, eps=1e-30)
    with fastgrad.backend("reference"):
        adam_step(*inputs, step=10**7, eps=1e-30)
    assert_close(params[0], inputs[0][0], "step", magnitude="largest")


def test_nan_and_inf_stay_in_their_entry(backend, dtype):
    shapes = [(41,)]
    for bad in (np.nan, np.inf, -np.inf):
        lists, clean = start(dtype, shapes), start(dtype, shapes)
        grads = gradients(1, dtype, shapes)
        adam_step(grads=grads, step=1, **clean)
        grads[0][17] = bad
        adam_step(grads=grads, step=1, **lists)
        others = np.arange(41) != 17
        assert np.isnan(lists["params"][0][17]) and not np.isfinite(lists["exp_avg_sq"][0][17])
        for name in lists:
            np.testing.assert_array_equal(lists[name][0][others], clean[name][0][others])


def test_a_norm_that_is_not_finite_propagates_as_in_torch(backend, dtype):
    shapes = [(3,), (2,)]
    for bad in (np.nan, np.inf):
        lists, grads = start(dtype, shapes), gradients(1, dtype, shapes)
        before = lists["params"][1].copy()
        grads[0][1] = bad
        norm = adam_step(grads=grads, step=1, max_norm=1.0, **lists)
        assert np.isnan(lists["params"][0][1])
        if np.isnan(bad):
            assert np.isnan(norm) and all(np.isnan(p).all() for p in lists["params"])
        else:
            assert norm == np.inf
            np.testing.assert_array_equal(lists["params"][1], before)


def test_layouts_are_changed_in_place(backend, dtype):
    shapes = [(13, 17)]
    plain = start(dtype, shapes)
    grads = gradients(1, dtype, shapes)
    initial = plain["params"][0].copy()
    adam_step(grads=grads, step=1, **plain)
    for layout in layouts(initial):
        lists = {name: [layouts(a[0])[layout]] for name, a in start(dtype, shapes).items()}
        adam_step(grads=[layouts(grads[0])[layout]], step=1, **lists)
        for name, arrays in lists.items():
            assert_close(arrays[0], plain[name][0], "step", magnitude="largest", label=f"{layout} {name}")
    single = {name: arrays[0] for name, arrays in start(dtype, shapes).items()}
    adam_step(grads=read_only(grads[0]), step=1, **single)
    np.testing.assert_array_equal(single["params"], plain["params"][0])


def test_many_small_tensors_equal_one_large(backend, dtype):
    sizes = [k % 37 for k in range(200)]
    edges = np.cumsum([0, *sizes])
    whole, pieces = start(dtype, [(edges[-1],)]), start(dtype, [(edges[-1],)])
    grad = gradients(1, dtype, [(edges[-1],)])[0]

    def cut(a):
        return [a[i:j] for i, j in itertools.pairwise(edges)]

    adam_step(grads=[grad], step=1, weight_decay=0.1, **whole)
    adam_step(grads=cut(grad), step=1, weight_decay=0.1, **{name: cut(a[0]) for name, a in pieces.items()})
    for name in whole:
        assert_close(pieces[name][0], whole[name][0], "step", magnitude="largest")


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            lists, norms = train(dtype, steps=2, max_norm=1.0, amsgrad=True)
            arrays = [*norms, *(a for group in lists.values() for a in group)]
            seen.add(b"".join(a.tobytes() for a in arrays))
    assert len(seen) == 1


def test_no_parameters(backend):
    assert adam_step([], [], [], [], step=1) is None
    assert adam_step([], [], [], [], step=1, max_norm=1.0) == 0.0


def test_errors():
    lists = start(np.float32, [(3,), (2, 2)])
    grads = gradients(1, np.float32, [(3,), (2, 2)])

    def error(exception, match, **changes):
        with pytest.raises(exception, match=match):
            adam_step(**{**lists, "grads": grads, "step": 1, **changes})

    error(ValueError, "step: expected an integer >= 1", step=0)
    error(TypeError, "step: expected an integer, got float", step=1.0)
    error(TypeError, "step: expected an integer, got bool", step=True)
    error(ValueError, "lr: expected a finite number >= 0, got -1.0", lr=-1.0)
    error(ValueError, "lr: expected a finite number >= 0, got inf", lr=math.inf)
    error(ValueError, r"betas\[0\]: expected a finite number >= 0 and < 1, got 1.0", betas=(1.0, 0.9))
    error(ValueError, r"betas\[1\]: .* got nan", betas=(0.9, math.nan))
    error(TypeError, "betas: expected a pair of numbers, got 0.9", betas=0.9)
    error(ValueError, "eps: expected a finite number >= 0", eps=-1e-8)
    error(ValueError, "weight_decay: expected a finite number >= 0", weight_decay=-0.1)
    error(ValueError, "grad_scale: expected a finite number > 0, got 0.0", grad_scale=0.0)
    error(ValueError, "max_norm: expected a number >= 0, got -1.0", max_norm=-1.0)
    error(ValueError, "grads: expected 2 arrays, as many as params, got 1", grads=grads[:1])
    error(ValueError, r"exp_avg_sq\[1\]: expected the shape of params\[1\], \(2, 2\), got \(4,\)",
          exp_avg_sq=[lists["exp_avg_sq"][0], np.zeros(4, np.float32)])  # fmt: skip
    error(TypeError, r"grads\[0\] is float64 but params\[0\] is float32", grads=[g.astype(np.float64) for g in grads])
    error(TypeError, r"grads\[1\]: expected a numpy.ndarray or cupy.ndarray, got None", grads=[grads[0], None])
    error(ValueError, r"params\[0\]: the array is read-only", params=[read_only(p) for p in lists["params"]])
    error(ValueError, r"exp_avg\[(.)\] and exp_avg_sq\[\1\] overlap", exp_avg=lists["exp_avg_sq"])
    error(ValueError, r"grads\[1\] and params\[1\] overlap", grads=[grads[0], lists["params"][1]])
    error(ValueError, r"params\[0\] and params\[1\] overlap", params=[lists["params"][1][0], lists["params"][1]],
          grads=[grads[0][:2], grads[1]], exp_avg=[np.zeros(2, np.float32), grads[1].copy()],
          exp_avg_sq=[np.zeros(2, np.float32), grads[1].copy()])  # fmt: skip
    untouched = start(np.float32, [(3,), (2, 2)])
    for name, arrays in lists.items():
        for array, same in zip(arrays, untouched[name], strict=True):
            np.testing.assert_array_equal(array, same, err_msg=f"an error changed {name}")


@pytest.mark.parametrize("fault", ["bias correction", "decay", "eps", "state"])
def test_planted_faults_are_caught(monkeypatch, fault):
    expected, _ = oracle_train(np.float64, weight_decay=0.1)
    original = adam_ref.adam_step

    def wrong(params, grads, m, v, u, step, lr, beta1, beta2, eps, decay, *rest):
        changes = {
            "bias correction": (m, v, u, step, lr * (1 - beta1**step), beta1, beta2, eps, decay),
            "decay": (m, v, u, step, lr, beta1, beta2, eps, decay * 0.99),
            "eps": (m, v, u, step, lr, beta1, beta2, eps * 2, decay),
            "state": ([a.copy() for a in m], v, u, step, lr, beta1, beta2, eps, decay),
        }
        original(params, grads, *changes[fault], *rest)

    monkeypatch.setattr(adam_ref, "adam_step", wrong)
    actual, _ = oracle_train(np.float64, weight_decay=0.1)
    with pytest.raises(AssertionError):
        for name, arrays in actual.items():
            for array, wanted in zip(arrays, expected[name], strict=True):
                assert_close(array, wanted, "step", magnitude="largest")
