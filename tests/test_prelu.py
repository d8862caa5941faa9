"""prelu, prelu_backward."""

from __future__ import annotations

import numpy as np
import pytest
from backends import placed
from fastgrad.kernels import prelu_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import prelu, prelu_backward
from fastgrad.layers import PReLU
from fastgrad.testing import gradcheck

# x and weight shapes; (N, C, ...) has the channels on axis 1.
CASES = [((), (1,)), ((0,), (1,)), ((7,), (1,)), ((65537,), (1,)), ((3, 4), (1,)), ((3, 4), (4,)), ((0, 4), (4,)),
         ((13, 1), (1,)), ((2, 3, 5), (3,)), ((5, 7, 0), (7,)), ((4, 17, 3, 11), (17,)), ((3, 2, 4097), (2,)),
         ((1031, 67), (67,))]  # fmt: skip


def draw(shape, weight_shape, dtype):
    return random(1, shape, dtype), random(2, shape, dtype), random(3, weight_shape, dtype, scale=0.3)


@pytest.mark.parametrize(("shape", "weight_shape"), CASES)
def test_against_float64(backend, dtype, shape, weight_shape):
    dy, x, weight = draw(shape, weight_shape, dtype)
    y = prelu(x, weight)
    assert y.dtype == dtype
    assert_close(y, oracle(prelu, x, weight), "pointwise")
    dx, dweight = prelu_backward(dy, x, weight)
    expected_dx, expected_dweight = oracle(prelu_backward, dy, x, weight)
    assert dx.dtype == dweight.dtype == dtype
    assert_close(dx, expected_dx, "pointwise")
    terms = oracle(prelu_backward, np.asarray(np.abs(dy)), np.asarray(-np.abs(x)), weight)[1]
    assert_close(dweight, expected_dweight, "reduction", magnitude=np.abs(terms))


@pytest.mark.parametrize(("shape", "weight_shape"), CASES[4:])
def test_against_torch(backend, shape, weight_shape):
    torch = pytest.importorskip("torch")
    dy, x, weight = draw(shape, weight_shape, np.float64)
    if x.size:
        x.flat[0] = 0.0
    t, w = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    y = torch.nn.functional.prelu(t, w)
    y.backward(torch.tensor(dy))
    assert_close(prelu(x, weight), y.detach().numpy(), "torch")
    dx, dweight = prelu_backward(dy, x, weight)
    assert_close(dx, t.grad.numpy(), "torch")
    assert_close(dweight, w.grad.numpy(), "torch", magnitude="largest")


def test_central_differences(backend):
    gradcheck(prelu, draw((3, 4, 2), (4,), np.float64)[1:], prelu_backward)


def test_nan_and_inf(backend, dtype):
    weight = np.array([0.5], dtype)
    x = np.array([np.nan, -np.inf, np.inf, -2.0], dtype)
    np.testing.assert_array_equal(prelu(x, weight), np.array([np.nan, -np.inf, np.inf, -1.0], dtype))
    dy = np.array([1.0, 1.0, 1.0, np.nan], dtype)
    dx, dweight = prelu_backward(dy, x, weight)
    np.testing.assert_array_equal(dx, np.array([np.nan, 0.5, 1.0, np.nan], dtype))
    assert np.isnan(dweight).all()


def test_layouts_and_aliases(backend, dtype):
    dy, x, weight = draw((6, 5, 4), (5,), dtype)
    y, (dx, dweight) = prelu(x, weight), prelu_backward(dy, x, weight)
    for name, view in layouts(x).items():
        np.testing.assert_array_equal(prelu(view, weight), y, err_msg=name)
        for result, expected in zip(prelu_backward(dy, view, weight), (dx, dweight), strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=name)
        assert prelu(view, weight, out=view) is view
        np.testing.assert_array_equal(view, y, err_msg=name)
    for name, view in layouts(dy).items():
        result = prelu_backward(view, x, weight, out=view)
        assert result[0] is view
        np.testing.assert_array_equal(view, dx, err_msg=name)
        np.testing.assert_array_equal(result[1], dweight, err_msg=name)
    source = x.copy()
    result = prelu_backward(dy, source, weight, out=source)
    np.testing.assert_array_equal(source, dx)
    np.testing.assert_array_equal(result[1], dweight)
    np.testing.assert_array_equal(prelu(x, np.repeat(weight, 2)[::2]), y)


