// One step of a GRU of the paper's form, whose reset gate comes before the product of n: a kernel after the product of r
// and z, one after that of n, and two the way back.
//
//     r, z = sigmoid(sums),   n = tanh(sum of x + W_hn (r h) + b_hn);   h' = (1 - z) n + z h
//
// Arrays that the kernels have in common:
//
//     gates (T, B, 3H): sums, then r, z, n;  inner (T, B, H): r h;  h (T + 1, B, H)
//     bias_ih, bias_hh (3H,) or null;  lengths (B,) or null;  y (T, B, H) with lengths
//
// Step t only, a thread for each unit, or for VECTOR of them: vectors says that H divides by it and all arrays begin on
// 16 bytes.
#include "gru_gates.cuh"
#include "recurrent.cuh"

template <int W>
__device__ void reset(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh, storage_t* inner,
                      const storage_t* h, const index_t* lengths, index_t t, index_t batch, index_t hidden,
                      int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    storage_t* const kept = inner + cell.row * hidden + cell.unit;
    if (!cell.valid) return write<W>(kept, Reals<W>{});
    storage_t* const own = gates + cell.row * 3 * hidden + cell.unit;
    Reals<W> product = read<W>(h + cell.before), sums[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        sums[k] = sum_of<W>(own + k * hidden, bias_ih, bias_hh, k * hidden + cell.unit);
#pragma unroll
        for (int w = 0; w < W; ++w) sums[k].at[w] = sigmoid_of(sums[k].at[w]);
        write<W>(own + k * hidden, sums[k]);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) product.at[w] *= sums[0].at[w];
    write<W>(kept, product);
}

// r and z of gates in/out; inner out, 0 past a length, for the product of n; h in.
extern "C" __global__ void fg_gru_reset(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh,
                                        storage_t* inner, const storage_t* h, const index_t* lengths, index_t t,
                                        index_t batch, index_t hidden, int reverse, int vectors) {
    if (vectors)
        reset<VECTOR>(gates, bias_ih, bias_hh, inner, h, lengths, t, batch, hidden, reverse);
    else
        reset<1>(gates, bias_ih, bias_hh, inner, h, lengths, t, batch, hidden, reverse);
}

template <int W>
__device__ void candidate(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh, storage_t* h,
                          storage_t* y, const index_t* lengths, index_t t, index_t batch, index_t hidden, int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    if (!cell.valid) return keep_state<W>(cell, h, y, hidden);
    storage_t* const own = gates + cell.row * 3 * hidden + cell.unit;
    const Reals<W> z = read<W>(own + hidden);
    Reals<W> n = sum_of<W>(own + 2 * hidden, bias_ih, bias_hh, 2 * hidden + cell.unit), now = read<W>(h + cell.before);
#pragma unroll
    for (int w = 0; w < W; ++w) {
        n.at[w] = tanh_of(n.at[w]);
        now.at[w] = gru_mixed(z.at[w], n.at[w], now.at[w]);
    }
    write<W>(own + 2 * hidden, n);
    write<W>(h + cell.now, now);
    if (lengths) write<W>(y + cell.row * hidden + cell.unit, now);
}

// n of gates in/out, after that product; h in/out; y out with lengths, else not touched.
extern "C" __global__ void fg_gru_candidate(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh,
                                            storage_t* h, storage_t* y, const index_t* lengths, index_t t,
                                            index_t batch, index_t hidden, int reverse, int vectors) {
    if (vectors)
        candidate<VECTOR>(gates, bias_ih, bias_hh, h, y, lengths, t, batch, hidden, reverse);
    else
        candidate<1>(gates, bias_ih, bias_hh, h, y, lengths, t, batch, hidden, reverse);
}

template <int W>
__device__ void candidate_backward(const storage_t* gates, const storage_t* h, const storage_t* dy, storage_t* dh,
                                   storage_t* dgates, const index_t* lengths, index_t t, index_t batch, index_t hidden,
                                   int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    const index_t at = cell.row * 3 * hidden + cell.unit;
    if (!cell.valid) {
#pragma unroll
        for (int k = 0; k < 3; ++k) write<W>(dgates + at + k * hidden, Reals<W>{});
        return;
    }
    Reals<W> z = read<W>(gates + at + hidden), n = read<W>(gates + at + 2 * hidden), dh_now = read<W>(dh + cell.at);
    const Reals<W> h_before = read<W>(h + cell.before);
    const Reals<W> above = read_or_zero<W>(dy, cell.row * hidden + cell.unit);
#pragma unroll
    for (int w = 0; w < W; ++w) {
        const GruCandidate d = gru_candidate_backward(z.at[w], n.at[w], h_before.at[w], dh_now.at[w] + above.at[w]);
        z.at[w] = d.dz, n.at[w] = d.dn, dh_now.at[w] = d.kept;
    }
    write<W>(dgates + at + hidden, z);
    write<W>(dgates + at + 2 * hidden, n);
    write<W>(dh + cell.at, dh_now);
}

// gates, h in, as forward left them; dy (T, B, H) or null; dh (B, H) in/out: gradient of h', then z times it; dgates out:
// z and n, and 0 for all three past a length.
extern "C" __global__ void fg_gru_candidate_backward(const storage_t* gates, const storage_t* h, const storage_t* dy,
                                                     storage_t* dh, storage_t* dgates, const index_t* lengths,
                                                     index_t t, index_t batch, index_t hidden, int reverse,
                                                     int vectors) {
    if (vectors)
        candidate_backward<VECTOR>(gates, h, dy, dh, dgates, lengths, t, batch, hidden, reverse);
    else
        candidate_backward<1>(gates, h, dy, dh, dgates, lengths, t, batch, hidden, reverse);
}

template <int W>
__device__ void reset_backward(const storage_t* gates, const storage_t* h, const storage_t* dinner, storage_t* dh,
                               storage_t* dgates, const index_t* lengths, index_t t, index_t batch, index_t hidden,
                               int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.valid) return;
    const index_t at = cell.row * 3 * hidden + cell.unit;
    const Reals<W> h_before = read<W>(h + cell.before), d = read<W>(dinner + cell.at);
    Reals<W> r = read<W>(gates + at), dh_now = read<W>(dh + cell.at);
#pragma unroll
    for (int w = 0; w < W; ++w) {
        dh_now.at[w] = fma_(d.at[w], r.at[w], dh_now.at[w]);
        r.at[w] = gru_reset_backward(r.at[w], d.at[w] * h_before.at[w]);
    }
    write<W>(dgates + at, r);
    write<W>(dh + cell.at, dh_now);
}

// gates, h in; dinner (B, H) in: gradient of r h; dh in/out: r times it is added; dgates out: r.
extern "C" __global__ void fg_gru_reset_backward(const storage_t* gates, const storage_t* h, const storage_t* dinner,
                                                 storage_t* dh, storage_t* dgates, const index_t* lengths, index_t t,
                                                 index_t batch, index_t hidden, int reverse, int vectors) {
    if (vectors)
        reset_backward<VECTOR>(gates, h, dinner, dh, dgates, lengths, t, batch, hidden, reverse);
    else
        reset_backward<1>(gates, h, dinner, dh, dgates, lengths, t, batch, hidden, reverse);
}
