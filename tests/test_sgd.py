"""sgd_step."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import sgd_ref
from support import layouts, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import sgd_step

SHAPES = [(13, 17), (), (0,), (1,), (65537,), (2, 3, 5), (4097,)]
SMALL = [(13, 17), (), (1,), (2, 3, 5), (67,)]
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
    "maximize": {"momentum": 0.5, "maximize": True, "weight_decay": 0.1},
    "clipped": {"momentum": 0.9, "max_norm": 0.5},
    "scaled-clipped": {"grad_scale": 8.0, "max_norm": 2.0, "maximize": True, "weight_decay": 0.01},
}


def start(dtype, shapes=SHAPES):
    return [random(k, shape, dtype) for k, shape in enumerate(shapes)]


def gradients(step, dtype, shapes=SHAPES):
    return [random(1000 * step + k, shape, dtype, scale=1 / step) for k, shape in enumerate(shapes)]


def train(dtype, steps=3, compute=None, shapes=SHAPES, **options):
    """Train from the parameters and gradients that `dtype` can hold, in the arithmetic of `compute`."""
    compute = compute or dtype
    params = [p.astype(compute) for p in start(dtype, shapes)]
    buffer = [np.zeros_like(p) for p in params] if options.get("momentum") else None
    norms = []
    for step in range(1, steps + 1):
        grads = [read_only(g.astype(compute)) for g in gradients(step, dtype, shapes)]
        # torch's buffer starts as the first gradient, without dampening.
        first = {**options, "dampening": 0.0} if step == 1 else options
        norms.append(sgd_step(params, grads, buffer, lr=0.1, **first))
    return params, buffer or [], norms


def oracle_train(dtype, **options):
    with fastgrad.backend("reference"):
        return train(dtype, compute=np.float64, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_float64(backend, dtype, options):
    actual, expected = train(dtype, **options), oracle_train(dtype, **options)
    for arrays, wanted in zip(actual[:2], expected[:2], strict=True):
        for array, one in zip(arrays, wanted, strict=True):
            assert array.dtype == dtype
            assert_close(array, one, "step", magnitude="largest")
    for norm, one in zip(actual[2], expected[2], strict=True):
        assert (norm is None) == ("max_norm" not in options)
        if norm is not None:
            assert_close(norm, one, "norm")


@pytest.mark.parametrize("name", [name for name in OPTIONS if "clipped" not in name])
def test_trajectory_of_torch(backend, name):
    torch = pytest.importorskip("torch")
    params, buffer, _ = train(np.float64, steps=20, shapes=SMALL, **OPTIONS[name])
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64, SMALL)]
    optimizer = torch.optim.SGD(parameters, lr=0.1, **OPTIONS[name])
    for step in range(1, 21):
        for parameter, grad in zip(parameters, gradients(step, np.float64, SMALL), strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
    for k, parameter in enumerate(parameters):
        assert_close(params[k], parameter.detach().numpy(), "torch", magnitude="largest")
        if buffer:
            assert_close(buffer[k], optimizer.state[parameter]["momentum_buffer"].numpy(), "torch", magnitude="largest")


def test_clip_and_step_of_torch(backend):
    torch = pytest.importorskip("torch")
    params, _, norms = train(np.float64, steps=5, momentum=0.9, max_norm=0.7, grad_scale=4.0)
    parameters = [torch.tensor(p, requires_grad=True) for p in start(np.float64)]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for step in range(1, 6):
        for parameter, grad in zip(parameters, gradients(step, np.float64), strict=True):
            parameter.grad = torch.tensor(grad) / 4.0
        assert_close(norms[step - 1], torch.nn.utils.clip_grad_norm_([p for p in parameters if p.numel()], 0.7).numpy(),
                     "torch")  # fmt: skip
        optimizer.step()
    for param, parameter in zip(params, parameters, strict=True):
        assert_close(param, parameter.detach().numpy(), "torch", magnitude="largest")


def test_a_buffer_without_momentum_holds_the_gradient(backend, dtype):
    param, grad, buffer = np.zeros(5, dtype), random(1, 5, dtype), random(2, 5, dtype)
    sgd_step(param, grad, buffer, lr=1.0)
    np.testing.assert_array_equal(buffer, grad)
    np.testing.assert_array_equal(param, -grad)


def test_nan_and_inf(backend, dtype):
    for bad in (np.nan, np.inf):
        params, buffer = [np.ones(9, dtype)], [np.zeros(9, dtype)]
        grads = [random(3, 9, dtype)]
        grads[0][4] = bad
        sgd_step(params, grads, buffer, lr=0.1, momentum=0.9)
        assert (np.isfinite(params[0]) == (np.arange(9) != 4)).all()
        assert (np.isfinite(buffer[0]) == (np.arange(9) != 4)).all()
        params = [np.ones(9, dtype)]
        norm = sgd_step(params, grads, lr=0.1, max_norm=1.0)
        np.testing.assert_array_equal(norm, bad)
        wanted = np.full(9, np.nan) if np.isnan(bad) else np.where(np.arange(9) == 4, np.nan, 1.0)
        np.testing.assert_array_equal(params[0], wanted.astype(dtype))


def test_layouts_are_changed_in_place(backend, dtype):
    param, grad = random(4, (13, 17), dtype), random(5, (13, 17), dtype)
    plain, plain_buffer = param.copy(), np.zeros_like(param)
    sgd_step(plain, grad, plain_buffer, lr=0.1, momentum=0.9, nesterov=True)
    for layout, view in layouts(param).items():
        buffer = layouts(np.zeros_like(param))[layout]
        sgd_step(view, layouts(grad)[layout], buffer, lr=0.1, momentum=0.9, nesterov=True)
        assert_close(view, plain, "step", magnitude="largest", label=layout)
        assert_close(buffer, plain_buffer, "step", magnitude="largest", label=layout)


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            params, buffer, _ = train(dtype, steps=2, momentum=0.9, max_norm=1.0)
            seen.add(b"".join(a.tobytes() for a in [*params, *buffer]))
    assert len(seen) == 1


def test_errors():
    param, grad = random(6, 5, np.float32), random(7, 5, np.float32)

    def error(exception, match, *args, lr=0.1, **kwargs):
        with pytest.raises(exception, match=match):
            sgd_step(*args, lr=lr, **kwargs)

    error(ValueError, "momentum_buffer: momentum = 0.9 needs one array of zeros", param, grad, momentum=0.9)
    error(ValueError, "nesterov: needs momentum > 0 and dampening = 0", param, grad, nesterov=True)
    error(ValueError, "nesterov: needs momentum > 0 and dampening = 0", param, grad, grad.copy(), nesterov=True,
          momentum=0.9, dampening=0.1)  # fmt: skip
    error(ValueError, "lr: expected a finite number >= 0", param, grad, lr=-0.1)
    error(TypeError, "lr: expected a number, got list", param, grad, lr=[0.1])
    error(ValueError, "momentum: expected a finite number >= 0", param, grad, momentum=-0.5)
    error(ValueError, "grads: expected 1 arrays, as many as params, got 2", [param], [grad, grad])
    error(ValueError, r"grads\[0\]: expected the shape of params\[0\]", param, grad[:3])
    error(
        TypeError, r"momentum_buffer\[0\] is float64 but params\[0\] is float32", param, grad, np.zeros(5), momentum=0.9
    )
    error(ValueError, r"momentum_buffer\[0\]: the array is read-only", param, grad, read_only(param), momentum=0.9)
    error(ValueError, r"grads\[0\] and momentum_buffer\[0\] overlap", param, grad, grad, momentum=0.9)


@pytest.mark.parametrize("fault", ["nesterov", "dampening", "sign"])
def test_planted_faults_are_caught(monkeypatch, fault):
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    expected = oracle_train(np.float64, **options)
    original = sgd_ref.sgd_step

    def wrong(params, grads, buffer, lr, momentum, dampening, nesterov, decay, maximize, scale):
        if fault == "nesterov":
            nesterov = False
        elif fault == "dampening":
            dampening = 1e-6
        else:
            decay = -decay
        original(params, grads, buffer, lr, momentum, dampening, nesterov, decay, maximize, scale)

    monkeypatch.setattr(sgd_ref, "sgd_step", wrong)
    actual = oracle_train(np.float64, **options)
    with pytest.raises(AssertionError):
        for array, wanted in zip(actual[0], expected[0], strict=True):
            assert_close(array, wanted, "step", magnitude="largest")
