// One step of an LSTM with layer normalisation, behind the product with W_hh, and back: see layer_norm_lstm_ref.py.
//
//     sums = LN(W_ih x) + LN(W_hh h);   i, f, o = sigmoid(sums), g = tanh(sums)
//     c' = f c + i g,   h' = o tanh(LN(c'))
//
// LN(W_ih x) of all steps, with both biases, was computed before the first. A block takes a sequence: its row of 4H sums
// and its H cells stay in the L1 cache (20 KB at H = 1024) between the passes over them. Bytes a unit and sequence,
// float32: 60 forward, 88 backward. Sums along a row are sums of doubles. A thread writes and reads again the same
// units, so that nothing but the sums is exchanged.
#include "recurrent.cuh"
#include "rows.cuh"
#include "vecmath.cuh"

// Of the numbers at(unit) of a row: their mean and rstd, in every thread.
template <class F>
__device__ Two statistics(index_t count, double eps, double (&parts)[2][WARP], F at) {
    double own = 0;
    for (index_t k = threadIdx.x; k < count; k += blockDim.x) own += double(at(k));
    const double mean = block_totals(own, 0, parts).a / double(count);
    own = 0;
    for (index_t k = threadIdx.x; k < count; k += blockDim.x) {
        const double d = double(at(k)) - mean;
        own = fma_(d, d, own);
    }
    return {mean, 1.0 / sqrt_(block_totals(own, 0, parts).a / double(count) + eps)};
}

// The sequence of a block at step t.
struct Sequence {
    index_t b, row, before, now;  // b; t B + b; where its states begin in (T + 1, B, H)
    bool valid;

    __device__ Sequence(index_t t, index_t batch, index_t hidden, int reverse, const index_t* lengths) {
        b = blockIdx.x;
        row = t * batch + b;
        before = ((t + (reverse ? 1 : 0)) * batch + b) * hidden;
        now = ((t + (reverse ? 0 : 1)) * batch + b) * hidden;
        valid = !lengths || t < lengths[b];
    }
};

// gates (T, B, 4H) in/out: LN(W_ih x) with both biases, then i, f, g, o; from_h (T, B, 4H) in: W_hh h; gain_hh (4H,),
// gain_c, bias_c (H,) in; h, c (T + 1, B, H) in/out; y (T, B, H) out with lengths, else not touched; stats (4, T, B) out:
// mean and rstd of from_h and of c', 0 past a length; lengths (B,) or null. Step t only, a block for each sequence.
extern "C" __global__ void fg_layer_norm_lstm(storage_t* gates, const storage_t* from_h, const storage_t* gain_hh,
                                              const storage_t* gain_c, const storage_t* bias_c, storage_t* h,
                                              storage_t* c, storage_t* y, double* stats, const index_t* lengths,
                                              double eps, index_t t, index_t steps, index_t batch, index_t hidden,
                                              int reverse) {
    __shared__ double parts[2][WARP];
    const Sequence own(t, batch, hidden, reverse, lengths);
    const index_t kind = steps * batch;
    storage_t* const y_own = y + own.row * hidden;
    if (!own.valid) {
        for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
            h[own.now + k] = h[own.before + k];
            c[own.now + k] = c[own.before + k];
            y_own[k] = 0;
        }
        if (threadIdx.x < 4) stats[threadIdx.x * kind + own.row] = 0;
        return;
    }
    storage_t* const sums = gates + own.row * 4 * hidden;
    const storage_t* const products = from_h + own.row * 4 * hidden;
    const Two of_h = statistics(4 * hidden, eps, parts, [&](index_t k) { return products[k]; });
    const Normalised xhat_h(of_h.a, of_h.b);
    for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
        real_t sum[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
            const index_t at = gate * hidden + k;
            sum[gate] = fma_(xhat_h.of(real_t(products[at])), real_t(gain_hh[at]), real_t(sums[at]));
        }
        const real_t i = sigmoid_of(sum[0]), f = sigmoid_of(sum[1]), g = tanh_of(sum[2]), o = sigmoid_of(sum[3]);
        sums[k] = storage_t(i), sums[hidden + k] = storage_t(f), sums[2 * hidden + k] = storage_t(g);
        sums[3 * hidden + k] = storage_t(o);
        c[own.now + k] = storage_t(fma_(f, real_t(c[own.before + k]), i * g));
    }
    const Two of_c = statistics(hidden, eps, parts, [&](index_t k) { return c[own.now + k]; });
    const Normalised xhat_c(of_c.a, of_c.b);
    for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
        const real_t scaled = fma_(xhat_c.of(real_t(c[own.now + k])), real_t(gain_c[k]), real_t(bias_c[k]));
        const real_t value = real_t(sums[3 * hidden + k]) * tanh_of(scaled);
        h[own.now + k] = storage_t(value);
        if (lengths) y_own[k] = storage_t(value);
    }
    if (threadIdx.x == 0) {
        stats[own.row] = of_h.a, stats[kind + own.row] = of_h.b;
        stats[2 * kind + own.row] = of_c.a, stats[3 * kind + own.row] = of_c.b;
    }
}

