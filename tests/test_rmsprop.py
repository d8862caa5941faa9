"""rmsprop_step."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import rmsprop_ref
from support import layouts, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import rmsprop_step

SHAPES = [(13, 17), (), (0,), (1,), (65537,), (2, 3, 5), (4097,)]
SMALL = [(13, 17), (), (1,), (2, 3, 5), (67,)]
# Where decay cancels a gradient, what is left of it has lost digits, and the root scales it up to a whole step again: a
# small rate keeps that below the tolerance of the parameters.
OPTIONS = {
    "plain": {},
    "constants": {"lr": 0.1, "alpha": 0.9, "eps": 1e-3},
    "decay": {"lr": 1e-3, "weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "centered-momentum": {"centered": True, "momentum": 0.8, "alpha": 0.95},
    "centered-decay-maximize": {"lr": 1e-3, "centered": True, "weight_decay": 0.01, "maximize": True},
    "maximize": {"momentum": 0.5, "maximize": True},
    "no-eps": {"eps": 0.0},
    "no-memory": {"alpha": 0.0},
    "clipped": {"momentum": 0.9, "max_norm": 0.5},
    "scaled-clipped": {"grad_scale": 8.0, "max_norm": 2.0, "maximize": True, "centered": True},
}


def start(dtype, shapes=SHAPES, **options):
    """Return params and state zeros, as keyword arguments of rmsprop_step."""
    names = ["square_avg"]
    names += ["momentum_buffer"] if options.get("momentum") else []
    names += ["grad_avg"] if options.get("centered") else []
    lists = {"params": [random(k, shape, dtype) for k, shape in enumerate(shapes)]}
    return lists | {name: [np.zeros(shape, dtype) for shape in shapes] for name in names}


def gradients(step, dtype, shapes=SHAPES):
    return [random(1000 * step + k, shape, dtype, scale=1 / step) for k, shape in enumerate(shapes)]


def train(dtype, steps=3, compute=None, shapes=SHAPES, **options):
    """Train from the parameters and gradients that `dtype` can hold, in the arithmetic of `compute`."""
    compute = compute or dtype
    lists = {name: [a.astype(compute) for a in arrays] for name, arrays in start(dtype, shapes, **options).items()}
    norms = []
    for step in range(1, steps + 1):
        grads = [read_only(g.astype(compute)) for g in gradients(step, dtype, shapes)]
        norms.append(rmsprop_step(grads=grads, **lists, **options))
    return lists, norms


def oracle_train(dtype, **options):
    with fastgrad.backend("reference"):
        return train(dtype, compute=np.float64, **options)


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


@pytest.mark.parametrize("name", [name for name in OPTIONS if "clipped" not in name])
def test_trajectory_of_torch(backend, name):
    torch = pytest.importorskip("torch")
    lists, _ = train(np.float64, steps=20, shapes=SMALL, **OPTIONS[name])
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64, SMALL)["params"]]
    optimizer = torch.optim.RMSprop(parameters, **OPTIONS[name])
    for step in range(1, 21):
        for parameter, grad in zip(parameters, gradients(step, np.float64, SMALL), strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
    for k, parameter in enumerate(parameters):
        assert_close(lists["params"][k], parameter.detach().numpy(), "torch", magnitude="largest")
        for state in lists.keys() - {"params"}:
            assert_close(lists[state][k], optimizer.state[parameter][state].numpy(), "torch", magnitude="largest")


def test_clip_and_step_of_torch(backend):
    torch = pytest.importorskip("torch")
    lists, norms = train(np.float64, steps=5, momentum=0.9, max_norm=0.7, grad_scale=4.0)
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64)["params"]]
    optimizer = torch.optim.RMSprop(parameters, momentum=0.9)
    for step in range(1, 6):
        for parameter, grad in zip(parameters, gradients(step, np.float64), strict=True):
            parameter.grad = torch.tensor(grad) / 4.0
        norm = torch.nn.utils.clip_grad_norm_([p for p in parameters if p.numel()], 0.7)
        assert_close(norms[step - 1], norm.numpy(), "torch")
        optimizer.step()
    for param, parameter in zip(lists["params"], parameters, strict=True):
        assert_close(param, parameter.detach().numpy(), "torch", magnitude="largest")


def test_the_first_step_is_the_sign(backend, dtype):
    param, grad = np.zeros(3, dtype), np.array([1e-3, -5.0, 2.0], dtype)
    rmsprop_step(param, grad, np.zeros(3, dtype), lr=0.1, alpha=0.75, eps=0.0)
    assert_close(param, [-0.2, 0.2, -0.2], "step")


def test_state_that_is_not_asked_for(backend, dtype):
    """A buffer without momentum holds the last update; a mean without centered is left alone."""
    param, grad, square = np.zeros(5, dtype), random(1, 5, dtype), np.ones(5, dtype)
    buffer, mean = random(2, 5, dtype), random(3, 5, dtype)
    kept = mean.copy()
    rmsprop_step(param, grad, square, buffer, mean, lr=1.0)
    np.testing.assert_array_equal(param, -buffer)
    np.testing.assert_array_equal(mean, kept)
    expected = grad.astype(float) / (np.sqrt(0.99 + 0.01 * grad.astype(float) ** 2) + 1e-8)
    assert_close(buffer, expected, "step", magnitude="largest")


def test_the_variance_of_a_constant_gradient_is_not_negative(backend, dtype):
    """torch's square root of a variance that rounding has taken below 0 is NaN."""
    params, grad = np.zeros(1000, dtype), random(4, 1000, dtype)
    square, mean = np.zeros_like(params), np.zeros_like(params)
    negative = False
    for _ in range(400):
        rmsprop_step(params, grad, square, None, mean, alpha=0.5, eps=1e-3, centered=True)
        negative = negative or bool((square - mean * mean < 0).any())
        assert np.isfinite(params).all()
    assert negative  # otherwise nothing was tested