@pytest.mark.parametrize(("shape", "weight_shape"), [((65537,), (1,)), ((70, 9, 33), (9,))])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, shape, weight_shape):
    dy, x, weight = draw(shape, weight_shape, dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            dx, dweight = prelu_backward(dy, x, weight)
            seen.add(dx.tobytes() + dweight.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("skips", [(0, 0, 0), (1, 1, 1), (0, 0, 3)], ids=str)
@pytest.mark.parametrize(("shape", "weight_shape"), [
    *CASES[:-1], ((131, 67), (67,)), ((70, 68), (68,)), ((4099,), (1,)), ((2, 5, 1031), (5,)), ((2, 5, 1032), (5,)),
    ((3, 33, 7, 7), (33,)), ((2, 3, 4), (3,)), ((9, 5, 2), (5,)),
])  # fmt: skip
def test_a_device_has_the_bits_of_the_cpu(on_device, dtype, shape, weight_shape, skips):
    """Pieces of rows and rows in pieces, whole and not, and arrays that begin on 16 bytes or do not."""
    dy, x, weight = draw(shape, weight_shape, dtype)
    with fastgrad.backend("cpu"):
        y, (dx, _) = prelu(x, weight), prelu_backward(dy, x, weight)
    places = [np.zeros(x.size + 4, dtype)[skip : skip + x.size].reshape(shape) for skip in skips]
    for place, values in zip(places, (dy, x), strict=False):
        place[...] = values
    on_device(prelu)(places[1], weight, out=places[2])
    np.testing.assert_array_equal(places[2], y)
    _, dweight = on_device(prelu_backward)(places[0], places[1], weight, out=places[2])
    np.testing.assert_array_equal(places[2], dx)
    terms = oracle(prelu_backward, np.asarray(np.abs(dy)), np.asarray(-np.abs(x)), weight)[1]
    assert_close(dweight, oracle(prelu_backward, dy, x, weight)[1], "reduction", magnitude=np.abs(terms))


def test_errors():
    dy, x, weight = draw((3, 4), (4,), np.float32)

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    error(ValueError, r"weight: expected shape \(1,\) or \(4,\), one per channel on axis 1 of x \(3, 4\), got \(3,\)",
          prelu, x, weight[:3])  # fmt: skip
    error(ValueError, r"weight: expected shape \(1,\), got \(3,\)", prelu, x[0], weight[:3])
    error(ValueError, r"weight: expected shape .*, got \(\)", prelu, x, np.zeros((), np.float32))
    error(TypeError, "weight is float64 but x is float32", prelu, x, weight.astype(np.float64))
    error(TypeError, "weight: expected a numpy.ndarray or cupy.ndarray, got float", prelu, x, 0.25)
    error(ValueError, r"dy: expected the shape of x, \(3, 4\), got \(4,\)", prelu_backward, dy[0], x, weight)
    error(ValueError, "out: the array is read-only", prelu, x, weight, out=read_only(x))
    base = random(4, 30, np.float32)
    error(ValueError, "out and x overlap", prelu, base[:20], weight[:1], out=base[2:22])
    error(ValueError, "out and weight overlap", prelu, x[0], base[3:4], out=base[:4])


def test_a_planted_fault_is_caught(monkeypatch):
    dy, x, weight = draw((3, 4), (4,), np.float64)
    expected = oracle(prelu_backward, dy, x, weight)[1]
    original = prelu_ref.prelu_backward
    # The channels taken from the wrong axis.
    monkeypatch.setattr(
        prelu_ref, "prelu_backward", lambda dy, x, w, dx, dw: original(dy, x, w[::-1].copy(), dx, dw[::-1])
    )
    with pytest.raises(AssertionError):
        assert_close(oracle(prelu_backward, dy, x, weight)[1], expected, "reduction", magnitude="largest")


@pytest.mark.parametrize(("shape", "count"), [((7, 4), 1), ((7, 4), 4), ((5,), 1), ((2, 3, 4, 5), 3), ((0, 3), 3)])
def test_the_layer_against_torch(backend, dtype, shape, count):
    torch = pytest.importorskip("torch")
    module = torch.nn.PReLU(count, 0.3, dtype=torch.float64 if dtype is np.float64 else torch.float32)
    layer = placed(PReLU(count, 0.3, dtype=dtype), backend)
    assert {name: a.shape for name, a in layer.state_dict().items()} == {"weight": (count,)}
    x, dy = random(1, shape, dtype), random(2, shape, dtype)
    t = torch.tensor(x, requires_grad=True)
    expected = module(t)
    expected.backward(torch.tensor(dy))
    for _ in range(2):  # gradients add up
        assert_close(layer.forward(x), expected.detach().numpy(), "torch")
        assert_close(layer.backward(dy), t.grad.numpy(), "torch")
    (grad,) = [p.grad for p in layer.parameters()]
    assert_close(grad, 2 * module.weight.grad.numpy(), "torch", magnitude="largest")


def test_the_layer_by_central_differences(cpu_backend):
    gradcheck(PReLU(4, dtype=np.float64), random(1, (3, 4, 2)))


def test_errors_of_the_layer():
    with pytest.raises(ValueError, match="num_parameters must be a whole number of at least 1, got 0"):
        PReLU(0)
    with pytest.raises(ValueError, match=r"weight: expected shape \(1,\) or \(4,\), one per channel"):
        PReLU(3).forward(np.zeros((2, 4), np.float32))
