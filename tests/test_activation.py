"""activation, activation_backward."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastgrad.kernels import activation_cpu, activation_ref, streams
from scipy.special import expit, ndtr
from support import SHAPES, layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import activation, activation_backward
from fastgrad.activations import KINDS
from fastgrad.testing import gradcheck

# Parameters that are powers of two where they multiply x before exp, so that the product loses nothing in float32 (and
# because torch rounds alpha of celu to float32 in its float64 backward pass).
CASES = [(kind, {}) for kind in KINDS] + [
    ("leaky_relu", {"negative_slope": 0.2}),
    ("hardtanh", {"min_val": -0.5, "max_val": 2.0}),
    ("elu", {"alpha": 1.7}),
    ("celu", {"alpha": 0.5}),
    ("softplus", {"beta": 2.0}),
]
IDS = [kind + "".join(f"-{value}" for value in params.values()) for kind, params in CASES]
EXACT = {"identity", "relu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish"}
KINKS = {"relu": [0], "leaky_relu": [0], "relu6": [0, 6], "hardtanh": [-1, 1, -0.5, 2], "elu": [0], "selu": [0],
         "celu": [0], "hardsigmoid": [-3, 3], "hardswish": [-3, 3]}  # fmt: skip


def operation(kind: str, backend: str) -> str:
    if kind in EXACT:
        return "pointwise"
    return "transcendental" if backend == "cpu" else "naive"


def derivative_terms(kind: str, x: np.ndarray) -> np.ndarray | None:
    """Return the size of the terms of a derivative that crosses zero; None for the others."""
    x = np.clip(x.astype(np.float64), -1e3, 1e3)
    if kind == "gelu":
        return ndtr(x) + np.abs(x) * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if kind == "silu":
        return expit(x) * (1 + np.abs(x) * expit(-x))
    if kind == "gelu_tanh":
        u2 = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return expit(u2) * (1 + np.abs(x) * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x) * expit(-u2))
    if kind == "mish":
        softplus = np.minimum(np.logaddexp(0, x), 300)
        return np.tanh(softplus) + np.abs(x) * expit(x) / np.cosh(softplus) ** 2
    if kind == "hardswish":
        return np.abs(x) / 3 + 0.5
    return None


def forward_terms(kind: str, x: np.ndarray) -> np.ndarray | None:
    # x + 3 is rounded before it is multiplied.
    return np.abs(x) * 1.5 + 3.0 if kind in {"hardswish", "hardsigmoid"} else None


def times(dy, terms):
    return None if terms is None else np.abs(dy * terms)


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_forward_against_float64(backend, dtype, kind, params):
    for seed, shape in enumerate(SHAPES):
        x = random(seed, shape, dtype, scale=3.0)
        y = activation(x, kind, **params)
        assert y.dtype == dtype and y is not x
        expected = oracle(activation, x, kind, **params)
        assert_close(y, expected, operation(kind, backend), magnitude=forward_terms(kind, x), label=f"{kind} {shape}")


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_backward_against_float64(backend, dtype, kind, params):
    for seed, shape in enumerate(SHAPES):
        x, dy = random(seed, shape, dtype, scale=3.0), random(seed + 100, shape, dtype)
        dx = activation_backward(dy, x, kind, **params)
        assert dx.dtype == dtype
        expected = oracle(activation_backward, dy, x, kind, **params)
        terms = times(dy, derivative_terms(kind, x))
        assert_close(dx, expected, operation(kind, backend), magnitude=terms, label=f"{kind} {shape}")


@pytest.mark.parametrize(
    "shape", [(7,), (0, 3), (3, 0), (1, 5), (13, 17), (1031, 3), (9, 5, 65), (70, 1030), (5, 8193)]
)
@pytest.mark.parametrize("kind", ["relu", "gelu", "tanh", "identity"])
def test_bias_grad(backend, dtype, kind, shape):
    x, dy = random(1, shape, dtype), random(2, shape, dtype)
    bias_grad = np.full(shape[-1], np.nan, dtype)
    dx = activation_backward(dy, x, kind, bias_grad=bias_grad)
    np.testing.assert_array_equal(dx, activation_backward(dy, x, kind))
    expected = oracle(activation_backward, dy, x, kind)
    axes = tuple(range(len(shape) - 1))
    # Where there is one row only, the sum inherits the error of dx.
    magnitude = np.abs(dy.astype(np.float64)).sum(axis=axes)
    assert_close(bias_grad, expected.sum(axis=axes), "reduction", magnitude=magnitude)


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_central_differences(backend, kind, params):
    x = random(3, (61,), scale=2.5)
    for kink in KINKS.get(kind, []):
        x = np.where(np.abs(x - kink) < 1e-3, x + 0.01, x)
    gradcheck(lambda x: activation(x, kind, **params), x, lambda dy, x: activation_backward(dy, x, kind, **params))


def torch_function(kind: str, params: dict):
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    special = {
        "identity": lambda x: x * 1.0,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    function = special.get(kind) or getattr(functional, kind)
    return lambda x: function(x, **params)


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_against_torch(backend, kind, params):
    torch = pytest.importorskip("torch")
    # Inside of torch's straight line for softplus, and where 1 - tanh^2 still has digits.
    x, dy = np.clip(random(5, (31, 33), scale=2.0), -6, 6), random(6, (31, 33))
    kinks = np.array(KINKS.get(kind, []), dtype=float)
    x[0, : kinks.size] = kinks
    t = torch.tensor(x, requires_grad=True)
    y = torch_function(kind, params)(t)
    y.backward(torch.tensor(dy))
    assert_close(activation(x, kind, **params), y.detach().numpy(), "torch", magnitude="largest")
    # torch multiplies the gradient of hardsigmoid by a float32 sixth in float64 too.
    digits = np.float32 if kind == "hardsigmoid" else np.float64
    dx = activation_backward(dy, x, kind, **params)
    assert_close(dx, t.grad.numpy(), "torch", magnitude="largest", dtype=digits)


@pytest.fixture(scope="module")
def float32_range():
    """Finite float32 numbers of every exponent and both signs, and a dense sweep where activations bend."""
    bits = np.random.default_rng(7).integers(0, 2**32, 30_000, dtype=np.uint64).astype(np.uint32)
    everywhere = bits.view(np.float32)
    sweep = np.linspace(-110, 110, 30_001, dtype=np.float32)
    return np.concatenate([everywhere[np.isfinite(everywhere)], sweep, np.linspace(-6, 6, 10_001, dtype=np.float32)])


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_every_digit_over_the_whole_float32_range(float32_range, kind, params):
    x = float32_range
    with fastgrad.backend("cpu"):
        y, dx = activation(x, kind, **params), activation_backward(np.ones_like(x), x, kind, **params)
    row = operation(kind, "cpu")
    largest = np.finfo(np.float32).max
    expected = oracle(activation, x, kind, **params)
    # beta x and slope x may leave the range of float32 where x is near its end.
    inside = np.abs(expected) < largest / 8
    assert_close(y[inside], expected[inside], row, magnitude=None if kind not in {"hardswish", "hardsigmoid"}
                 else forward_terms(kind, x.astype(np.float64)[inside]), label="y")  # fmt: skip
    terms = derivative_terms(kind, x)
    assert_close(dx, oracle(activation_backward, np.ones_like(x), x, kind, **params), row, magnitude=terms, label="dx")


@pytest.mark.parametrize(("kind", "params"), CASES, ids=IDS)
def test_every_digit_over_the_float64_range(kind, params):
    # Not between 16 and 100, where the oracle's own exp of a rounded argument is off by more than 1e-13.
    exponents = np.random.default_rng(8).uniform(2, 300, 5000)
    signs = np.where(np.arange(5000) % 2, 1.0, -1.0)
    x = np.concatenate([np.linspace(-16, 16, 20_001), signs * 10**exponents, signs * 10**-exponents])
    with fastgrad.backend("cpu"):
        y, dx = activation(x, kind, **params), activation_backward(np.ones_like(x), x, kind, **params)
    row = operation(kind, "cpu")
    assert_close(y, oracle(activation, x, kind, **params), row, magnitude=forward_terms(kind, x), label="y")
    terms = derivative_terms(kind, x)
    assert_close(dx, oracle(activation_backward, np.ones_like(x), x, kind, **params), row, magnitude=terms, label="dx")


LIMITS = {  # kind -> f(-inf), f(inf), f'(-inf), f'(inf)
    "identity": (-np.inf, np.inf, 1, 1),
    "relu": (0, np.inf, 0, 1),
    "leaky_relu": (-np.inf, np.inf, 0.01, 1),
    "relu6": (0, 6, 0, 0),
    "hardtanh": (-1, 1, 0, 0),
    "elu": (-1, np.inf, 0, 1),
    "celu": (-1, np.inf, 0, 1),
    "selu": (-1.7580993408473766, np.inf, 0, 1.0507009873554805),
    "gelu": (0, np.inf, 0, 1),
    "gelu_tanh": (0, np.inf, 0, 1),
    "silu": (0, np.inf, 0, 1),
    "mish": (0, np.inf, 0, 1),
    "softplus": (0, np.inf, 0, 1),
    "softsign": (-1, 1, 0, 0),
    "sigmoid": (0, 1, 0, 0),
    "logsigmoid": (-np.inf, 0, 1, 0),
    "tanh": (-1, 1, 0, 0),
    "hardsigmoid": (0, 1, 0, 0),
    "hardswish": (0, np.inf, 0, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_infinities_give_the_limit(backend, dtype, kind):
    x = np.array([-np.inf, np.inf], dtype)
    assert_close(activation(x, kind), LIMITS[kind][:2], "pointwise")
    assert_close(activation_backward(np.ones_like(x), x, kind), LIMITS[kind][2:], "pointwise")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [0, 3, 16, 40])
def test_nan_never_passes_in_silence(backend, dtype, kind, where):
    x, dy = random(8, 41, dtype), random(9, 41, dtype)
    clean_y, clean_dx = activation(x, kind), activation_backward(dy, x, kind)
    others = np.arange(41) != where
    bad_x, bad_dy = x.copy(), dy.copy()
    bad_x[where] = bad_dy[where] = np.nan
    y = activation(bad_x, kind)
    assert np.isnan(y[where])
    np.testing.assert_array_equal(y[others], clean_y[others])
    dx = activation_backward(dy, bad_x, kind)
    assert np.isnan(dx[where]) == (kind != "identity")
    np.testing.assert_array_equal(dx[others], clean_dx[others])
    dx = activation_backward(bad_dy, x, kind)
    assert np.isnan(dx[where])
    np.testing.assert_array_equal(dx[others], clean_dx[others])
    bias_grad = np.zeros(1, dtype)
    activation_backward(bad_dy[:, None], x[:, None], kind, bias_grad=bias_grad)
    assert np.isnan(bias_grad[0])


def test_the_product_is_ieee(backend, dtype):
    x = np.array([-1.0, -1.0, 1.0], dtype)
    dy = np.array([np.inf, np.nan, -np.inf], dtype)
    np.testing.assert_array_equal(activation_backward(dy, x, "relu"), np.array([np.nan, np.nan, -np.inf], dtype))


@pytest.mark.parametrize(("kind", "at", "expected"), [
    ("relu", 0, 0), ("leaky_relu", 0, 0.01), ("relu6", 0, 0), ("relu6", 6, 0), ("hardtanh", -1, 0), ("hardtanh", 1, 0),
    ("elu", 0, 1), ("hardsigmoid", -3, 0), ("hardsigmoid", 3, 0), ("hardswish", -3, 0), ("hardswish", 3, 1),
])  # fmt: skip
def test_kinks(backend, dtype, kind, at, expected):
    dx = activation_backward(np.ones(3, dtype), np.full(3, at, dtype), kind)
    assert_close(dx, np.full(3, expected), "pointwise")


@pytest.mark.parametrize("kind", ["relu", "gelu", "leaky_relu"])
def test_layouts_and_aliases(backend, dtype, kind):
    x, dy = random(10, (13, 17), dtype), random(11, (13, 17), dtype)
    y, dx = activation(x, kind), activation_backward(dy, x, kind)
    for name, view in layouts(x).items():
        np.testing.assert_array_equal(activation(view, kind), y, err_msg=name)
        np.testing.assert_array_equal(activation_backward(dy, view, kind), dx, err_msg=name)
        assert activation(view, kind, out=view) is view
        np.testing.assert_array_equal(view, y, err_msg=name)
    for name, view in layouts(dy).items():
        np.testing.assert_array_equal(activation_backward(view, x, kind), dx, err_msg=name)
        assert activation_backward(view, x, kind, out=view) is view
        np.testing.assert_array_equal(view, dx, err_msg=name)
    for name, out in layouts(np.zeros_like(x)).items():
        assert activation_backward(dy, x, kind, out=out) is out
        np.testing.assert_array_equal(out, dx, err_msg=name)
    source = x.copy()
    assert activation_backward(dy, source, kind, out=source) is source
    np.testing.assert_array_equal(source, dx)
    np.testing.assert_array_equal(activation(read_only(x), kind), y)
    strided = np.zeros(34, dtype)[::2]
    contiguous = np.zeros(17, dtype)
    activation_backward(dy, x, kind, bias_grad=contiguous)
    activation_backward(dy, x, kind, bias_grad=strided)
    np.testing.assert_array_equal(strided, contiguous)


def test_bias_grad_has_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    x, dy = random(12, (1031, 67), dtype), random(13, (1031, 67), dtype)
    with fastgrad.backend("cpu"):
        seen = set()
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            bias_grad = np.empty(67, dtype)
            dx = activation_backward(dy, x, "gelu", bias_grad=bias_grad)
            seen.add(bias_grad.tobytes() + dx.tobytes())
    assert len(seen) == 1


def error(exception, match, function, *args, **kwargs):
    with pytest.raises(exception, match=match):
        function(*args, **kwargs)


def test_errors():
    x = random(14, (4, 6), np.float32)
    wide = x.astype(np.float64)
    error(ValueError, "kind: expected one of identity, relu, .*, got 'geluu'", activation, x, "geluu")
    error(TypeError, "kind: expected a string, got int", activation, x, 3)
    error(TypeError, "alpha: relu takes no parameters", activation, x, "relu", alpha=1.0)
    error(TypeError, "alpha: softplus takes beta", activation, x, "softplus", alpha=1.0)
    error(ValueError, "beta: expected a number > 0", activation, x, "softplus", beta=0.0)
    error(ValueError, "alpha: expected a number other than 0", activation, x, "celu", alpha=0.0)
    error(ValueError, "min_val: expected at most max_val = 1.0, got 2.0", activation, x, "hardtanh", min_val=2)
    error(TypeError, "negative_slope: expected a number, got str", activation, x, "leaky_relu", negative_slope="a")
    error(ValueError, "alpha: expected a finite number, got nan", activation, x, "elu", alpha=math.nan)
    error(TypeError, "x: expected a numpy.ndarray or cupy.ndarray, got list", activation, [1.0], "relu")
    error(TypeError, "x: expected float32 or float64, got int64", activation, np.arange(3), "relu")
    error(TypeError, "x: expected float32 or float64, got float16", activation, x.astype(np.float16), "relu")
    error(TypeError, "x: expected native byte order, got >f4", activation, x.astype(">f4"), "relu")
    error(TypeError, "x: .*a subclass of it", activation, np.ma.masked_array(x), "relu")
    error(TypeError, "dy is float64 but x is float32", activation_backward, wide, x, "relu")
    error(
        ValueError, r"dy: expected the shape of x, \(4, 6\), got \(6, 4\)", activation_backward, x.T.copy(), x, "relu"
    )
    error(TypeError, "out is float64 but x is float32", activation, x, "relu", out=wide)
    error(ValueError, r"out: expected shape \(4, 6\), got \(4, 5\)", activation, x, "relu", out=x[:, 1:])
    error(ValueError, "out: the array is read-only", activation, x, "relu", out=read_only(x))
    error(TypeError, "out: expected a numpy.ndarray or cupy.ndarray, got list", activation, x, "relu", out=[])
    spread = np.broadcast_to(np.zeros(6, np.float32), (4, 6))
    spread.flags.writeable = True
    error(ValueError, "out: several entries share one place", activation, x, "relu", out=spread)
    base = random(15, 50, np.float32)
    error(ValueError, "out and x overlap", activation, base[:40], "relu", out=base[5:45])
    error(ValueError, "out and dy overlap", activation_backward, base[:40], base[:40].copy(), "relu", out=base[1:41])
    error(ValueError, r"bias_grad: expected shape \(6,\), got \(4,\)", activation_backward, x, x, "relu",
          bias_grad=np.zeros(4, np.float32))  # fmt: skip
    error(ValueError, "bias_grad and x overlap", activation_backward, x.copy(), x, "relu", bias_grad=x[0])
    out = np.zeros_like(x)
    error(ValueError, "bias_grad and out overlap", activation_backward, x, x, "relu", out=out, bias_grad=out[1])
    scalar = np.ones((), np.float32)
    error(ValueError, "bias_grad: x has no axes", activation_backward, scalar, scalar, "relu", bias_grad=x[0])


def test_interleaved_halves_of_one_buffer_do_not_overlap(backend):
    base = random(16, 40)
    expected = activation(base[::2].copy(), "tanh")
    out = base[1::2]
    np.testing.assert_array_equal(activation(base[::2], "tanh", out=out), expected)


@pytest.mark.parametrize("fault", ["tail", "scale", "kink", "nan"])
def test_planted_faults_are_caught(monkeypatch, fault):
    faults = {
        "tail": ("tanh", lambda x: 1 - np.tanh(x) ** 2),
        "scale": ("gelu", lambda x: activation_ref._gelu_grad(x) * (1 + 1e-5)),
        "kink": ("relu", lambda x: np.where(x >= 0, 1.0, 0.0)),
        "nan": ("relu6", lambda x: ((x > 0) & (x < 6)).astype(x.dtype)),
    }
    kind, wrong = faults[fault]
    x = np.array([-20.0, -9.5, -2.0, 0.0, 1.5, 9.5, np.nan])
    expected = oracle(activation_backward, np.ones_like(x), x, kind)
    monkeypatch.setitem(activation_ref.FUNCTIONS, kind, (activation_ref.FUNCTIONS[kind][0], wrong))
    actual = oracle(activation_backward, np.ones_like(x), x, kind)
    with pytest.raises(AssertionError):
        assert_close(actual, expected, "naive", magnitude=derivative_terms(kind, x))


def test_the_comparison_of_central_differences_catches_a_wrong_derivative():
    def check(kind):
        gradcheck(lambda x: activation(x, "silu"), random(17, (5,)), lambda dy, x: activation_backward(dy, x, kind))

    check("silu")
    with pytest.raises(AssertionError, match="x: 5 of 5 entries are off"):
        check("mish")


@pytest.mark.parametrize("skip", [0, 1, 3, 7])
@pytest.mark.parametrize("columns", [1, 16, 24, 64, 208, 1031])
def test_streaming_stores_change_nothing(monkeypatch, dtype, columns, skip):
    """Outputs on and off the cache lines; rows that are whole lines and rows that are not."""
    rows = 2 * activation_cpu.ROWS + 5
    x, dy = random(1, (rows, columns), dtype), random(2, (rows, columns), dtype)
    streamed = []
    original = activation_cpu._backward_rows
    monkeypatch.setattr(activation_cpu, "_backward_rows", lambda *key: streamed.append(key[-1]) or original(*key))
    with fastgrad.backend("cpu"):
        bias_grad, again = np.empty(columns, dtype), np.empty(columns, dtype)
        wanted = activation_backward(dy, x, "gelu", bias_grad=bias_grad)
        monkeypatch.setattr(streams, "STREAMING_BYTES", 1)
        memory = np.full(x.size + 64, np.nan, dtype)
        start = (-memory.ctypes.data % 64) // memory.itemsize + skip
        out = memory[start : start + x.size].reshape(x.shape)
        activation_backward(dy, x, "gelu", out=out, bias_grad=again)
        np.testing.assert_array_equal(activation_backward(dy, x, "gelu", out=np.empty_like(x)), wanted)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(again, bias_grad)
    assert np.isnan(memory[:start]).all() and np.isnan(memory[start + x.size :]).all()
    assert streamed == [False, True]
