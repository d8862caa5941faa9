// Activations and their derivatives: those of kernels/activation_cpu.py, operation for operation.
//
// kind::f(x, p0, p1) and kind::f_derivative(x, p0, p1), the parameters in the order of fastgrad.activations.KINDS. The
// derivatives lose no digits in the tails: each is a quotient of sums of positive terms in e = exp(-|x|), or uses the
// Mills ratio of the normal distribution. At x = +-inf each gives its limit.
#pragma once
#include "vecmath.cuh"

#define FG_FUNCTION(name) __device__ inline real_t name(real_t x, [[maybe_unused]] real_t p0, [[maybe_unused]] real_t p1)

namespace kind {

constexpr double SELU_ALPHA = 1.6732632423543772848170429916717, SELU_SCALE = 1.0507009873554804934193349852946;
// 2 sqrt(2 / pi) and 0.044715 of it, to more digits than a double has: z = x (a + b x^2) is twice the argument of tanh.
constexpr double GELU_TANH = 1.5957691216057308, GELU_TANH_LOW = -9.96930880911092e-17;
constexpr double GELU_CUBIC = 0.07135481627260025, GELU_CUBIC_LOW = -6.175149918155315e-19;

// x where a factor exp(-|x|) has long been 0, so that it meets no infinity.
__device__ inline real_t near(real_t x) { return minimum(maximum(x, real_t(LOWEST)), real_t(-LOWEST)); }
// The value, but NaN where x is NaN: a comparison with NaN is false and would hide it.
__device__ inline real_t nan_or(real_t x, real_t value) { return is_nan(x) ? x : value; }

FG_FUNCTION(identity) { return x; }
FG_FUNCTION(identity_derivative) { return 1; }

FG_FUNCTION(relu) { return maximum(x, 0); }
FG_FUNCTION(relu_derivative) { return nan_or(x, x > 0 ? 1 : 0); }

FG_FUNCTION(leaky_relu) { return x > 0 ? x : x * p0; }
FG_FUNCTION(leaky_relu_derivative) { return nan_or(x, x > 0 ? 1 : p0); }

FG_FUNCTION(hardtanh) { return minimum(maximum(x, p0), p1); }
FG_FUNCTION(hardtanh_derivative) { return nan_or(x, x > p0 && x < p1 ? 1 : 0); }

FG_FUNCTION(relu6) { return hardtanh(x, 0, 6); }
FG_FUNCTION(relu6_derivative) { return hardtanh_derivative(x, 0, 6); }

FG_FUNCTION(elu) { return x > 0 ? x : expm1_negative(minimum(x, 0)) * p0; }
FG_FUNCTION(elu_derivative) { return x > 0 ? real_t(1) : exp_negative(minimum(x, 0)) * p0; }

FG_FUNCTION(celu) { return x > 0 ? x : expm1_negative(minimum(x / p0, 0)) * p0; }
FG_FUNCTION(celu_derivative) { return x > 0 ? real_t(1) : exp_negative(minimum(x / p0, 0)); }

FG_FUNCTION(selu) {
    return x > 0 ? x * real_t(SELU_SCALE) : expm1_negative(minimum(x, 0)) * real_t(SELU_SCALE * SELU_ALPHA);
}
FG_FUNCTION(selu_derivative) {
    return x > 0 ? real_t(SELU_SCALE) : exp_negative(minimum(x, 0)) * real_t(SELU_SCALE * SELU_ALPHA);
}

__device__ inline real_t gelu_tail(real_t x) { return minimum(abs_(x), real_t(sizeof(real_t) == 4 ? 15 : 40)); }

FG_FUNCTION(gelu) {
    const real_t t = gelu_tail(x);
    const Decayed d = decay_half_square(t);
    real_t tail = t * normal_tail(t);
    tail = fma_(tail, d.e, tail * d.error) * real_t(SHRUNK);
    return x < 0 ? -tail : x - tail;
}
FG_FUNCTION(gelu_derivative) {
    const real_t t = gelu_tail(x);
    const Decayed d = decay_half_square(t);
    real_t tail = normal_tail_slope(t);
    tail = fma_(tail, d.e, tail * d.error) * real_t(SHRUNK);
    return x < 0 ? tail : real_t(1) - tail;
}

// x where the tails are not yet 0, z for gelu_tanh = x sigmoid(z), and c for z = a x + c x, two parts each: the rounding
// error of z alone would cost |z| ulp. z = x w, w = a + b x^2. The high part of a has so few bits that c = w - a is
// exact whatever w is.
struct GeluTanh { real_t x, z, z_low, c, c_low; };
__device__ inline GeluTanh gelu_tanh_argument(real_t x) {
    constexpr double unit = sizeof(real_t) == 4 ? 0x1p-20 : 0x1p-47, limit = sizeof(real_t) == 4 ? 11 : 23;
    constexpr double a = double(static_cast<long long>(GELU_TANH / unit + 0.5)) * unit, b = real_t(GELU_CUBIC);
    constexpr double a_low = GELU_TANH - a + GELU_TANH_LOW, b_low = GELU_CUBIC - b + GELU_CUBIC_LOW;
    x = minimum(maximum(x, real_t(-limit)), real_t(limit));
    const real_t square = x * x, w = fma_(square, real_t(b), real_t(a)), c = w - real_t(a);
    const real_t c_low = fma_(square, real_t(b), -c) + fma_(fma_(x, x, -square), real_t(b), square * real_t(b_low));
    const real_t z = x * w;
    return {x, z, fma_(x, c_low + real_t(a_low), fma_(x, w, -z)), c, c_low};
}
FG_FUNCTION(gelu_tanh) {
    const GeluTanh g = gelu_tanh_argument(x);
    const bool negative = x < 0;
    const real_t e = decay(-abs_(g.z), negative ? g.z_low : -g.z_low).e, q = e * real_t(SHRUNK);
    return (negative ? g.x * e : x) / (q + real_t(1)) * (negative ? real_t(SHRUNK) : real_t(1));
}
// (1 + q + h) q / (1 + q)^2 for x < 0, (1 + q + h q) / (1 + q)^2 else, with h = x z' = z + 2 c x. The former crosses
// zero: there 1 + z + q is exact, and what was rounded off its terms is put back: the error of e with q at the crossing,
// where it matters, and with about what the quotient feels of it elsewhere.
FG_FUNCTION(gelu_tanh_derivative) {
    const bool negative = x < 0;
    const GeluTanh g = gelu_tanh_argument(x);
    const real_t twice = g.x + g.x;
    const Decayed d = decay(-abs_(g.z), negative ? g.z_low : -g.z_low);
    const real_t q = d.e * real_t(SHRUNK), first = g.z + real_t(1), total = first + q;
    const real_t below = fma_(twice, g.c, fma_(twice, g.c_low, g.z_low) + ((first - total) + q)) + total;
    const real_t above = fma_(q, fma_(twice, g.c, g.z + g.z_low), q + real_t(1));
    const real_t numerator = negative ? fma_(below, d.e, fma_(below, real_t(0.5), q) * d.error) : above;
    return numerator / fma_(q, q + real_t(2), real_t(1)) * (negative ? real_t(SHRUNK) : real_t(1));
}

// decay of -|x|, for any x.
__device__ inline Decayed decay_of(real_t x) { return decay(maximum(-abs_(x), real_t(LOWEST))); }

FG_FUNCTION(silu) {
    const bool negative = x < 0;
    const real_t e = decay_of(x).e, q = e * real_t(SHRUNK);
    const real_t numerator = negative ? maximum(x, real_t(LOWEST)) * e : x;
    return numerator / (q + real_t(1)) * (negative ? real_t(SHRUNK) : real_t(1));
}
// With q = exp(-|x|): (1 + x + q) q / (1 + q)^2 for x < 0, which crosses zero where 1 + x + q is exact, and what was
// rounded off q is put back; (1 + q + x q) / (1 + q)^2 else.
FG_FUNCTION(silu_derivative) {
    const bool negative = x < 0;
    const Decayed d = decay_of(x);
    x = near(x);
    const real_t q = d.e * real_t(SHRUNK), below = (x + real_t(1)) + q;
    const real_t numerator =
        negative ? fma_(below, d.e, fma_(below, real_t(0.5), q) * d.error) : fma_(x, q, q + real_t(1));
    return numerator / fma_(q, q + real_t(2), real_t(1)) * (negative ? real_t(SHRUNK) : real_t(1));
}

// tanh(softplus(x)) = y (y + 2) / (y (y + 2) + 2) with y = exp(x), for x < 0; (2 y + 2) / (the same) with
// y = 2 exp(-x) else.
FG_FUNCTION(mish) {
    const bool negative = x < 0;
    const Decayed d = decay_of(x);
    const real_t q = d.e * real_t(SHRUNK), y = negative ? q : q + q, p = y + real_t(2);
    const real_t tanh = (negative ? fma_(p, d.e, p * d.error) : p + y) / fma_(y, p, real_t(2));
    return maximum(x, real_t(LOWEST)) * tanh * (negative ? real_t(SHRUNK) : real_t(1));
}
// With the same y and d = (y^2 + 2 y + 2)^2. For x >= 0: (4 + 8 y + y^2 (6 + 2 y + 4 x + 2 x y)) / d. For x < 0:
// (y^3 + 4 y^2 + 6 y + 4 + 4 x (1 + y)) y / d, whose factor crosses zero where 4 + 4 x + 2.5 y and 3.5 + 4 x + 4 y are
// small and therefore exact. What was rounded off the factor and off y is put back, the latter with a straight line for
// what the quotient feels of it: the factor plus (9 - 16.5 y) y.
FG_FUNCTION(mish_derivative) {
    const bool negative = x < 0;
    const Decayed d = decay_of(x);
    x = near(x);
    const real_t q = d.e * real_t(SHRUNK), y = negative ? q : q + q, a = fma_(x, real_t(4), real_t(4));
    const real_t large = fma_(q, real_t(2.5), a), small = fma_(q, q, fma_(q, real_t(4), a - real_t(0.5)));
    const real_t below = fma_(q, small, large);
    real_t rest = fma_(q, small, large - below);
    rest = fma_(rest, d.e, fma_(q, fma_(q, real_t(-16.5), real_t(9)), below) * d.error);
    const real_t above = fma_(y, fma_(y, fma_(y, a * real_t(0.5), a + real_t(2)), real_t(8)), real_t(4));
    const real_t numerator = negative ? fma_(below, d.e, rest) : above;
    return numerator / poly(y, 1, 4, 8, 8, 4) * (negative ? real_t(SHRUNK) : real_t(1));
}

__device__ inline real_t softplus_of(real_t z) { return maximum(z, 0) + log1p_unit(exp_negative(-abs_(z))); }
FG_FUNCTION(softplus) { return softplus_of(x * p0) / p0; }
FG_FUNCTION(softplus_derivative) { return sigmoid_of(x * p0); }

FG_FUNCTION(softsign) {
#ifdef FG_F32
    constexpr real_t largest = 3.4028234663852886e38f;
#else
    constexpr real_t largest = 1.7976931348623157e308;  // NVRTC 13.5 refuses it in float, even where it is not taken
#endif
    x = minimum(maximum(x, -largest), largest);
    return x / (abs_(x) + real_t(1));
}
FG_FUNCTION(softsign_derivative) {
    const real_t r = real_t(1) / (abs_(x) + real_t(1));
    return r * r;
}

FG_FUNCTION(sigmoid) { return sigmoid_of(x); }
FG_FUNCTION(sigmoid_derivative) { return sigmoid_slope(x); }

FG_FUNCTION(logsigmoid) { return -softplus_of(-x); }
FG_FUNCTION(logsigmoid_derivative) { return sigmoid_of(-x); }

FG_FUNCTION(tanh) { return tanh_of(x); }
FG_FUNCTION(tanh_derivative) { return tanh_slope(x); }

FG_FUNCTION(hardsigmoid) { return hardtanh(x + real_t(3), 0, 6) / real_t(6); }
FG_FUNCTION(hardsigmoid_derivative) { return nan_or(x, x > -3 && x < 3 ? real_t(1.0 / 6.0) : real_t(0)); }

FG_FUNCTION(hardswish) { return maximum(x, -3) * (hardtanh(x + real_t(3), 0, 6) / real_t(6)); }
FG_FUNCTION(hardswish_derivative) {
    return x <= -3 ? real_t(0) : x >= 3 ? real_t(1) : (x + real_t(1.5)) / real_t(3);
}

}  // namespace kind

#define FG_JOIN_(a, b) a##b
#define FG_JOIN(a, b) FG_JOIN_(a, b)
