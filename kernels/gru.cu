// One step of a GRU with reset_after, after the product of all gates: the gates of all units of all sequences, and back.
//
//     r, z = sigmoid(sums),   n = tanh(sum of x + r (W_hn h + b_hn));   h' = (1 - z) n + z h
//
// Bytes a unit and sequence, float32: 48 forward (6 sums and h read, 3 gates, the inner sum and h' written, without
// biases), 56 backward (3 gates, inner, h, dy, dh read, 6 gradients, dh written), 16 at a time where the layout allows.
// Arrays that the kernels have in common:
//
//     gates (T, B, 3H): sums, then r, z, n;  inner (T, B, H): W_hn h + b_hn;  h (T + 1, B, H)
//     bias_ih, bias_hh (3H,) or null;  lengths (B,) or null;  y (T, B, H) with lengths
//
// Step t only, a thread for each unit, or for VECTOR of them: vectors says that H divides by it and all arrays begin on
// 16 bytes.
#include "gru_gates.cuh"
#include "recurrent.cuh"

template <int W>
__device__ void step_forward(storage_t* gates, const storage_t* products, const storage_t* bias_ih,
                             const storage_t* bias_hh, storage_t* inner, storage_t* h, storage_t* y,
                             const index_t* lengths, index_t t, index_t batch, index_t hidden, int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    if (!cell.valid) return keep_state<W>(cell, h, y, hidden);
    storage_t* const own = gates + cell.row * 3 * hidden + cell.unit;
    const storage_t* const from_h = products + cell.b * 3 * hidden + cell.unit;
    const Reals<W> h_before = read<W>(h + cell.before);
    Reals<W> sums[3], inner_sum = sum_of<W>(from_h + 2 * hidden, bias_hh, nullptr, 2 * hidden + cell.unit), h_now;
#pragma unroll
    for (int k = 0; k < 3; ++k)
        sums[k] = sum_of<W>(own + k * hidden, bias_ih, k < 2 ? bias_hh : nullptr, k * hidden + cell.unit);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const Reals<W> product = read<W>(from_h + k * hidden);
#pragma unroll
        for (int w = 0; w < W; ++w) sums[k].at[w] += product.at[w];
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
        real_t values[3] = {sums[0].at[w], sums[1].at[w], sums[2].at[w]};
        h_now.at[w] = gru_gates(values, inner_sum.at[w], h_before.at[w]);
#pragma unroll
        for (int k = 0; k < 3; ++k) sums[k].at[w] = values[k];
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) write<W>(own + k * hidden, sums[k]);
    write<W>(inner + cell.row * hidden + cell.unit, inner_sum);
    write<W>(h + cell.now, h_now);
    if (lengths) write<W>(y + cell.row * hidden + cell.unit, h_now);
}

// gates in/out; products (B, 3H) in: h W_hh^T; inner out; h in/out; y out with lengths, else not touched.
extern "C" __global__ void fg_gru_forward(storage_t* gates, const storage_t* products, const storage_t* bias_ih,
                                          const storage_t* bias_hh, storage_t* inner, storage_t* h, storage_t* y,
                                          const index_t* lengths, index_t t, index_t batch, index_t hidden, int reverse,
                                          int vectors) {
    if (vectors)
        step_forward<VECTOR>(gates, products, bias_ih, bias_hh, inner, h, y, lengths, t, batch, hidden, reverse);
    else
        step_forward<1>(gates, products, bias_ih, bias_hh, inner, h, y, lengths, t, batch, hidden, reverse);
}

template <int W>
__device__ void step_backward(const storage_t* gates, const storage_t* inner, const storage_t* h, const storage_t* dy,
                              storage_t* dh, storage_t* dgates, storage_t* dproducts, const index_t* lengths, index_t t,
                              index_t batch, index_t hidden, int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    const index_t at = cell.row * 3 * hidden + cell.unit;
    if (!cell.valid) {
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            write<W>(dgates + at + k * hidden, Reals<W>{});
            write<W>(dproducts + at + k * hidden, Reals<W>{});
        }
        return;
    }
    Reals<W> values[3], dh_now = read<W>(dh + cell.at), dinner;
#pragma unroll
    for (int k = 0; k < 3; ++k) values[k] = read<W>(gates + at + k * hidden);
    const Reals<W> inner_sum = read<W>(inner + cell.row * hidden + cell.unit), h_before = read<W>(h + cell.before);
    const Reals<W> above = read_or_zero<W>(dy, cell.row * hidden + cell.unit);
#pragma unroll
    for (int w = 0; w < W; ++w) {
        const real_t r = values[0].at[w], dh_all = dh_now.at[w] + above.at[w];
        const GruCandidate d = gru_candidate_backward(values[1].at[w], values[2].at[w], h_before.at[w], dh_all);
        values[0].at[w] = gru_reset_backward(r, d.dn * inner_sum.at[w]);
        values[1].at[w] = d.dz, values[2].at[w] = d.dn;
        dinner.at[w] = d.dn * r, dh_now.at[w] = d.kept;
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        write<W>(dgates + at + k * hidden, values[k]);
        write<W>(dproducts + at + k * hidden, k < 2 ? values[k] : dinner);
    }
    write<W>(dh + cell.at, dh_now);
}

// gates, inner, h in, as forward left them; dy (T, B, H) or null; dh (B, H) in/out: gradient of h', then the part of h's
// that no product gives; dgates (T, B, 3H) out: gradients of the sums of x; dproducts (T, B, 3H) out: those of W_hh h.
extern "C" __global__ void fg_gru_backward(const storage_t* gates, const storage_t* inner, const storage_t* h,
                                           const storage_t* dy, storage_t* dh, storage_t* dgates, storage_t* dproducts,
                                           const index_t* lengths, index_t t, index_t batch, index_t hidden,
                                           int reverse, int vectors) {
    if (vectors)
        step_backward<VECTOR>(gates, inner, h, dy, dh, dgates, dproducts, lengths, t, batch, hidden, reverse);
    else
        step_backward<1>(gates, inner, h, dy, dh, dgates, dproducts, lengths, t, batch, hidden, reverse);
}
