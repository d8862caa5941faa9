"""swiglu, geglu and their backward passes."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import activation_ref, glu_cpu, streams
from scipy.special import ndtr
from support import SHAPES, layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import geglu, geglu_backward, swiglu, swiglu_backward
from fastgrad.testing import gradcheck

# name -> forward, backward, the activation of the gate
UNITS = {"swiglu": (swiglu, swiglu_backward, "silu"), "geglu": (geglu, geglu_backward, "gelu")}


@pytest.fixture(params=UNITS)
def unit(request):
    return UNITS[request.param]


def draw(shape, dtype, seed=0):
    """Return dy, gate, up."""
    return random(seed + 1, shape, dtype), random(seed + 2, shape, dtype, scale=3.0), random(seed + 3, shape, dtype)


def operation(backend):
    return "transcendental" if backend == "cpu" else "naive"


def slope_terms(kind, dy, gate, up):
    """Return the size of the terms of dgate, whose derivative crosses zero."""
    x = np.clip(gate.astype(np.float64), -1e3, 1e3)
    if kind == "silu":
        s = activation_ref.sigmoid(x)
        terms = s * (1 + np.abs(x) * activation_ref.sigmoid(-x))
    else:
        terms = ndtr(x) + np.abs(x) * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return np.abs(dy.astype(np.float64) * up) * terms


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(backend, dtype, unit, shape):
    forward, backward, kind = unit
    dy, gate, up = draw(shape, dtype)
    y, gradients = forward(gate, up), backward(dy, gate, up)
    expected = oracle(backward, dy, gate, up)
    assert y.dtype == gradients.dgate.dtype == gradients.dup.dtype == dtype
    assert_close(y, oracle(forward, gate, up), operation(backend), label="y")
    terms = slope_terms(kind, dy, gate, up)
    assert_close(gradients.dgate, expected.dgate, operation(backend), magnitude=terms, label="dgate")
    assert_close(gradients.dup, expected.dup, operation(backend), label="dup")


def test_against_torch_autograd(backend, unit):
    torch = pytest.importorskip("torch")
    forward, backward, kind = unit
    dy, gate, up = draw((31, 33), np.float64)
    g, u = torch.tensor(gate, requires_grad=True), torch.tensor(up, requires_grad=True)
    y = getattr(torch.nn.functional, kind)(g) * u
    y.backward(torch.tensor(dy))
    gradients = backward(dy, gate, up)
    assert_close(forward(gate, up), y.detach().numpy(), "torch", magnitude="largest")
    assert_close(gradients.dgate, g.grad.numpy(), "torch", magnitude="largest")
    assert_close(gradients.dup, u.grad.numpy(), "torch", magnitude="largest")


def test_central_differences(backend, unit):
    forward, backward, _ = unit
    gradcheck(forward, draw((3, 5), np.float64)[1:], backward)


def test_every_digit_over_the_float32_range(unit):
    """The tails too, where 1 - sigmoid and 1 + erf have no digits left."""
    forward, backward, kind = unit
    bits = np.random.default_rng(7).integers(0, 2**32, 30_000, dtype=np.uint64).astype(np.uint32)
    everywhere = bits.view(np.float32)
    gate = np.concatenate([everywhere[np.isfinite(everywhere)], np.linspace(-110, 110, 30_001, dtype=np.float32)])
    dy, up = random(4, gate.shape, np.float32), random(5, gate.shape, np.float32)
    expected = oracle(forward, gate, up), *oracle(backward, dy, gate, up)
    with fastgrad.backend("cpu"):
        actual = forward(gate, up), *backward(dy, gate, up)
    inside = np.abs(gate) < np.finfo(np.float32).max / 64  # products stay inside of the range
    terms = (None, slope_terms(kind, dy, gate, up)[inside], None)
    for name, mine, wanted, size in zip(("y", "dgate", "dup"), actual, expected, terms, strict=True):
        assert_close(mine[inside], wanted[inside], "transcendental", magnitude=size, label=name)


def test_the_activation_is_that_of_its_kind(dtype, unit):
    forward, backward, kind = unit
    dy, gate, _ = draw((4097,), dtype)
    one = np.ones_like(gate)
    with fastgrad.backend("cpu"):
        np.testing.assert_array_equal(forward(gate, one), fastgrad.activation(gate, kind))
        dgate, dup = backward(dy, gate, one)
        np.testing.assert_array_equal(dgate, fastgrad.activation_backward(dy, gate, kind))
        np.testing.assert_array_equal(dup, dy * fastgrad.activation(gate, kind))


@pytest.mark.parametrize("skips", [(0, 0, 0, 0, 0), (1, 1, 1, 1, 1), (0, 0, 3, 0, 0), (2, 2, 2, 2, 1)], ids=str)
@pytest.mark.parametrize("size", [1, 127, 512, 2048, 5003])
def test_a_device_has_the_bits_of_the_cpu(on_device, dtype, unit, size, skips):
    """Whole blocks, the rest of one, and arrays that begin on 16 bytes or do not."""
    forward, backward, _ = unit
    dy, gate, up = draw((size,), dtype, seed=size)
    gate = np.clip(gate, -12, 12)  # a GPU takes subnormal numbers for 0, which follow further out
    with fastgrad.backend("cpu"):
        y, gradients = forward(gate, up), backward(dy, gate, up)
    places = [np.zeros(size + 4, dtype)[skip : skip + size] for skip in skips]
    for place, values in zip(places, (dy, gate, up), strict=False):
        place[...] = values
    out, other = places[3:]
    on_device(forward)(*places[1:3], out=out)
    np.testing.assert_array_equal(out, y)
    on_device(backward)(*places[:3], out=(out, other))
    np.testing.assert_array_equal(out, gradients.dgate)
    np.testing.assert_array_equal(other, gradients.dup)


def test_layouts_and_aliases(backend, dtype, unit):
    forward, backward, _ = unit
    arrays = draw((13, 17), dtype)
    y, gradients = forward(*arrays[1:]), backward(*arrays)
    for k in range(3):
        for name, view in layouts(arrays[k]).items():
            given = [*arrays[:k], view, *arrays[k + 1 :]]
            label = f"{name} of argument {k}"
            if k:
                np.testing.assert_array_equal(forward(*given[1:]), y, err_msg=label)
            for mine, wanted in zip(backward(*given), gradients, strict=True):
                np.testing.assert_array_equal(mine, wanted, err_msg=label)
            np.testing.assert_array_equal(view, arrays[k], err_msg=label)
    for name in layouts(y):
        out = layouts(np.zeros_like(y))[name]
        assert forward(*arrays[1:], out=out) is out
        np.testing.assert_array_equal(out, y, err_msg=name)
        pair = layouts(np.zeros_like(y))[name], layouts(np.zeros_like(y))[name]
        written = backward(*arrays, out=pair)
        assert written.dgate is pair[0] and written.dup is pair[1]
        for mine, wanted in zip(pair, gradients, strict=True):
            np.testing.assert_array_equal(mine, wanted, err_msg=name)
    for k in (1, 2):
        given = [a.copy() for a in arrays]
        assert forward(*given[1:], out=given[k]) is given[k]
        np.testing.assert_array_equal(given[k], y)
    for one in range(3):
        for two in {0, 1, 2} - {one}:
            given = [a.copy() for a in arrays]
            backward(*given, out=(given[one], given[two]))
            np.testing.assert_array_equal(given[one], gradients.dgate, err_msg=f"{one} {two}")
            np.testing.assert_array_equal(given[two], gradients.dup, err_msg=f"{one} {two}")
    dgate = np.zeros_like(y)
    written = backward(*map(read_only, arrays), out=[dgate, None])
    assert written.dgate is dgate
    np.testing.assert_array_equal(written.dup, gradients.dup)


@pytest.mark.parametrize("skips", [(0, 0), (1, 1), (3, 3), (0, 1)], ids=str)
def test_streaming_stores_change_nothing(monkeypatch, dtype, unit, skips):
    """Outputs on and off the cache lines, also each in its own way; block after block."""
    forward, backward, _ = unit
    dy, gate, up = draw((2 * streams.BLOCK + 1031,), dtype)
    launched = []
    original = glu_cpu._backward
    monkeypatch.setattr(glu_cpu, "_backward", lambda *key: launched.append(key[-1]) or original(*key))
    with fastgrad.backend("cpu"):
        y, gradients = forward(gate, up), backward(dy, gate, up)
        monkeypatch.setattr(streams, "STREAMING_BYTES", 1)
        outs = [fastgrad._memory.empty(gate.size + 16, dtype)[skip : skip + gate.size] for skip in skips]
        for out in outs:
            forward(gate, up, out=out)
            np.testing.assert_array_equal(out, y)
        for mine, wanted in zip(backward(dy, gate, up, out=outs), gradients, strict=True):
            np.testing.assert_array_equal(mine, wanted)
    assert launched == [False, skips[0] == skips[1]]


def test_infinities_give_the_limit(backend, dtype, unit):
    forward, backward, _ = unit
    gate, up, dy = np.array([-np.inf, np.inf], dtype), np.array([3.0, -2.0], dtype), np.array([5.0, 7.0], dtype)
    np.testing.assert_array_equal(forward(gate, up), [0, -np.inf])
    dgate, dup = backward(dy, gate, up)
    np.testing.assert_array_equal(dgate, [0, -14])
    np.testing.assert_array_equal(dup, [0, np.inf])
    # The product is an IEEE product.
    assert np.isnan(forward(gate, np.array([np.inf, 0.0], dtype))).all()


@pytest.mark.parametrize("where", [0, 16, 40])
def test_nan_never_passes_in_silence(backend, dtype, unit, where):
    forward, backward, _ = unit
    arrays = draw(41, dtype)
    y, gradients = forward(*arrays[1:]), backward(*arrays)
    others = np.arange(41) != where
    for k in range(3):
        given = [a.copy() for a in arrays]
        given[k][where] = np.nan
        bad = [forward(*given[1:]), *backward(*given)]
        # dy does not enter y, and up does not enter dup.
        for enters, array, clean in zip((k != 0, True, k != 2), bad, (y, *gradients), strict=True):
            assert np.isnan(array[where]) == enters
            np.testing.assert_array_equal(array[others], clean[others])


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, unit):
    forward, backward, _ = unit
    arrays = draw((1031, 67), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(b"".join(a.tobytes() for a in [forward(*arrays[1:]), *backward(*arrays)]))
    assert len(seen) == 1


def error(exception, match, function, *args, **kwargs):
    with pytest.raises(exception, match=match):
        function(*args, **kwargs)


def test_errors(unit):
    forward, backward, _ = unit
    dy, gate, up = draw((4, 6), np.float32)
    wide = gate.astype(np.float64)
    error(TypeError, "gate: expected a numpy.ndarray or cupy.ndarray, got list", forward, [1.0], up)
    error(TypeError, "gate: expected float32 or float64, got int64", forward, np.arange(3), up)
    error(TypeError, "up is float64 but gate is float32", forward, gate, wide)
    error(ValueError, r"up: expected the shape of gate, \(4, 6\), got \(6,\)", forward, gate, up[0])
    error(TypeError, "out is float64 but gate is float32", forward, gate, up, out=wide)
    error(ValueError, r"out: expected shape \(4, 6\), got \(4, 5\)", forward, gate, up, out=gate[:, 1:])
    error(ValueError, "out: the array is read-only", forward, gate, up, out=read_only(gate))
    base = random(15, 50, np.float32)
    error(ValueError, "out and up overlap", forward, base[:40].copy(), base[:40], out=base[5:45])
    error(TypeError, "dy is float64 but gate is float32", backward, wide, gate, up)
    error(ValueError, r"dy: expected the shape of gate, \(4, 6\), got \(4, 5\)", backward, dy[:, 1:], gate, up)
    error(TypeError, r"out: expected a pair of arrays \(dgate, dup\), got ndarray", backward, dy, gate, up, out=dy)
    error(TypeError, r"out: expected a pair of arrays \(dgate, dup\), got 1 entries", backward, dy, gate, up, out=[dy])
    error(ValueError, r"out\[0\]: the array is read-only", backward, dy, gate, up, out=(read_only(dy), dy))
    error(ValueError, r"out\[1\]: expected shape", backward, dy, gate, up, out=(dy, dy[1:]))
    error(ValueError, r"out\[1\] and out\[0\] overlap", backward, dy, gate, up, out=(dy, dy))
    args = (base[:40], base[:40].copy(), base[:40].copy())
    error(ValueError, r"out\[0\] and dy overlap", backward, *args, out=(base[1:41], args[1]))


@pytest.mark.parametrize("fault", ["other activation", "derivative", "swapped", "without up"])
def test_planted_faults_are_caught(monkeypatch, fault):
    dy, gate, up = draw((31,), np.float64)
    expected = oracle(swiglu_backward, dy, gate, up)
    function, derivative = activation_ref.FUNCTIONS["silu"]
    if fault in {"other activation", "derivative"}:
        wrong = {
            "other activation": activation_ref.FUNCTIONS["gelu_tanh"],
            "derivative": (function, lambda x: derivative(x) * (1 + 1e-9)),
        }[fault]
        monkeypatch.setitem(activation_ref.FUNCTIONS, "silu", wrong)
        actual = oracle(swiglu_backward, dy, gate, up)
    elif fault == "swapped":
        actual = oracle(swiglu_backward, dy, up, gate)
    else:
        actual = oracle(swiglu_backward, dy, gate, np.ones_like(up))
    with pytest.raises(AssertionError):
        assert_close(actual.dgate, expected.dgate, "naive", magnitude=slope_terms("silu", dy, gate, up))
        assert_close(actual.dup, expected.dup, "naive")
