"""batch_norm, batch_norm_backward and the layer."""

from __future__ import annotations

import numpy as np
import pytest
from backends import DEVICES, placed
from fastgrad.kernels import batch_norm_ref
from support import layouts, oracle, random
from tolerances import assert_close

import fastgrad
from fastgrad import batch_norm, batch_norm_backward
from fastgrad.layers import BatchNorm
from fastgrad.testing import gradcheck

SHAPES = [(2, 1), (13, 17), (300, 8), (131, 67), (2, 3, 5), (5, 4, 3, 4), (3, 2, 4099), (1, 5, 2)]


def draw(shape, dtype):
    size = shape[1:2]
    return random(1, shape, dtype), random(2, shape, dtype), random(3, size, dtype), random(4, size, dtype)


def both(dy, x, weight, bias, running_mean=None, running_var=None, training=True):
    y, saved = batch_norm(x, weight, bias, running_mean, running_var, training=training)
    return y, *batch_norm_backward(dy, saved)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(backend, dtype, shape, training):
    dy, x, weight, bias = draw(shape, dtype)
    running = [random(5, shape[1:2], dtype), np.abs(random(6, shape[1:2], dtype))]
    wide = [kept.astype(np.float64) for kept in running]
    results = both(dy, x, weight, bias, *running, training=training)
    expected = oracle(both, dy, x, weight, bias, *wide, training=training)
    rstd = oracle(batch_norm, x, weight, bias, *wide, training=training)[1].rstd
    terms = np.max(np.abs(weight) * rstd) * np.max(np.abs(dy))  # of dx, which cancel: all of it, for two numbers
    for name, result, wanted in zip(("y", "dx", "dweight", "dbias"), results, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, wanted, "reduction", magnitude=terms if name == "dx" else "largest", label=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 2])
def test_the_layer_against_torch(backend, dtype, shape, affine, training):
    """Three batches, the last one in evaluation where `training` is False."""
    torch = pytest.importorskip("torch")
    layer = BatchNorm(shape[1], eps=1e-3, momentum=0.2, affine=affine, dtype=dtype)
    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)]
    wide = torch.float64 if dtype is np.float64 else torch.float32
    module = kind(shape[1], eps=1e-3, momentum=0.2, affine=affine, dtype=wide)
    assert list(layer.state_dict()) == list(module.state_dict())
    if affine:
        values = {name: random(k, shape[1:2], dtype) for k, name in enumerate(("weight", "bias"), start=10)}
        layer.load_state_dict(layer.state_dict() | values)
        module.load_state_dict(module.state_dict() | {name: torch.tensor(v) for name, v in values.items()})
    layer = placed(layer, backend)
    for batch in range(3):
        if batch == 2:
            (layer._layer if backend in DEVICES else layer).train(training)
            module.train(training)
        x, dy = random(20 + batch, shape, dtype), random(30 + batch, shape, dtype)
        t = torch.tensor(x, requires_grad=True)
        expected = module(t)
        expected.backward(torch.tensor(dy))
        assert_close(layer.forward(x), expected.detach().numpy(), "torch", magnitude="largest")
        assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")
    theirs = dict(module.named_parameters())
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, theirs[name].grad.numpy(), "torch", magnitude="largest")
    own = layer.state_dict()
    for name in ("running_mean", "running_var"):
        assert_close(own[name], getattr(module, name).numpy(), "torch", magnitude="largest", label=name)
    assert own["num_batches_tracked"] == module.num_batches_tracked == (3 if training else 2)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_central_differences(backend, shape, training):
    mean, var = random(5, (3,)), np.abs(random(6, (3,)))

    def run(x, weight, bias):
        return batch_norm(x, weight, bias, mean.copy(), var.copy(), training=training)

    gradcheck(
        lambda *inputs: run(*inputs)[0], draw(shape, np.float64)[1:],
        lambda dy, *inputs: batch_norm_backward(dy, run(*inputs)[1]),
    )  # fmt: skip


def test_a_spread_small_beside_the_mean_does_not_cancel(backend, dtype):
    dy, x, weight, bias = draw((333, 5), dtype)
    x += dtype(1e4)
    results, expected = both(dy, x, weight, bias), oracle(both, dy, x, weight, bias)
    for result, wanted in zip(results, expected, strict=True):
        tolerance = "reduction" if dtype is np.float32 else "differences"  # the mean itself is a rounded double there
        assert_close(result, wanted, tolerance, magnitude="largest")


def test_nan_stays_in_its_channel(backend, dtype):
    dy, x, weight, bias = draw((9, 70), dtype)
    clean = both(dy, x, weight, bias)
    x[3, 66] = np.nan
    for result, before in zip(both(dy, x, weight, bias)[:3], clean[:3], strict=True):
        assert np.isnan(result[..., 66]).all()
        np.testing.assert_array_equal(np.delete(result, 66, -1), np.delete(before, 66, -1))


@pytest.mark.parametrize("shape", [(700, 67), (70, 9, 133)])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, shape):
    arguments = draw(shape, dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(b"".join(result.tobytes() for result in both(*arguments)))
    assert len(seen) == 1


def test_layouts_and_aliases(cpu_backend, dtype):
    dy, x, weight, bias = draw((6, 5, 4), dtype)
    expected = both(dy, x, weight, bias)
    for name, view in layouts(x).items():
        for result, wanted in zip(both(dy, view, weight, bias), expected, strict=True):
            np.testing.assert_array_equal(result, wanted, err_msg=name)
    for name, view in layouts(dy).items():
        assert batch_norm_backward(view, batch_norm(x, weight, bias)[1], out=view).dx is view
        np.testing.assert_array_equal(view, expected[1], err_msg=name)


def test_errors():
    _, x, weight, bias = draw((3, 4), np.float32)

    def error(exception, match, *args, **kwargs):
        with pytest.raises(exception, match=match):
            batch_norm(*args, **kwargs)

    error(ValueError, r"x: expected shape \(B, C\) or \(B, C, ...\), got \(4,\)", x[0])
    error(ValueError, r"weight: expected shape \(4,\), got \(3,\)", x, weight[:3])
    error(ValueError, "at least 2 numbers for each channel in training", x[:1])
    error(ValueError, "running_mean: expected the statistics", x, training=False)
    error(ValueError, "running_var: expected an array as running_mean is one, got None", x, running_mean=weight)
    error(ValueError, "running_mean: expected a C-contiguous", x, None, None, weight[::-1], bias)
    error(ValueError, "momentum: expected", x, momentum=1.5)
    error(ValueError, "out and x overlap", x, out=x)
    one = weight.copy()  # of `mean = variance = np.zeros(4)`
    error(ValueError, "running_mean and running_var overlap in memory, but running_mean is", x, None, None, one, one)
    error(ValueError, "running_var and weight overlap in memory", x, one[:], None, bias.copy(), one[:])
    error(ValueError, "running_mean and x overlap in memory", x, None, None, x[0], one)


def test_a_planted_fault_is_caught(monkeypatch):
    arguments = draw((5, 3), np.float64)
    expected = oracle(both, *arguments)[1]
    original = batch_norm_ref.batch_norm_backward
    # The gradient without the way through the statistics.
    monkeypatch.setattr(
        batch_norm_ref, "batch_norm_backward", lambda dy, x, w, m, r, t, *out: original(dy, x, w, m, r, False, *out)
    )
    with pytest.raises(AssertionError):
        assert_close(oracle(both, *arguments)[1], expected, "reduction", magnitude="largest")
