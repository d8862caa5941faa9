"""layer_norm, layer_norm_backward and the layer."""

from __future__ import annotations

import numpy as np
import pytest
from backends import DEVICES, placed
from fastgrad.kernels import layer_norm_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import layer_norm, layer_norm_backward
from fastgrad.layers import LayerNorm
from fastgrad.testing import gradcheck

SHAPES = [(7,), (1, 1), (0, 5), (3, 0), (13, 17), (2, 3, 8), (67, 131), (3, 4099), (131, 64), (2, 20000)]


def draw(shape, dtype):
    size = shape[-1:]
    return random(1, shape, dtype), random(2, shape, dtype), random(3, size, dtype), random(4, size, dtype)


def both(dy, x, weight, bias, eps=1e-5):
    y, saved = layer_norm(x, weight, bias, eps)
    return y, *layer_norm_backward(dy, saved)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(backend, dtype, shape):
    dy, x, weight, bias = draw(shape, dtype)
    results, expected = both(dy, x, weight, bias), oracle(both, dy, x, weight, bias)
    for name, result, wanted in zip(("y", "dx", "dweight", "dbias"), results, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, wanted, "reduction", magnitude="largest", label=name)


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ((3, 0), (1, 1))])  # torch: dx of rounding
def test_against_torch(backend, dtype, shape, affine):
    torch = pytest.importorskip("torch")
    dy, x, weight, bias = draw(shape, dtype)
    given = [array if there else None for array, there in zip((weight, bias), affine, strict=True)]
    tensors = [None if a is None else torch.tensor(a, requires_grad=True) for a in (x, *given)]
    expected = torch.nn.functional.layer_norm(tensors[0], shape[-1:], *tensors[1:], eps=1e-3)
    expected.backward(torch.tensor(dy))
    y, *gradients = both(dy, x, *given, eps=1e-3)
    assert_close(y, expected.detach().numpy(), "torch", magnitude="largest")
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert (gradient is None) == (tensor is None)
        if gradient is not None:
            assert_close(gradient, tensor.grad.numpy(), "torch", magnitude="largest")


def test_central_differences(backend):
    gradcheck(
        lambda *inputs: layer_norm(*inputs)[0], draw((3, 5), np.float64)[1:],
        lambda dy, *inputs: layer_norm_backward(dy, layer_norm(*inputs)[1]),
    )  # fmt: skip


@pytest.mark.parametrize("offset", [1e4, 1e7])
def test_a_spread_small_beside_the_mean_does_not_cancel(backend, dtype, offset):
    dy, x, weight, bias = draw((5, 333), dtype)
    x += dtype(offset)
    results, expected = both(dy, x, weight, bias), oracle(both, dy, x, weight, bias)
    for result, wanted in zip(results, expected, strict=True):
        tolerance = "reduction" if dtype is np.float32 else "differences"  # the mean itself is a rounded double there
        assert_close(result, wanted, tolerance, magnitude="largest")


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_neither_large_nor_small_numbers_lose_the_variance(backend, scale):
    x = random(1, (3, 100), np.float32, scale=scale)
    y = layer_norm(x, eps=0.0)[0]
    assert_close(y, oracle(layer_norm, x, eps=0.0)[0], "reduction", magnitude="largest")


def test_a_constant_row_has_the_bias(backend, dtype):
    x, bias = np.full((2, 9), dtype(0.1)), random(4, (9,), dtype)
    y, saved = layer_norm(x, None, bias)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
    assert np.isfinite(layer_norm_backward(bias + x, saved).dx).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_row(backend, dtype, bad):
    dy, x, weight, bias = draw((3, 70), dtype)
    clean = both(dy, x, weight, bias)
    x[1, 66] = bad
    y, dx, dweight, dbias = both(dy, x, weight, bias)
    for result, before in ((y, clean[0]), (dx, clean[1])):
        assert np.isnan(result[1]).all()
        np.testing.assert_array_equal(result[::2], before[::2])
    assert np.isnan(dweight).all() and np.isfinite(dbias).all()


def assert_same(backend, result, expected, label):
    """Compare bits; on a device, where an array that begins off 16 bytes is summed in another order, not quite."""
    if backend in DEVICES:
        assert_close(result, expected, "reduction", magnitude="largest", label=label)
    else:
        np.testing.assert_array_equal(result, expected, err_msg=label)


def test_layouts_and_aliases(backend, dtype):
    dy, x, weight, bias = draw((6, 5, 4), dtype)
    y, dx, dweight, dbias = both(dy, x, weight, bias)
    for name, view in layouts(x).items():
        for result, expected in zip(both(dy, view, weight, bias), (y, dx, dweight, dbias), strict=True):
            assert_same(backend, result, expected, name)
    _, saved = layer_norm(x, weight, bias)
    for name, view in layouts(dy).items():
        result = layer_norm_backward(view, saved, out=view)
        assert result.dx is view
        assert_same(backend, view, dx, name)
        assert_same(backend, result.dweight, dweight, name)
    for name, view in layouts(np.zeros_like(x)).items():
        assert layer_norm(x, weight, bias, out=view)[0] is view
        assert_same(backend, view, y, name)


