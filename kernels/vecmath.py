"""Elementary functions as polynomials over SIMD vectors, float32 and float64.

Each is a function of a `simd.Machine` and a vector `Value`. No table look-ups and no branches, so a vector of any
length runs at once. NaN gives NaN. Error bounds are in units in the last place (ulp) over the whole range, measured
against mpmath by `tests/test_vecmath.py`.

The polynomials interpolate at Chebyshev nodes, solved with 60 digits; the error of each is noted beside it.
"""

from __future__ import annotations

import numpy as np

from .simd import Machine, Value

# (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2; relative error 3e-9 and 4e-20.
EXP_F32 = (0.000198910805, 0.00139337307, 0.00833331084, 0.0416664642, 0.166666667, 0.500000001)
EXP_F64 = (
    1.6086677666787362e-10, 2.091821231913398e-09, 2.5052070959803662e-08, 2.755726307730941e-07,
    2.7557319247344507e-06, 2.480158733663095e-05, 0.00019841269841263252, 0.0013888888888879004,
    0.008333333333333333, 0.04166666666666668, 0.16666666666666666, 0.5,
)  # fmt: skip
# (atanh(s) / s - 1) / s^2 in s^2, for s <= 1/3; relative error 1e-8 (of a term below 1/27 of the whole) and 9e-20.
LOG1P_F32 = (0.116121646, 0.108532879, 0.14296179, 0.199998532, 0.333333337)
LOG1P_F64 = (
    0.07615631309714492, 0.03167055425885123, 0.04971012448277368, 0.05240199617182637, 0.05883998883620518,
    0.06666588474569089, 0.07692310126902081, 0.09090909043002827, 0.11111111111665993, 0.1428571428571097,
    0.20000000000000007, 0.3333333333333333,
)  # fmt: skip
# Phi(-t) exp(t^2 / 2) (t + k), in u = (t - k) / (t + k); k = 3 for t <= 15, 4 for t <= 40; relative error 1e-9, 4e-17.
TAIL_F32 = (
    5.54918717e-05, 0.000133323954, -0.000244709321, -0.00103447655, 0.00102415732, 0.00696992015, -0.010462289,
    -0.0472627619, 0.230017677, -0.509331989, 0.729083691,
)  # fmt: skip
TAIL_F64 = (
    -9.990624160023276e-10, -1.015295717649618e-11, 1.3976528155950821e-08, 1.4842390072751344e-08,
    -7.634712843441086e-08, -1.546196819122192e-07, 2.6354310560684456e-07, 1.0200713392568465e-06,
    -6.249906995369785e-07, -5.919013186154044e-06, 7.149308325478401e-07, 3.51442149682578e-05,
    -1.9078434059248706e-06, -0.00023109482414997105, 0.00013334424978358428, 0.0016308184424805887,
    -0.0034796923618040597, -0.007540188965625017, 0.06039657489067665, -0.1865218579596934, 0.38713740074221936,
    -0.6078966419718917, 0.7552851304157515,
)  # fmt: skip
# (Phi(-t) - t phi(t)) exp(t^2 / 2) / (t0 - t), in the same u, where t0 is its zero; relative error 2.5e-9, 2e-17.
SLOPE_F32 = (
    1.1316578e-05, 4.55042866e-06, -0.000122758453, -9.27597228e-05, 0.00109256502, 0.000203620006, -0.0140744372,
    0.0535961513, -0.11997544, 0.478297677,
)  # fmt: skip
SLOPE_F64 = (
    3.911453363846862e-10, 1.213334359373522e-09, -1.6636407417047213e-09, -1.0723708215048804e-08,
    -7.02574310052396e-10, 6.280417786488404e-08, 5.230646952793997e-08, -3.491719601883832e-07,
    -4.921166558668407e-07, 2.216688712916201e-06, 3.538885449014413e-06, -1.8034932222667726e-05,
    -1.7477211907540854e-05, 0.00018577577425585374, -0.00015461331303805558, -0.0017882605412418285,
    0.009504950375105028, -0.02808335995304672, 0.060462936767850986, -0.10336589852195696, 0.4622112440495753,
)  # fmt: skip
SLOPE_ZERO = (0.7517915246935645, -1.4956759177009883e-17)  # t0 to more digits than a double has
LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has so few bits that its product with any exponent is exact.
LN2_F32 = (0.693359375, -2.12194440054690583e-4)
LN2_F64 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)


def single(m: Machine) -> bool:
    return m.dtype == np.float32


def _reduce(m: Machine, x: Value, x_low: Value | None = None, offset: int | None = None) -> tuple[Value, Value]:
    """Return r, |r| <= ln(2) / 2, where x + x_low = n ln 2 + r, and n as integers; 2**(n + offset) if one is given.

    A number so large that its last bit counts ones rounds to an integer as it is added, and leaves it in its low bits.
    """
    bias, shift = (127, 23) if single(m) else (1023, 52)
    high, low = LN2_F32 if single(m) else LN2_F64
    large = 1.5 * 2.0**shift + (0 if offset is None else bias + offset)
    sum_ = m.fma(x, LOG2_E, m.full(large))
    n = sum_ - large
    r = m.fma(n, -high, x)
    r = m.fma(n, -low, r) if x_low is None else r + m.fma(n, -low, x_low)
    if offset is None:
        return r, m.to_bits(sum_) - m.to_bits(m.full(large))
    return r, m.from_bits(m.shift_left(m.to_bits(sum_), shift))


def _power_of_two(m: Machine, exponent: Value) -> Value:
    """Return 2**exponent for an integer vector within the range of normal numbers."""
    bias, shift = (127, 23) if single(m) else (1023, 52)
    return m.from_bits(m.shift_left(exponent + bias, shift))


