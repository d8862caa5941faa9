// Elementary functions as polynomials: those of kernels/vecmath.py, operation for operation, so that the same bits come
// out on every processor. No table look-ups, no branches; NaN gives NaN. Bounds are in units in the last place (ulp).
//
// The polynomials interpolate at Chebyshev nodes, solved with 60 digits:
//   EXP    (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2; relative error 3e-9 and 4e-20
//   LOG1P  (atanh(s) / s - 1) / s^2 in s^2, for s <= 1/3; 1e-8 (of a term below 1/27 of the whole) and 9e-20
//   TAIL   Phi(-t) exp(t^2 / 2) (t + k), in u = (t - k) / (t + k); k = 3 for t <= 15, 4 for t <= 40; 1e-9 and 4e-17
//   SLOPE  (Phi(-t) - t phi(t)) exp(t^2 / 2) / (t0 - t), in the same u, where t0 is its zero; 2.5e-9 and 2e-17
#pragma once
#include "common.cuh"

#ifdef FG_F32
#define FG_EXP \
    0.000198910805f, 0.00139337307f, 0.00833331084f, 0.0416664642f, 0.166666667f, 0.500000001f
#define FG_LOG1P \
    0.116121646f, 0.108532879f, 0.14296179f, 0.199998532f, 0.333333337f
#define FG_TAIL \
    5.54918717e-05f, 0.000133323954f, -0.000244709321f, -0.00103447655f, 0.00102415732f, 0.00696992015f, \
    -0.010462289f, -0.0472627619f, 0.230017677f, -0.509331989f, 0.729083691f
#define FG_SLOPE \
    1.1316578e-05f, 4.55042866e-06f, -0.000122758453f, -9.27597228e-05f, 0.00109256502f, 0.000203620006f, \
    -0.0140744372f, 0.0535961513f, -0.11997544f, 0.478297677f
#else
#define FG_EXP \
    1.6086677666787362e-10, 2.091821231913398e-09, 2.5052070959803662e-08, 2.755726307730941e-07, \
    2.7557319247344507e-06, 2.480158733663095e-05, 0.00019841269841263252, 0.0013888888888879004, \
    0.008333333333333333, 0.04166666666666668, 0.16666666666666666, 0.5
#define FG_LOG1P \
    0.07615631309714492, 0.03167055425885123, 0.04971012448277368, 0.05240199617182637, 0.05883998883620518, \
    0.06666588474569089, 0.07692310126902081, 0.09090909043002827, 0.11111111111665993, 0.1428571428571097, \
    0.20000000000000007, 0.3333333333333333
#define FG_TAIL \
    -9.990624160023276e-10, -1.015295717649618e-11, 1.3976528155950821e-08, 1.4842390072751344e-08, \
    -7.634712843441086e-08, -1.546196819122192e-07, 2.6354310560684456e-07, 1.0200713392568465e-06, \
    -6.249906995369785e-07, -5.919013186154044e-06, 7.149308325478401e-07, 3.51442149682578e-05, \
    -1.9078434059248706e-06, -0.00023109482414997105, 0.00013334424978358428, 0.0016308184424805887, \
    -0.0034796923618040597, -0.007540188965625017, 0.06039657489067665, -0.1865218579596934, \
    0.38713740074221936, -0.6078966419718917, 0.7552851304157515
#define FG_SLOPE \
    3.911453363846862e-10, 1.213334359373522e-09, -1.6636407417047213e-09, -1.0723708215048804e-08, \
    -7.02574310052396e-10, 6.280417786488404e-08, 5.230646952793997e-08, -3.491719601883832e-07, \
    -4.921166558668407e-07, 2.216688712916201e-06, 3.538885449014413e-06, -1.8034932222667726e-05, \
    -1.7477211907540854e-05, 0.00018577577425585374, -0.00015461331303805558, -0.0017882605412418285, \
    0.009504950375105028, -0.02808335995304672, 0.060462936767850986, -0.10336589852195696, 0.4622112440495753
#endif

