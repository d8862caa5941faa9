"""The one table of tolerances, by kind of operation and dtype, and the one comparison that uses it."""

from __future__ import annotations

import numpy as np

# Largest error allowed, as a share of the magnitude of an entry: |expected|, or what the caller says where terms of
# opposite sign cancel. float32 results are compared with a float64 oracle, so nothing is owed to the oracle there.
TOLERANCES: dict[str, dict[str, float]] = {
    "exact": {"float32": 0.0, "float64": 0.0},
    # A few roundings: scaling, clamping, PReLU, piecewise linear activations.
    "pointwise": {"float32": 3e-7, "float64": 6e-16},
    # exp, tanh, erf and quotients of them. The float64 oracle itself loses digits to exp(-x^2 / 2) far out.
    "transcendental": {"float32": 6e-7, "float64": 1e-13},
    # The same in naive float32, whose exp of a rounded argument loses digits far out.
    "naive": {"float32": 3e-5, "float64": 1e-13},
    # Sums in a fixed order, as a share of the sum of magnitudes.
    "reduction": {"float32": 2e-6, "float64": 1e-14},
    # Norms, accumulated in double whatever the dtype.
    "norm": {"float32": 1e-12, "float64": 1e-12},
    # One optimizer step, as a share of the largest magnitude in the array.
    "step": {"float32": 1e-6, "float64": 1e-14},
    # Matrix products and what is built of them, as a share of the largest magnitude in the array.
    "product": {"float32": 3e-6, "float64": 1e-13},
    # Recurrent layers: matrix products chained over the steps, gate derivatives s (1 - s).
    "recurrent": {"float32": 2e-5, "float64": 1e-12},
    # Against torch in float64, where it computes in another order, and in another form.
    "torch": {"float32": 2e-5, "float64": 1e-11},
    # Losses and weights over 50 steps of training beside torch, whose differences the steps carry on.
    "trajectory": {"float64": 1e-10},
    # Central differences of a float64 function with a step of 1e-6.
    "differences": {"float64": 1e-7},
}


def assert_close(actual, expected, operation: str, *, magnitude=None, dtype=None, label: str = "") -> None:
    """Compare with an oracle: |actual - expected| <= tolerance * magnitude, NaN and Inf at the same places.

    Args:
        operation: a row of TOLERANCES.
        magnitude: broadcast to expected; the size of the terms that make up an entry. "largest" stands for the largest
            |expected| of the array, None for |expected| itself.
        dtype: the arithmetic that was used; that of `actual` without it.
    """
    actual, expected = np.asarray(actual), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape}, expected {expected.shape}"
    dtype = np.dtype(actual.dtype if dtype is None else dtype)
    tolerance = TOLERANCES[operation][dtype.name]
    actual = actual.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=f"{label}: not finite")
    if magnitude is None:
        magnitude = np.abs(expected)
    elif isinstance(magnitude, str):
        magnitude = np.max(np.abs(expected[finite]), initial=0.0)
    # Below the smallest normal number there are fewer digits, down to none.
    floor = 0.0 if tolerance == 0 else float(np.finfo(dtype).tiny)
    allowed = tolerance * np.broadcast_to(magnitude, expected.shape) + floor
    with np.errstate(invalid="ignore"):
        error = np.abs(actual - expected)
    bad = finite & ~(error <= allowed)
    if bad.any():
        worst = np.unravel_index(np.argmax(np.where(bad, error / np.maximum(allowed, 1e-300), 0)), bad.shape)
        raise AssertionError(
            f"{label}: {bad.sum()} of {bad.size} entries are off by more than {tolerance:g} ({operation}, {dtype}); "
            f"worst at {tuple(map(int, worst))}: {actual[worst]!r}, expected {expected[worst]!r}, error "
            f"{error[worst]:g} where {allowed[worst]:g} is allowed"
        )