def _exp_less_one(m: Machine, r: Value) -> Value:
    """e**r - 1 for |r| <= ln(2) / 2."""
    square = r * r
    return m.fma(square, m.poly_by_pairs(r, square, *(EXP_F32 if single(m) else EXP_F64)), r)


def exp(m: Machine, x: Value) -> Value:
    """e**x, within 1 ulp; results below the normal range are rounded once, overflow gives inf."""
    lowest, highest = (-104.0, 89.0) if single(m) else (-746.0, 710.0)
    r, n = _reduce(m, m.minimum(m.maximum(x, lowest), highest))
    half = m.shift_right(n, 1)
    return (_exp_less_one(m, r) + 1.0) * _power_of_two(m, half) * _power_of_two(m, n - half)


def shrunk(m: Machine) -> float:
    """Return the power of two that goes with the results of `decay`."""
    return 2.0**-64 if single(m) else 2.0**-512


def lowest(m: Machine) -> float:
    """Return the least argument of `decay`; past it even x**3 e**x rounds to 0."""
    return -125.0 if single(m) else -1000.0


def decay(m: Machine, x: Value, x_low: Value | None = None) -> tuple[Value, Value]:
    """Return e and its rounding error for lowest(m) <= x <= 0: (e + error) shrunk(m) = e**(x + x_low).

    Multiply by e first and by shrunk(m) last: a subnormal e**x has fewer digits than a product with it.
    """
    r, scale = _reduce(m, x, x_low, offset=64 if single(m) else 512)
    small = _exp_less_one(m, r)
    e = small + 1.0
    return e * scale, (small - (e - 1.0)) * scale


def exp_negative(m: Machine, x: Value) -> Value:
    """e**x for x <= 0, within 1 ulp; results below the normal range are rounded once."""
    return decay(m, m.maximum(x, lowest(m)))[0] * shrunk(m)


def expm1_negative(m: Machine, x: Value) -> Value:
    """e**x - 1 for x <= 0, within 2 ulp."""
    r, scale = _reduce(m, m.maximum(x, -20.0 if single(m) else -40.0), offset=0)
    return m.fma(scale, _exp_less_one(m, r), scale - 1.0)


def log1p_unit(m: Machine, x: Value) -> Value:
    """log(1 + x) for 0 <= x <= 1, within 2 ulp: 2 atanh(s) with s = x / (2 + x)."""
    s = x / (x + 2.0)
    z = s * s
    twice = s + s
    return m.fma(twice * z, m.poly_by_pairs(z, z * z, *(LOG1P_F32 if single(m) else LOG1P_F64)), twice)


def sigmoid(m: Machine, x: Value) -> Value:
    """1 / (1 + e**-x), within 3 ulp, also where it is close to 0."""
    e = exp_negative(m, -m.abs(x))
    return m.select(x < 0.0, e, 1.0) / (e + 1.0)


def _over_square(m: Machine, x: Value, factor: float) -> Value:
    """Return factor q / (1 + q)**2 for q = e**x, x <= 0 and a power of two."""
    e, _ = decay(m, m.maximum(x, lowest(m)))
    q = e * shrunk(m)
    return e / m.fma(q, q + 2.0, m.full(1.0)) * (factor * shrunk(m))


def sigmoid_derivative(m: Machine, x: Value) -> Value:
    """sigmoid(x) sigmoid(-x), within 3 ulp, also in the tails."""
    return _over_square(m, -m.abs(x), 1.0)


def tanh(m: Machine, x: Value) -> Value:
    """Hyperbolic tangent within 3 ulp: -t / (t + 2) with t = e**(-2|x|) - 1."""
    t = expm1_negative(m, m.abs(x) * -2.0)
    return m.copysign(t / (t + 2.0), x)


def tanh_derivative(m: Machine, x: Value) -> Value:
    """1 / cosh(x)**2 = 4 q / (1 + q)**2 with q = e**(-2|x|), within 3 ulp, also where tanh(x) rounds to 1."""
    return _over_square(m, m.abs(x) * -2.0, 4.0)


def decay_half_square(m: Machine, t: Value) -> tuple[Value, Value]:
    """`decay` of -t**2 / 2. The rounding error of t**2 is put back: it would cost |t**2| / 2 ulp."""
    half = t * -0.5
    square = t * half
    return decay(m, square, m.fma(t, half, -square))


def normal_tail(m: Machine, t: Value) -> Value:
    """Phi(-t) exp(t**2 / 2) of the normal distribution for 0 <= t <= 15 (float32) or 40 (float64), within 3 ulp."""
    k, coefficients = (3.0, TAIL_F32) if single(m) else (4.0, TAIL_F64)
    d = t + k
    q = m.full(1.0) / d
    q_low = q * (m.fma(-q, d, m.full(1.0)) - q * (t - (d - k)))  # what d and the quotient were rounded by
    p = m.poly(m.fma(q_low, -2.0 * k, m.fma(q, -2.0 * k, m.full(1.0))), *coefficients)
    return m.fma(p, q, p * q_low)


def normal_tail_slope(m: Machine, t: Value) -> Value:
    """(Phi(-t) - t phi(t)) exp(t**2 / 2), for the same t, within 4 ulp also around its zero."""
    k, coefficients = (3.0, SLOPE_F32) if single(m) else (4.0, SLOPE_F64)
    high = float(m.dtype.type(SLOPE_ZERO[0]))
    low = SLOPE_ZERO[0] - high + SLOPE_ZERO[1]
    u = (t - k) / (t + k)
    return m.poly_by_pairs(u, u * u, *coefficients) * ((high - t) + low)
