// One step of an LSTM between two matrix products: the gates of all units of all sequences, and back.
//
//     i, f, o = sigmoid(sums),   g = tanh(sums);   c' = f c + i g,   h' = o tanh(c')
//
// Bytes a unit and sequence, float32: 48 forward (4 sums and c read, 4 gates, c' and h' written, without biases), 56
// backward (4 gates, c, dy, dh, dc read, 4 gradients, dc written), 16 at a time where the layout allows.
#include "lstm_gates.cuh"
#include "recurrent.cuh"

template <int W>
__device__ void step_forward(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh, storage_t* h,
                             storage_t* c, storage_t* y, const index_t* lengths, index_t t, index_t batch,
                             index_t hidden, int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    if (!cell.valid) {
        write<W>(h + cell.now, read<W>(h + cell.before));
        write<W>(c + cell.now, read<W>(c + cell.before));
        write<W>(y + cell.row * hidden + cell.unit, Reals<W>{});
        return;
    }
    storage_t* const own = gates + cell.row * 4 * hidden + cell.unit;
    const Reals<W> c_before = read<W>(c + cell.before);
    Reals<W> sums[4], c_now, h_now;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const index_t at = k * hidden + cell.unit;
        const Reals<W> one = read_or_zero<W>(bias_ih, at), two = read_or_zero<W>(bias_hh, at);
        sums[k] = read<W>(own + k * hidden);
#pragma unroll
        for (int w = 0; w < W; ++w) sums[k].at[w] += one.at[w] + two.at[w];
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
        real_t values[4] = {sums[0].at[w], sums[1].at[w], sums[2].at[w], sums[3].at[w]};
        const LstmState state = lstm_gates(values, c_before.at[w]);
        c_now.at[w] = state.c, h_now.at[w] = state.h;
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[k].at[w] = values[k];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) write<W>(own + k * hidden, sums[k]);
    write<W>(c + cell.now, c_now);
    write<W>(h + cell.now, h_now);
    if (lengths) write<W>(y + cell.row * hidden + cell.unit, h_now);
}

// gates (T, B, 4H) in/out: sums of the products of step t, then i, f, g, o; bias_ih, bias_hh (4H,) or null; h, c
// (T + 1, B, H) in/out; lengths (B,) or null, y (T, B, H) out with lengths, else not touched. Step t only, a thread for
// each unit, or for VECTOR of them: vectors says that H divides by it and all arrays begin on 16 bytes.
extern "C" __global__ void fg_lstm_forward(storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh,
                                           storage_t* h, storage_t* c, storage_t* y, const index_t* lengths, index_t t,
                                           index_t batch, index_t hidden, int reverse, int vectors) {
    if (vectors)
        step_forward<VECTOR>(gates, bias_ih, bias_hh, h, c, y, lengths, t, batch, hidden, reverse);
    else
        step_forward<1>(gates, bias_ih, bias_hh, h, c, y, lengths, t, batch, hidden, reverse);
}

template <int W>
__device__ void step_backward(const storage_t* gates, const storage_t* c, const storage_t* dy, storage_t* dh,
                              storage_t* dc, storage_t* dgates, const index_t* lengths, index_t t, index_t batch,
                              index_t hidden, int reverse) {
    const Cell<W> cell(t, batch, hidden, reverse, lengths);
    if (!cell.any) return;
    const index_t at = cell.row * 4 * hidden + cell.unit;
    if (!cell.valid) {
#pragma unroll
        for (int k = 0; k < 4; ++k) write<W>(dgates + at + k * hidden, Reals<W>{});
        return;
    }
    Reals<W> values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = read<W>(gates + at + k * hidden);
    const Reals<W> c_before = read<W>(c + cell.before), above = read_or_zero<W>(dy, cell.row * hidden + cell.unit);
    const Reals<W> dh_now = read<W>(dh + cell.at);
    Reals<W> dc_now = read<W>(dc + cell.at);
#pragma unroll
    for (int w = 0; w < W; ++w) {
        real_t each[4] = {values[0].at[w], values[1].at[w], values[2].at[w], values[3].at[w]};
        lstm_gates_backward(each, c_before.at[w], dh_now.at[w] + above.at[w], dc_now.at[w]);
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k].at[w] = each[k];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) write<W>(dgates + at + k * hidden, values[k]);
    write<W>(dc + cell.at, dc_now);
    if (lengths) write<W>(dh + cell.at, Reals<W>{});
}

// gates (T, B, 4H), c (T + 1, B, H) in, as forward left them; dy (T, B, H) or null; dh (B, H) in: gradient of h' from
// the next step; with lengths then 0 where the step belongs to the sequence, for a product to be added to; dc (B, H)
// in/out: gradient of c', then of c; dgates (T, B, 4H) out; lengths (B,) or null. Step t only, threads as in forward.
extern "C" __global__ void fg_lstm_backward(const storage_t* gates, const storage_t* c, const storage_t* dy,
                                            storage_t* dh, storage_t* dc, storage_t* dgates, const index_t* lengths,
                                            index_t t, index_t batch, index_t hidden, int reverse, int vectors) {
    if (vectors)
        step_backward<VECTOR>(gates, c, dy, dh, dc, dgates, lengths, t, batch, hidden, reverse);
    else
        step_backward<1>(gates, c, dy, dh, dc, dgates, lengths, t, batch, hidden, reverse);
}
