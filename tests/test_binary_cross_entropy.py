"""binary_cross_entropy_with_logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastgrad.kernels import binary_cross_entropy_ref
from support import SHAPES, layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import binary_cross_entropy_with_logits as loss_of
from fastgrad.testing import gradcheck


def draw(shape, dtype, seed=0):
    """Logits, and targets of which a third each is 0, 1 and between."""
    rng = np.random.default_rng(seed)
    between = rng.uniform(size=shape)
    targets = np.where(between < 1 / 3, 0.0, np.where(between > 2 / 3, 1.0, rng.uniform(size=shape)))
    return random(seed + 1, shape, dtype, 5.0), np.asarray(targets, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(backend, dtype, shape):
    logits, targets = draw(shape, dtype)
    before = logits.copy(), targets.copy()
    loss, gradient = loss_of(logits, targets)
    assert isinstance(loss, np.ndarray) and loss.shape == () and loss.dtype == gradient.dtype == dtype
    expected_loss, expected = oracle(loss_of, logits, targets)
    assert_close(loss, expected_loss, "reduction")
    assert_close(gradient, expected, "transcendental", magnitude=1 / max(1, logits.size))
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_torch(backend, shape):
    torch = pytest.importorskip("torch")
    logits, targets = draw(shape, np.float64)
    z = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(targets))
    loss.backward()
    actual, gradient = loss_of(logits, targets)
    assert_close(actual, loss.item(), "torch", magnitude=1.0)
    assert_close(gradient, z.grad.numpy(), "torch", magnitude=1 / max(1, logits.size))


def test_central_differences(backend):
    logits, targets = draw((3, 5), np.float64)
    gradcheck(lambda z: loss_of(z, targets)[0], logits, lambda dloss, z: dloss * loss_of(z, targets)[1])


def test_tails_keep_their_digits(backend, dtype):
    """Where the sigmoid is 0 or 1 to the last bit, what is left is exp(-|z|)."""
    for z in (3.0, 17.0, 40.0, 80.0):
        exact = math.log1p(math.exp(-z)), math.exp(-z) / (1 + math.exp(-z))
        for logit, target, sign in ((z, 1, -1), (-z, 0, 1)):
            loss, gradient = loss_of(np.array([logit], dtype), np.array([target], dtype))
            assert_close(loss, exact[0], "transcendental")
            assert_close(gradient, [sign * exact[1]], "transcendental")
        loss, gradient = loss_of(np.array([-z], dtype), np.array([1], dtype))
        assert_close(loss, z + exact[0], "transcendental")
        assert_close(gradient, [-1 / (1 + math.exp(-z))], "transcendental")


def test_nan_and_inf(backend, dtype):
    for place in range(2):
        arrays = draw((70,), dtype)
        clean = loss_of(*arrays)[1]
        arrays[place][30] = np.nan
        loss, gradient = loss_of(*arrays)
        assert np.isnan(loss) and np.isnan(gradient[30])
        np.testing.assert_array_equal(np.delete(gradient, 30), np.delete(clean, 30))
    right = np.array([np.inf, -np.inf], dtype)
    loss, gradient = loss_of(right, np.array([1, 0], dtype))
    assert loss == 0 and (gradient == 0).all()
    loss, gradient = loss_of(right, np.array([0, 1], dtype))
    assert loss == np.inf
    np.testing.assert_array_equal(gradient, np.array([0.5, -0.5], dtype))


def test_out_may_be_an_input(backend, dtype):
    logits, targets = draw((13, 17), dtype)
    loss, expected = loss_of(logits, targets)
    for place in range(2):
        arrays = [logits.copy(), targets.copy()]
        again, gradient = loss_of(*arrays, out=arrays[place])
        assert gradient is arrays[place] and again == loss
        np.testing.assert_array_equal(gradient, expected)


def test_layouts(backend, dtype):
    logits, targets = draw((13, 17), dtype)
    loss, expected = loss_of(logits, targets)
    for name, view in layouts(logits).items():
        out = layouts(np.zeros_like(logits))[name]
        again, gradient = loss_of(view, targets, out=out)
        assert gradient is out and again == loss, name
        np.testing.assert_array_equal(gradient, expected)


def test_the_gradient_has_the_bits_of_the_cpu(on_device, dtype):
    logits, targets = draw((5, 1031), dtype)
    np.testing.assert_array_equal(on_device(loss_of)(logits, targets)[1], loss_of(logits, targets)[1])


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    logits, targets = draw((3, 65537), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(b"".join(a.tobytes() for a in loss_of(logits, targets)))
    assert len(seen) == 1


def test_errors():
    logits, targets = draw((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets: expected .*\(4, 3\).*, got .*\(3,\)"):
        loss_of(logits, targets[0])
    with pytest.raises(TypeError, match="targets is float64 but logits is float32"):
        loss_of(logits, targets.astype(np.float64))
    with pytest.raises(ValueError, match="out: the array is read-only"):
        loss_of(logits, targets, out=read_only(logits))


def test_a_planted_fault_is_caught(monkeypatch):
    """The sigmoid less the target, as one would write it, loses the tail."""

    def naive(logits, targets, dlogits):
        s = 1 / (1 + np.exp(-logits))
        np.divide(s - targets, logits.size, out=dlogits)
        return float(np.mean(-targets * np.log(s)))

    monkeypatch.setattr(binary_cross_entropy_ref, "binary_cross_entropy", naive)
    with fastgrad.backend("reference"), pytest.raises(AssertionError):
        test_tails_keep_their_digits("reference", np.float32)