def test_nan_and_inf_stay_in_their_entry(backend, dtype):
    for options in ({}, {"momentum": 0.9, "centered": True}):
        for bad in (np.nan, np.inf, -np.inf):
            lists, clean = start(dtype, [(41,)], **options), start(dtype, [(41,)], **options)
            grads = gradients(1, dtype, [(41,)])
            rmsprop_step(grads=grads, **clean, **options)
            grads[0][17] = bad
            rmsprop_step(grads=grads, **lists, **options)
            others = np.arange(41) != 17
            assert np.isnan(lists["params"][0][17]) and not np.isfinite(lists["square_avg"][0][17])
            for name in lists:
                np.testing.assert_array_equal(lists[name][0][others], clean[name][0][others])


def test_a_norm_that_is_not_finite_propagates_as_in_torch(backend, dtype):
    for bad in (np.nan, np.inf):
        lists, grads = start(dtype, [(3,), (2,)]), gradients(1, dtype, [(3,), (2,)])
        before = lists["params"][1].copy()
        grads[0][1] = bad
        norm = rmsprop_step(grads=grads, max_norm=1.0, **lists)
        np.testing.assert_array_equal(norm, bad)
        assert np.isnan(lists["params"][0][1])
        np.testing.assert_array_equal(lists["params"][1], np.full(2, np.nan) if np.isnan(bad) else before)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True}], ids=["plain", "all-state"])
def test_layouts_are_changed_in_place(backend, dtype, options):
    plain, grads = start(dtype, [(13, 17)], **options), gradients(1, dtype, [(13, 17)])
    initial = plain["params"][0].copy()
    rmsprop_step(grads=grads, **plain, **options)
    for layout in layouts(initial):
        lists = {name: [layouts(a[0])[layout]] for name, a in start(dtype, [(13, 17)], **options).items()}
        rmsprop_step(grads=[layouts(grads[0])[layout]], **lists, **options)
        for name, arrays in lists.items():
            assert_close(arrays[0], plain[name][0], "step", magnitude="largest", label=f"{layout} {name}")


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            lists, norms = train(dtype, steps=2, momentum=0.9, centered=True, max_norm=1.0)
            arrays = [*norms, *(a for group in lists.values() for a in group)]
            seen.add(b"".join(a.tobytes() for a in arrays))
    assert len(seen) == 1