#ifdef FG_F32
constexpr int MANTISSA = 23, EXPONENT_BIAS = 127;
constexpr double LN2_HIGH = 0.693359375, LN2_LOW = -2.12194440054690583e-4;
constexpr double LOWEST = -125.0;      // the least argument of decay: past it even x^3 exp(x) rounds to 0
constexpr int SHRINK = 64;
constexpr double SHRUNK = 0x1p-64;     // goes with the results of decay
constexpr double TAIL_PIVOT = 3.0;
__device__ inline unsigned to_bits(float x) { return __float_as_uint(x); }
__device__ inline float from_bits(unsigned x) { return __uint_as_float(x); }
#else
constexpr int MANTISSA = 52, EXPONENT_BIAS = 1023;
constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
constexpr double LOWEST = -1000.0;
constexpr int SHRINK = 512;
constexpr double SHRUNK = 0x1p-512;
constexpr double TAIL_PIVOT = 4.0;
__device__ inline unsigned long long to_bits(double x) { return __double_as_longlong(x); }
__device__ inline double from_bits(unsigned long long x) { return __longlong_as_double(x); }
#endif
// ln 2 is in two parts; the first has so few bits that its product with any exponent is exact.
constexpr double LOG2_E = 1.4426950408889634;
constexpr double SLOPE_ZERO = 0.7517915246935645, SLOPE_ZERO_LOW = -1.4956759177009883e-17;

// By Horner's rule, coefficients from the highest power to the lowest.
template <class... C> __device__ real_t poly(real_t x, C... coefficients) {
    const real_t c[] = {real_t(coefficients)...};
    real_t result = c[0];
#pragma unroll
    for (int i = 1; i < int(sizeof...(C)); ++i) result = fma_(result, x, c[i]);
    return result;
}

// By Horner's rule in square = x x, on pairs of terms: half as many operations wait for each other.
template <class... C> __device__ real_t poly_by_pairs(real_t x, real_t square, C... coefficients) {
    constexpr int count = sizeof...(C), odd = count % 2;
    const real_t c[] = {real_t(coefficients)...};
    real_t result = odd ? c[0] : fma_(x, c[0], c[1]);
#pragma unroll
    for (int i = odd ? 1 : 2; i < count; i += 2) result = fma_(result, square, fma_(x, c[i], c[i + 1]));
    return result;
}

// r, |r| <= ln(2) / 2, where x + x_low = n ln 2 + r, and 2^(n + offset). A number so large that its last bit counts
// ones rounds to an integer as it is added, and leaves it in its low bits.
struct Reduced { real_t r, scale; };
template <int offset> __device__ Reduced reduce(real_t x, real_t x_low, bool has_low) {
    constexpr double large = 1.5 * double(1ull << MANTISSA) + EXPONENT_BIAS + offset;
    const real_t sum = fma_(x, real_t(LOG2_E), real_t(large)), n = sum - real_t(large);
    const real_t r = fma_(n, real_t(-LN2_HIGH), x);
    return {has_low ? r + fma_(n, real_t(-LN2_LOW), x_low) : fma_(n, real_t(-LN2_LOW), r),
            from_bits(to_bits(sum) << MANTISSA)};
}

__device__ inline real_t exp_less_one(real_t r) {  // e^r - 1 for |r| <= ln(2) / 2
    const real_t square = r * r;
    return fma_(square, poly_by_pairs(r, square, FG_EXP), r);
}

// e and its rounding error for LOWEST <= x <= 0: (e + error) SHRUNK = e^(x + x_low). Multiply by e first and by SHRUNK
// last: a subnormal e^x has fewer digits than a product with it.
struct Decayed { real_t e, error; };
__device__ inline Decayed finish_decay(Reduced reduced) {
    const real_t small = exp_less_one(reduced.r), e = small + real_t(1);
    return {e * reduced.scale, (small - (e - real_t(1))) * reduced.scale};
}
__device__ inline Decayed decay(real_t x) { return finish_decay(reduce<SHRINK>(x, 0, false)); }
__device__ inline Decayed decay(real_t x, real_t x_low) { return finish_decay(reduce<SHRINK>(x, x_low, true)); }

