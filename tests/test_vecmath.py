"""The vector functions in ulp, against float64 (for float32) and extended precision (for float64)."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import runtime, streams, vecmath
from scipy import special

LONG = np.longdouble
needs_extended = pytest.mark.skipif(np.finfo(LONG).nmant < 63, reason="no extended precision on this machine")

# name -> (reference, lowest, highest, bound in ulp)
FUNCTIONS = {
    "exp": (np.exp, -87.0, 88.5, 1.0),
    "exp_negative": (np.exp, -87.0, 0.0, 1.0),
    "expm1_negative": (np.expm1, -100.0, 0.0, 2.0),
    "log1p_unit": (np.log1p, 0.0, 1.0, 2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -87.0, 100.0, 3.0),
    "sigmoid_derivative": (lambda x: np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2, -87.0, 87.0, 3.0),
    "tanh": (np.tanh, -100.0, 100.0, 3.0),
    "tanh_derivative": (lambda x: 1 / np.cosh(x) ** 2, -43.0, 43.0, 3.0),
}
NORMAL = {
    "normal_tail": (lambda t: special.erfcx(t / np.sqrt(2.0)) / 2, 3.0),
    "normal_tail_slope": (lambda t: special.erfcx(t / np.sqrt(2.0)) / 2 - t / np.sqrt(2 * np.pi), 4.0),
}


@runtime.kernel
def _apply(name: str, dtype: np.dtype):
    function = getattr(vecmath, name)
    return streams.streams_kernel(lambda m, inputs, scalars: (function(m, inputs[0]),), dtype, (0,), (1,))


def apply(name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    streams.Table([[x], [y]]).run(_apply(name, x.dtype))
    return y


def points(low: float, high: float, dtype) -> np.ndarray:
    """Return numbers of every magnitude between the bounds, and a dense line."""
    dtype = np.dtype(dtype)
    magnitudes = np.geomspace(1e-37 if dtype == np.float32 else 1e-300, 1e3, 40_001)
    x = np.concatenate([magnitudes, -magnitudes, np.linspace(low, high, 200_003), [0.0, -0.0, low, high]]).astype(dtype)
    return x[(x >= low) & (x <= high)]


def ulps(result: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the errors in units in the last place of the exact value, where that is a normal number."""
    normal = np.abs(exact) >= np.finfo(result.dtype).tiny
    spacing = np.spacing(np.abs(exact[normal]).astype(result.dtype)).astype(exact.dtype)
    return np.abs(result[normal].astype(exact.dtype) - exact[normal]) / spacing


def check(result: np.ndarray, exact: np.ndarray, bound: float) -> None:
    worst = float(ulps(result, exact).max(initial=0))
    assert worst <= bound, f"{worst:.2f} ulp, more than {bound}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_within_bound(name):
    reference, low, high, bound = FUNCTIONS[name]
    x = points(low, high, np.float32)
    check(apply(name, x), reference(x.astype(np.float64)), bound)


@needs_extended
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_within_bound(name):
    reference, low, high, bound = FUNCTIONS[name]
    scale = 8.0  # the range of double's exponent over float's
    low, high = (v if name == "log1p_unit" else v * scale for v in (low, high))
    x = points(low, high, np.float64)
    check(apply(name, x), reference(x.astype(LONG)), bound)


@pytest.mark.parametrize("name", NORMAL)
def test_normal_tail_within_bound(name):
    reference, bound = NORMAL[name]
    t = np.linspace(0, 15, 400_003, dtype=np.float32)
    exact = reference(t.astype(np.float64))
    # The oracle loses digits around the zero of the slope; 1e-13 of them are far below a float32's.
    check(apply(name, t), exact, bound)


@pytest.mark.parametrize("name", NORMAL)
def test_normal_tail_in_double(name):
    reference, _ = NORMAL[name]
    t = np.linspace(0, 38, 100_003)
    np.testing.assert_allclose(apply(name, t), reference(t), rtol=3e-15, atol=3e-16)


@pytest.mark.parametrize("name", [*FUNCTIONS, *NORMAL])
def test_nan_gives_nan(name, dtype):
    assert np.isnan(apply(name, np.full(3, np.nan, dtype))).all()


def test_exp_at_the_ends(dtype):
    x = np.array([-np.inf, -1e30, np.inf, 1e30], dtype)
    np.testing.assert_array_equal(apply("exp", x), np.array([0, 0, np.inf, np.inf], dtype))
    np.testing.assert_array_equal(apply("exp_negative", x[:2]), np.zeros(2, dtype))


@pytest.mark.parametrize("name", ["exp", "exp_negative"])
def test_exp_of_subnormal_results_is_rounded_once(name):
    x = np.linspace(-103.5, -88.0, 10_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(apply(name, x) - exact)) <= np.finfo(np.float32).smallest_subnormal


def test_a_wrong_digit_is_caught(monkeypatch):
    """One coefficient off in its sixth digit must fail the check that the right one passes."""
    wrong = (*vecmath.EXP_F32[:-2], vecmath.EXP_F32[-2] * (1 + 1e-5), vecmath.EXP_F32[-1])
    monkeypatch.setattr(vecmath, "EXP_F32", wrong)

    @runtime.kernel
    def planted(dtype: np.dtype):
        return streams.streams_kernel(lambda m, inputs, s: (vecmath.exp(m, inputs[0]),), dtype, (0,), (1,))

    x = points(-87.0, 88.0, np.float32)
    y = np.empty_like(x)
    streams.Table([[x], [y]]).run(planted(x.dtype))
    with pytest.raises(AssertionError, match="ulp"):
        check(y, np.exp(x.astype(np.float64)), FUNCTIONS["exp"][3])


def test_a_partial_vector_computes_as_a_whole_one():
    """An element's result must not depend on where in an array it lies."""
    x = np.linspace(-5, 5, 1000, dtype=np.float32)
    whole = apply("tanh", x)
    for start, stop in ((0, 1), (0, 63), (1, 64), (3, 70), (17, 1000)):
        np.testing.assert_array_equal(apply("tanh", x[start:stop].copy()), whole[start:stop])
