"""mse."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import mse_ref
from support import SHAPES, layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import mse
from fastgrad.testing import gradcheck


def draw(shape, dtype):
    return random(1, shape, dtype), random(2, shape, dtype)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
def test_against_float64(backend, dtype, shape):
    pred, target = draw(shape, dtype)
    loss, gradient = mse(pred, target)
    assert isinstance(loss, np.ndarray) and loss.shape == () and loss.dtype == gradient.dtype == dtype
    expected_loss, expected = oracle(mse, pred, target)
    assert_close(loss, expected_loss, "reduction")
    magnitude = 2 * (np.abs(pred.astype(float)) + np.abs(target)) / pred.size
    assert_close(gradient, expected, "pointwise", magnitude=magnitude)


def test_against_torch(backend):
    torch = pytest.importorskip("torch")
    pred, target = draw((13, 17), np.float64)
    t = torch.tensor(pred, requires_grad=True)
    expected = torch.nn.functional.mse_loss(t, torch.tensor(target))
    expected.backward()
    loss, gradient = mse(pred, target)
    assert_close(loss, expected.item(), "torch")
    assert_close(gradient, t.grad.numpy(), "torch")


def test_central_differences(backend):
    pred, target = draw((3, 5), np.float64)
    gradcheck(lambda p: mse(p, target)[0], pred, lambda dloss, p: dloss * mse(p, target)[1])


def test_nan_inf_and_large_errors(backend, dtype):
    for bad in (np.nan, np.inf):
        pred, target = draw((41,), dtype)
        pred[17] = bad
        loss, gradient = mse(pred, target)
        np.testing.assert_array_equal(loss, bad)
        np.testing.assert_array_equal(gradient[17], bad)
        assert np.isfinite(gradient[np.arange(41) != 17]).all()
        assert np.isnan(mse(target, pred)[0]) == np.isnan(bad)
    largest = np.full(3, np.finfo(dtype).max, dtype)
    assert mse(largest, np.zeros(3, dtype))[0] == np.inf


def test_nothing(backend, dtype):
    for shape in ((0,), (3, 0)):
        loss, gradient = mse(np.zeros(shape, dtype), np.zeros(shape, dtype))
        assert np.isnan(loss) and gradient.shape == shape


def test_layouts_and_aliases(backend, dtype):
    pred, target = draw((13, 17), dtype)
    loss, gradient = mse(pred, target)
    for name, view in layouts(pred).items():
        actual_loss, actual = mse(view, target, out=view)
        assert actual is view and actual_loss == loss
        np.testing.assert_array_equal(view, gradient, err_msg=name)
    for name, view in layouts(target).items():
        assert mse(pred, view, out=view)[1] is view
        np.testing.assert_array_equal(view, gradient, err_msg=name)
    np.testing.assert_array_equal(mse(read_only(pred), read_only(target))[1], gradient)


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    pred, target = draw((65537,), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            loss, gradient = mse(pred, target)
            seen.add(loss.tobytes() + gradient.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("skips", [(0, 0, 0), (1, 1, 1), (0, 0, 3)], ids=str)
@pytest.mark.parametrize("size", [1, 127, 512, 2048, 5003])
def test_a_device_has_the_gradient_of_the_cpu(on_device, dtype, size, skips):
    """Bit for bit: whole blocks, the rest of one, and arrays that begin on 16 bytes or do not."""
    pred, target = draw((size,), dtype)
    with fastgrad.backend("cpu"):
        loss, gradient = mse(pred, target)
    places = [np.zeros(size + 4, dtype)[skip : skip + size] for skip in skips]
    places[0][...], places[1][...] = pred, target
    actual, _ = on_device(mse)(places[0], places[1], out=places[2])
    np.testing.assert_array_equal(places[2], gradient)
    # Both add up squares in double, each in an order of its own.
    assert_close(actual, loss, "norm" if dtype is np.float64 else "pointwise")


def test_errors():
    pred, target = draw((4, 3), np.float32)

    def error(exception, match, *args, **kwargs):
        with pytest.raises(exception, match=match):
            mse(*args, **kwargs)

    error(ValueError, r"target: expected the shape of pred, \(4, 3\), got \(4,\)", pred, target[:, 0])
    error(TypeError, "target is float64 but pred is float32", pred, target.astype(float))
    error(TypeError, "target: expected a numpy.ndarray or cupy.ndarray, got float", pred, 0.0)
    error(ValueError, "out: the array is read-only", pred, target, out=read_only(pred))
    base = random(3, 30, np.float32)
    error(ValueError, "out and target overlap", base[:10].copy(), base[:10], out=base[5:15])


def test_a_planted_fault_is_caught(monkeypatch):
    pred, target = draw((5, 7), np.float64)
    expected = oracle(mse, pred, target)[1]
    original = mse_ref.mse
    monkeypatch.setattr(mse_ref, "mse", lambda p, t, dp: (original(p, t, dp), np.multiply(dp, 0.5, out=dp))[0])
    with pytest.raises(AssertionError):
        assert_close(oracle(mse, pred, target)[1], expected, "pointwise")