def test_no_parameters(backend):
    assert rmsprop_step([], [], []) is None
    assert rmsprop_step([], [], [], [], [], momentum=0.9, centered=True, max_norm=1.0) == 0.0


def test_errors():
    lists = start(np.float32, [(3,), (2, 2)], momentum=0.9, centered=True)
    grads = gradients(1, np.float32, [(3,), (2, 2)])

    def error(exception, match, **changes):
        with pytest.raises(exception, match=match):
            rmsprop_step(**{**lists, "grads": grads, "momentum": 0.9, "centered": True, **changes})

    error(ValueError, "momentum_buffer: momentum = 0.9 needs one array of zeros", momentum_buffer=None)
    error(ValueError, "grad_avg: centered needs one array of zeros", grad_avg=None)
    error(ValueError, "lr: expected a finite number >= 0, got -0.1", lr=-0.1)
    error(TypeError, "lr: expected a number, got list", lr=[0.1])
    error(ValueError, "alpha: expected a finite number >= 0 and <= 1, got 1.1", alpha=1.1)
    error(ValueError, "alpha: .* got nan", alpha=np.nan)
    error(ValueError, "eps: expected a finite number >= 0", eps=-1e-8)
    error(ValueError, "momentum: expected a finite number >= 0", momentum=-0.5)
    error(ValueError, "weight_decay: expected a finite number >= 0", weight_decay=-0.1)
    error(ValueError, "grad_scale: expected a finite number > 0, got 0.0", grad_scale=0.0)
    error(ValueError, "max_norm: expected a number >= 0, got -1.0", max_norm=-1.0)
    error(ValueError, "square_avg: expected 2 arrays, as many as params, got 1", square_avg=lists["square_avg"][:1])
    error(ValueError, r"grad_avg\[1\]: expected the shape of params\[1\], \(2, 2\), got \(4,\)",
          grad_avg=[lists["grad_avg"][0], np.zeros(4, np.float32)])  # fmt: skip
    error(TypeError, r"grads\[0\] is float64 but params\[0\] is float32", grads=[g.astype(np.float64) for g in grads])
    error(TypeError, r"grads\[1\]: expected a numpy.ndarray or cupy.ndarray, got None", grads=[grads[0], None])
    frozen = [read_only(a) for a in lists["square_avg"]]
    error(ValueError, r"square_avg\[0\]: the array is read-only", square_avg=frozen)
    error(ValueError, r"momentum_buffer\[(.)\] and square_avg\[\1\] overlap", momentum_buffer=lists["square_avg"])
    error(ValueError, r"grad_avg\[0\] and grads\[0\] overlap", grad_avg=[grads[0], lists["grad_avg"][1]])
    untouched = start(np.float32, [(3,), (2, 2)], momentum=0.9, centered=True)
    for name, arrays in lists.items():
        for array, same in zip(arrays, untouched[name], strict=True):
            np.testing.assert_array_equal(array, same, err_msg=f"an error changed {name}")


@pytest.mark.parametrize("fault", ["eps", "alpha", "sign of decay", "not centered", "momentum"])
def test_planted_faults_are_caught(monkeypatch, fault):
    options = {"momentum": 0.9, "centered": True, "weight_decay": 0.01}
    expected, _ = oracle_train(np.float64, **options)
    original = rmsprop_ref.rmsprop_step

    def wrong(params, grads, square, buffer, mean, lr, alpha, eps, decay, momentum, *rest):
        changes = {
            "eps": (mean, lr, alpha, eps * 2, decay, momentum),
            "alpha": (mean, lr, alpha - 1e-6, eps, decay, momentum),
            "sign of decay": (mean, lr, alpha, eps, -decay, momentum),
            "not centered": (None, lr, alpha, eps, decay, momentum),
            "momentum": (mean, lr, alpha, eps, decay, momentum + 1e-6),
        }
        original(params, grads, square, buffer, *changes[fault], *rest)

    monkeypatch.setattr(rmsprop_ref, "rmsprop_step", wrong)
    actual, _ = oracle_train(np.float64, **options)
    with pytest.raises(AssertionError):
        for name, arrays in actual.items():
            for array, wanted in zip(arrays, expected[name], strict=True):
                assert_close(array, wanted, "step", magnitude="largest")