// gates, from_h, gain_hh, gain_c, bias_c, c, stats in, as forward left them; dy (T, B, H) or null; dh (B, H) in: gradient
// of h' from the next step; with lengths then 0 where the step belongs to the sequence, for a product to be added to; dc
// (B, H) in/out: gradient of c', then of c; dgates (T, B, 4H) out: of the sums; dproducts (B, 4H) out: of W_hh h; cells,
// dscaled (T, B, H) out: c', gradient of LN(c'). All out are 0 past a length. Step t only, a block for each sequence.
extern "C" __global__ void fg_layer_norm_lstm_backward(
    const storage_t* gates, const storage_t* from_h, const storage_t* gain_hh, const storage_t* gain_c,
    const storage_t* bias_c, const storage_t* c, const double* stats, const storage_t* dy, storage_t* dh, storage_t* dc,
    storage_t* dgates, storage_t* dproducts, storage_t* cells, storage_t* dscaled, const index_t* lengths, index_t t,
    index_t steps, index_t batch, index_t hidden, int reverse) {
    __shared__ double parts[2][WARP];
    const Sequence own(t, batch, hidden, reverse, lengths);
    const index_t kind = steps * batch;
    storage_t* const dsums = dgates + own.row * 4 * hidden;
    storage_t* const dproduct = dproducts + own.b * 4 * hidden;
    storage_t *const cell = cells + own.row * hidden, *const scaled = dscaled + own.row * hidden;
    if (!own.valid) {
        for (index_t k = threadIdx.x; k < 4 * hidden; k += blockDim.x) dsums[k] = dproduct[k] = 0;
        for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) cell[k] = scaled[k] = 0;
        return;
    }
    const storage_t* const gate = gates + own.row * 4 * hidden;
    const storage_t* const products = from_h + own.row * 4 * hidden;
    const Normalised xhat_h(stats[own.row], stats[kind + own.row]);
    const Normalised xhat_c(stats[2 * kind + own.row], stats[3 * kind + own.row]);
    storage_t *const dh_own = dh + own.b * hidden, *const dc_own = dc + own.b * hidden;

    double of_g = 0, of_product = 0;
    for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
        const real_t i = gate[k], f = gate[hidden + k], g = gate[2 * hidden + k], o = gate[3 * hidden + k];
        const real_t value = fma_(f, real_t(c[own.before + k]), i * g), xhat = xhat_c.of(value);
        const real_t tanh_c = tanh_of(fma_(xhat, real_t(gain_c[k]), real_t(bias_c[k])));
        const real_t dh_all = real_t(dh_own[k]) + (dy ? real_t(dy[own.row * hidden + k]) : real_t(0));
        const real_t d = dh_all * o * fma_(-tanh_c, tanh_c, real_t(1)), along = d * real_t(gain_c[k]);
        cell[k] = storage_t(value);
        scaled[k] = storage_t(d);
        dsums[3 * hidden + k] = storage_t(dh_all * tanh_c * (o * (real_t(1) - o)));
        of_g += double(along);
        of_product += double(along * xhat);
        if (lengths) dh_own[k] = 0;
    }
    const Two of_c = block_totals(of_g, of_product, parts);
    const real_t mean_c = real_t(of_c.a / double(hidden)), along_c = real_t(of_c.b / double(hidden));

    of_g = of_product = 0;
    for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
        const real_t i = gate[k], f = gate[hidden + k], g = gate[2 * hidden + k];
        const real_t d = real_t(scaled[k]) * real_t(gain_c[k]);
        const real_t through = fma_(xhat_c.of(real_t(cell[k])), -along_c, d - mean_c);
        const real_t all = fma_(through, xhat_c.rstd, real_t(dc_own[k]));
        const real_t values[4] = {
            all * g * (i * (real_t(1) - i)), all * real_t(c[own.before + k]) * (f * (real_t(1) - f)),
            all * i * fma_(-g, g, real_t(1)), real_t(dsums[3 * hidden + k])};
        dc_own[k] = storage_t(all * f);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const index_t at = n * hidden + k;
            if (n < 3) dsums[at] = storage_t(values[n]);
            const real_t gradient = values[n] * real_t(gain_hh[at]);
            of_g += double(gradient);
            of_product += double(gradient * xhat_h.of(real_t(products[at])));
        }
    }
    const Two of_h = block_totals(of_g, of_product, parts);
    const real_t mean_h = real_t(of_h.a / double(4 * hidden)), along_h = real_t(of_h.b / double(4 * hidden));

    for (index_t k = threadIdx.x; k < hidden; k += blockDim.x) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const index_t at = n * hidden + k;
            const real_t gradient = real_t(dsums[at]) * real_t(gain_hh[at]);
            dproduct[at] =
                storage_t(fma_(xhat_h.of(real_t(products[at])), -along_h, gradient - mean_h) * xhat_h.rstd);
        }
    }
}
