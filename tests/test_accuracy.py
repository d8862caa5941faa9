"""Every activation within 4 ulp of the exact value in float32. `bench/accuracy.py` prints the errors."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import runtime, streams, vecmath
from support import oracle

import fastgrad
from fastgrad import activation, activation_backward
from fastgrad.activations import KINDS

BOUND = 4.0
# Where the derivative crosses zero. There 4 ulp of 0.01 are allowed as long as |f'| is below 0.01.
ZEROS = {"gelu": -0.7517915247, "gelu_tanh": -0.7524614221, "silu": -1.2784645428, "mish": -1.1924312146,
         "hardswish": -1.5}  # fmt: skip
DENSE = (2.0**-7, 16.0)  # outside of these magnitudes, activations are straight lines or powers of e
# Where errors are largest of all float32.
BENDS = (1.725554e-4, -0.177948, -0.186881, -0.3248597, -0.5509921, -2.5964408, -2.977865, -3.211251, -3.727457,
         -3.8101838, -5.964304, -9.833552)  # fmt: skip


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    """Float32 numbers of every exponent and sign, lines, and all neighbours of the places that are hardest."""
    low, high = (int(np.float32(v).view(np.uint32)) for v in DENSE)
    magnitudes = np.arange(low, high, 1511, dtype=np.uint32).view(np.float32)
    everywhere = np.arange(0, 1 << 32, 65_521, dtype=np.uint32).view(np.float32)
    hard = [np.float32(v).view(np.uint32) + np.arange(-4000, 4000, dtype=np.int64) for v in (*ZEROS.values(), *BENDS)]
    parts = [everywhere[np.isfinite(everywhere)], -magnitudes, magnitudes, np.linspace(-110, 110, 50_001)]
    parts += [bits.astype(np.uint32).view(np.float32) for bits in hard]
    return np.concatenate(parts).astype(np.float32)


def errors(result: np.ndarray, exact: np.ndarray, x: np.ndarray, zero: float | None = None) -> np.ndarray:
    """Return the errors in ulp of the exact value, 0 where that is not a normal number.

    zero : where the derivative crosses zero
    """
    size = np.abs(exact)
    ulp = np.ldexp(1.0, np.frexp(size)[1] - 24)
    if zero is not None:
        near = (np.abs(x.astype(np.float64) - zero) < 0.25) & (size < 0.01)
        ulp = np.where(near, float(np.spacing(np.float32(0.01))), ulp)
    normal = (size >= float(np.finfo(np.float32).tiny)) & (size <= float(np.finfo(np.float32).max))
    error = np.abs(result[normal].astype(np.float64) - exact[normal]) / ulp[normal]
    return np.where(np.isnan(error), np.inf, error)


def check(result: np.ndarray, exact: np.ndarray, x: np.ndarray, zero: float | None = None) -> None:
    worst = float(errors(result, exact, x, zero).max(initial=0))
    assert worst <= BOUND, f"{worst:.2f} ulp, more than {BOUND:g}"


@pytest.mark.parametrize("kind", KINDS)
def test_forward_within_four_ulp(numbers, kind):
    with fastgrad.backend("cpu"):
        y = activation(numbers, kind)
    check(y, oracle(activation, numbers, kind), numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_within_four_ulp(numbers, kind):
    ones = np.ones_like(numbers)
    with fastgrad.backend("cpu"):
        dx = activation_backward(ones, numbers, kind)
    check(dx, oracle(activation_backward, ones, numbers, kind), numbers, ZEROS.get(kind))


@pytest.mark.parametrize("kind", ZEROS)
def test_the_derivative_crosses_zero_there(kind):
    x = ZEROS[kind] + np.array([-1e-8, 1e-8])
    below, above = oracle(activation_backward, np.ones(2), x, kind)
    assert below < 0 < above


# How these derivatives are written elsewhere.
FAULTS = {
    "silu": lambda m, x: vecmath.sigmoid(m, x) * (x * (1.0 - vecmath.sigmoid(m, x)) + 1.0),
    "sigmoid": lambda m, x: vecmath.sigmoid(m, x) * (1.0 - vecmath.sigmoid(m, x)),
    "tanh": lambda m, x: 1.0 - vecmath.tanh(m, x) * vecmath.tanh(m, x),
}


@runtime.kernel
def _planted(kind: str, dtype: np.dtype):
    return streams.streams_kernel(lambda m, inputs, scalars: (FAULTS[kind](m, inputs[0]),), dtype, (0,), (1,))


@pytest.mark.parametrize(("kind", "low", "high"), [("silu", -1.35, -1.2), ("sigmoid", 3, 20), ("tanh", 1, 9)])
def test_planted_faults_are_caught(kind, low, high):
    x = np.linspace(low, high, 20_001, dtype=np.float32)
    dx = np.empty_like(x)
    streams.Table([[x], [dx]]).run(_planted(kind, x.dtype))
    exact = oracle(activation_backward, np.ones_like(x), x, kind)
    np.testing.assert_allclose(dx, exact, atol=1e-6)  # right, but for the digits
    with pytest.raises(AssertionError, match="ulp"):
        check(dx, exact, x, ZEROS.get(kind))


def test_one_ulp_more_is_caught(numbers):
    """The check itself: results off by five units of their exact value's binade must fail, by three must pass."""
    x = numbers[np.abs(numbers) > 1e-30]
    exact = x.astype(np.float64)
    ulp = np.ldexp(1.0, np.frexp(exact)[1] - 24)
    check((exact + 3 * ulp * (np.abs(exact) < 1e38)).astype(np.float32), exact, x)
    with pytest.raises(AssertionError, match=r"5\.00 ulp"):
        check((exact - 5 * ulp * (exact == exact[7])).astype(np.float32), exact, x)