@pytest.mark.parametrize("shape", [(700, 67), (3, 65537)])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, shape):
    arguments = draw(shape, dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(b"".join(result.tobytes() for result in both(*arguments)))
    assert len(seen) == 1


def test_stores_past_the_caches_change_nothing(monkeypatch, dtype):
    from fastgrad.kernels import streams

    for columns in (64, 67, 3, 1031):
        arguments = draw((9, columns), dtype)
        with fastgrad.backend("cpu"):
            plain = both(*arguments)
            monkeypatch.setattr(streams, "STREAMING_BYTES", 1)
            for result, expected in zip(both(*arguments), plain, strict=True):
                np.testing.assert_array_equal(result, expected)
            monkeypatch.undo()


@pytest.mark.parametrize("skip", [0, 1])
def test_a_device_beginning_on_16_bytes_or_not(on_device, dtype, skip):
    dy, x, weight, bias = draw((5, 96), dtype)
    place = np.zeros(x.size + 1, dtype)[skip : skip + x.size].reshape(x.shape)
    place[...] = x
    expected = oracle(both, dy, x, weight, bias)
    y, saved = on_device(layer_norm)(place, weight, bias)
    results = y, *on_device(layer_norm_backward)(dy, saved)
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result, wanted, "reduction", magnitude="largest")


def test_errors():
    dy, x, weight, bias = draw((3, 4), np.float32)
    _, saved = layer_norm(x, weight, bias)

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    error(ValueError, r"x: expected at least one axis", layer_norm, np.ones((), np.float32))
    error(ValueError, r"weight: expected shape \(4,\), got \(3,\)", layer_norm, x, weight[:3])
    error(TypeError, "bias is float64 but x is float32", layer_norm, x, weight, bias.astype(np.float64))
    error(ValueError, "eps: expected a finite number >= 0", layer_norm, x, weight, bias, -1.0)
    error(ValueError, "out and x overlap", layer_norm, x, weight, bias, out=x)
    error(ValueError, "out: the array is read-only", layer_norm, x, weight, bias, out=read_only(x))
    error(ValueError, r"dy: expected shape \(3, 4\), got \(4,\)", layer_norm_backward, dy[0], saved)
    error(ValueError, "out and x overlap", layer_norm_backward, dy, saved, out=x)


def test_a_planted_fault_is_caught(monkeypatch):
    arguments = draw((3, 5), np.float64)
    expected = oracle(both, *arguments)[1]
    original = layer_norm_ref.layer_norm_backward

    def without_the_variance(dy, x, weight, mean, rstd, dx, dweight, dbias):
        original(dy, x, weight, mean, rstd, dx, dweight, dbias)
        g = weight * dy
        dx[...] = rstd[:, None] * (g - g.mean(axis=1, keepdims=True))

    monkeypatch.setattr(layer_norm_ref, "layer_norm_backward", without_the_variance)
    with pytest.raises(AssertionError):
        assert_close(oracle(both, *arguments)[1], expected, "reduction", magnitude="largest")


# --- the layer


@pytest.mark.parametrize(("normalized", "options"), [
    (6, {}), ((3, 6), {}), (6, {"bias": False}), (6, {"elementwise_affine": False}), ((2, 3, 6), {"eps": 1e-2}),
])  # fmt: skip
def test_the_layer_against_torch(backend, dtype, normalized, options):
    torch = pytest.importorskip("torch")
    layer = LayerNorm(normalized, dtype=dtype, **options)
    module = torch.nn.LayerNorm(normalized, dtype=torch.float64 if dtype is np.float64 else torch.float32, **options)
    assert list(layer.state_dict()) == list(module.state_dict())
    values = {
        name: random(k, array.shape, dtype) for k, (name, array) in enumerate(layer.state_dict().items(), start=10)
    }
    layer.load_state_dict(values)
    module.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    layer = placed(layer, backend)
    x, dy = random(1, (4, 2, 3, 6), dtype), random(2, (4, 2, 3, 6), dtype)
    t = torch.tensor(x, requires_grad=True)
    expected = module(t)
    expected.backward(torch.tensor(dy))
    assert_close(layer.forward(x), expected.detach().numpy(), "torch", magnitude="largest")
    assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")
    theirs = dict(module.named_parameters())
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, theirs[name].grad.numpy(), "torch", magnitude="largest")


def test_the_layer_begins_as_torchs_and_checks():
    layer = LayerNorm((2, 3))
    np.testing.assert_array_equal(layer.weight.data, np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(layer.bias.data, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 2, 3\), got ndarray of shape \(3, 2\)"):
        layer.forward(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="normalized_shape"):
        LayerNorm(0)
    with pytest.raises(ValueError, match="normalized_shape"):
        LayerNorm(())