// e^x for x <= 0, within 1 ulp.
__device__ inline real_t exp_negative(real_t x) { return decay(maximum(x, real_t(LOWEST))).e * real_t(SHRUNK); }

// e^x - 1 for x <= 0, within 2 ulp.
__device__ inline real_t expm1_negative(real_t x) {
    const Reduced reduced = reduce<0>(maximum(x, real_t(sizeof(real_t) == 4 ? -20 : -40)), 0, false);
    return fma_(reduced.scale, exp_less_one(reduced.r), reduced.scale - real_t(1));
}

// log(1 + x) for 0 <= x <= 1, within 2 ulp: 2 atanh(s) with s = x / (2 + x).
__device__ inline real_t log1p_unit(real_t x) {
    const real_t s = x / (x + real_t(2)), z = s * s, twice = s + s;
    return fma_(twice * z, poly_by_pairs(z, z * z, FG_LOG1P), twice);
}

// 1 / (1 + e^-x), within 3 ulp, also where it is close to 0.
__device__ inline real_t sigmoid_of(real_t x) {
    const real_t e = exp_negative(-abs_(x));
    return (x < real_t(0) ? e : real_t(1)) / (e + real_t(1));
}

// factor q / (1 + q)^2 for q = e^x, x <= 0 and a power of two.
__device__ inline real_t over_square(real_t x, double factor) {
    const Decayed decayed = decay(maximum(x, real_t(LOWEST)));
    const real_t q = decayed.e * real_t(SHRUNK);
    return decayed.e / fma_(q, q + real_t(2), real_t(1)) * real_t(factor * SHRUNK);
}

// sigmoid(x) sigmoid(-x), within 3 ulp, also in the tails.
__device__ inline real_t sigmoid_slope(real_t x) { return over_square(-abs_(x), 1.0); }

// Within 3 ulp: -t / (t + 2) with t = e^(-2|x|) - 1.
__device__ inline real_t tanh_of(real_t x) {
    const real_t t = expm1_negative(abs_(x) * real_t(-2));
    return copysign_(t / (t + real_t(2)), x);
}

// 1 / cosh(x)^2 = 4 q / (1 + q)^2 with q = e^(-2|x|), within 3 ulp, also where tanh(x) rounds to 1.
__device__ inline real_t tanh_slope(real_t x) { return over_square(abs_(x) * real_t(-2), 4.0); }

// decay of -t^2 / 2. The rounding error of t^2 is put back: it would cost |t^2| / 2 ulp.
__device__ inline Decayed decay_half_square(real_t t) {
    const real_t half = t * real_t(-0.5), square = t * half;
    return decay(square, fma_(t, half, -square));
}

// Phi(-t) exp(t^2 / 2) of the normal distribution for 0 <= t <= 15 (float) or 40 (double), within 3 ulp.
__device__ inline real_t normal_tail(real_t t) {
    constexpr double k = TAIL_PIVOT;
    const real_t d = t + real_t(k), q = real_t(1) / d;
    // What d and the quotient were rounded by.
    const real_t q_low = q * (fma_(-q, d, real_t(1)) - q * (t - (d - real_t(k))));
    const real_t p = poly(fma_(q_low, real_t(-2 * k), fma_(q, real_t(-2 * k), real_t(1))), FG_TAIL);
    return fma_(p, q, p * q_low);
}

// (Phi(-t) - t phi(t)) exp(t^2 / 2), for the same t, within 4 ulp also around its zero.
__device__ inline real_t normal_tail_slope(real_t t) {
    constexpr double k = TAIL_PIVOT, high = real_t(SLOPE_ZERO), low = SLOPE_ZERO - high + SLOPE_ZERO_LOW;
    const real_t u = (t - real_t(k)) / (t + real_t(k));
    return poly_by_pairs(u, u * u, FG_SLOPE) * ((real_t(high) - t) + real_t(low));
}
