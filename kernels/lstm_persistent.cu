// An LSTM through all steps in one kernel, W_hh in registers; see persistent.cuh. FG_UNITS units a block.
//
//     i, f, o = sigmoid(sums),   g = tanh(sums);   c' = f c + i g,   h' = o tanh(c')
#include "lstm_gates.cuh"
#include "persistent.cuh"

using Slice = Rows<4>;
constexpr int ROWS = Slice::ROWS;

// weight_hh (4H, H) in; gates (T, B, 4H) in/out: products of x, then i, f, g, o; bias_ih, bias_hh (4H,) or null; h, c
// (T + 1, B, H): slot before the first step in, the rest out; y (T, B, H) out with lengths, else not touched; lengths
// (B,) or null; counters (groups, COUNTER_STRIDE) of 0. `pass` sequences are multiplied at a time. H divides by VECTOR,
// arrays begin on 16 bytes, blockDim.x DEPTH VECTOR / ROW_LANES is at least H; cooperative, groups times members blocks.
// Shared memory: most = the most sequences of a group: warps pass ROWS + most (ROWS + UNITS) + ROWS numbers.
extern "C" __global__ void __launch_bounds__(LARGEST, 1) fg_lstm_persistent_forward(
    const storage_t* weight_hh, storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh, storage_t* h,
    storage_t* c, storage_t* y, const index_t* lengths, unsigned* counters, index_t steps, index_t batch,
    index_t hidden, int reverse, int groups, int pass) {
    extern __shared__ real_t memory[];
    const Membership place(counters, batch, hidden, groups);
    const int count = int(place.count), warps = blockDim.x / WARP;
    real_t *const products = memory, *const from_x = products + warps * pass * ROWS;  // from_x (count, ROWS)
    real_t *const bias = from_x + count * ROWS, *const state = bias + ROWS;           // state (count, UNITS): c
    const Slice slice(weight_hh, place.unit, hidden);

    for (int i = threadIdx.x; i < ROWS; i += blockDim.x) {
        const index_t u = place.unit + i % UNITS, at = i / UNITS * hidden + u;
        bias[i] = u < hidden ? (bias_ih ? bias_ih[at] : 0) + (bias_hh ? bias_hh[at] : 0) : 0;
    }
    const index_t initial = (reverse ? steps : 0) * batch;
    for (int i = threadIdx.x; i < count * UNITS; i += blockDim.x) {
        const index_t u = place.unit + i % UNITS;
        state[i] = u < hidden ? c[(initial + place.first + i / UNITS) * hidden + u] : 0;
    }
    auto fetch = [&](index_t t) {
        for (int i = threadIdx.x; i < count * ROWS; i += blockDim.x) {
            const index_t u = place.unit + i % UNITS, row = t * batch + place.first + i / ROWS;
            if (u < hidden) from_x[i] = gates[row * 4 * hidden + i % ROWS / UNITS * hidden + u];
        }
    };
    fetch(reverse ? steps - 1 : 0);
    __syncthreads();

    for (index_t s = 0; s < steps; ++s) {
        const index_t t = reverse ? steps - 1 - s : s;
        const index_t before = (t + (reverse ? 1 : 0)) * batch, now = (t + (reverse ? 0 : 1)) * batch;
        if (s > 0) place.await(s);
        for (int low = 0; low < count; low += pass) {
            const int some = count - low < pass ? count - low : pass;
            if (low > 0) __syncthreads();
            slice.multiply(h + (before + place.first + low) * hidden, some, int(hidden), products);
            __syncthreads();
            for (int i = threadIdx.x; i < some * UNITS; i += blockDim.x) {
                const int b = i / UNITS, u = i % UNITS;
                const index_t unit = place.unit + u, sequence = place.first + low + b;
                if (unit >= hidden) continue;
                real_t& own = state[low * UNITS + i];
                if (lengths && t >= lengths[sequence]) {
                    h[(now + sequence) * hidden + unit] = h[(before + sequence) * hidden + unit];
                    c[(now + sequence) * hidden + unit] = own;
                    y[(t * batch + sequence) * hidden + unit] = 0;
                    continue;
                }
                real_t values[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int row = k * UNITS + u;
                    real_t total = from_x[(low + b) * ROWS + row] + bias[row];
                    for (int w = 0; w < warps; ++w) total += products[(w * some + b) * ROWS + row];
                    values[k] = total;
                }
                const LstmState result = lstm_gates(values, own);
                own = result.c;
                h[(now + sequence) * hidden + unit] = result.h;
                c[(now + sequence) * hidden + unit] = result.c;
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    gates[(t * batch + sequence) * 4 * hidden + k * hidden + unit] = values[k];
                if (lengths) y[(t * batch + sequence) * hidden + unit] = result.h;
            }
        }
        place.arrive();
        if (s + 1 < steps) fetch(reverse ? t - 1 : t + 1);
    }
}

// weight_hh (4H, H), gates (T, B, 4H), c (T + 1, B, H) in, as forward left them; dy (T, B, H) or null; dh, dc (B, H)
// in/out: gradients of the state after the last step, then of that before the first; dgates (T, B, 4H) out; partial (2,
// groups, members, most, H): room for partial sums, of two steps since a block may be one ahead; lengths (B,) or null;
// counters (groups, COUNTER_STRIDE) of 0; most: the most sequences of a group; bound: of
// what each step hands to the one before, infinity for none. blockDim.x VECTOR is at least H, the
// rest as in forward. Shared memory: most (ROWS + 8 UNITS) + max(most UNITS, blockDim.x SUM_WIDTH) numbers.
extern "C" __global__ void __launch_bounds__(LARGEST, 1) fg_lstm_persistent_backward(
    const storage_t* weight_hh, const storage_t* gates, const storage_t* c, const storage_t* dy, storage_t* dh,
    storage_t* dc, storage_t* dgates, real_t* partial, const index_t* lengths, unsigned* counters, index_t steps,
    index_t batch, index_t hidden, int reverse, int groups, int most, real_t bound) {
    extern __shared__ real_t memory[];
    const Membership place(counters, batch, hidden, groups);
    const int count = int(place.count), cells = count * UNITS, shares = shares_of(count, place.members);
    real_t *const gradients = memory, *const saved = gradients + count * ROWS;    // (count, ROWS), (6, count, UNITS)
    real_t *const dh_own = saved + 6 * cells, *const dc_own = dh_own + cells;     // (count, UNITS) each
    real_t* const sums = dc_own + cells;                                          // (shares, count, UNITS)
    const Columns<ROWS> slice(weight_hh, place.unit, int(hidden));
    const index_t one_step = index_t(groups) * place.members * most * hidden;
    real_t* const of_group = partial + index_t(place.group) * place.members * most * hidden;
    real_t* const own_partial = of_group + index_t(place.member) * most * hidden;

    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
        const index_t unit = place.unit + i % UNITS, at = (place.first + i / UNITS) * hidden + unit;
        dh_own[i] = unit < hidden ? dh[at] : 0;
        dc_own[i] = unit < hidden ? dc[at] : 0;
    }
    auto fetch = [&](index_t t) {
        for (int i = threadIdx.x; i < cells; i += blockDim.x) {
            const index_t unit = place.unit + i % UNITS, row = t * batch + place.first + i / UNITS;
            if (unit >= hidden) continue;
#pragma unroll
            for (int k = 0; k < 4; ++k) saved[k * cells + i] = gates[row * 4 * hidden + k * hidden + unit];
            saved[4 * cells + i] = c[(row + (reverse ? batch : 0)) * hidden + unit];
            saved[5 * cells + i] = dy ? dy[row * hidden + unit] : 0;
        }
    };
    fetch(reverse ? 0 : steps - 1);
    __syncthreads();

    for (index_t s = 0; s < steps; ++s) {
        const index_t t = reverse ? s : steps - 1 - s;
        if (s > 0) {
            place.await(s);
            collect(of_group + (s - 1) % 2 * one_step, place, most, int(hidden), sums);
            __syncthreads();
        }
        for (int i = threadIdx.x; i < cells; i += blockDim.x) {
            const int b = i / UNITS, u = i % UNITS;
            const index_t unit = place.unit + u, row = t * batch + place.first + b;
            real_t values[4] = {};
            if (unit < hidden) {
                real_t dh_now = dh_own[i];
                if (s > 0) {
                    for (int share = 0; share < shares; ++share) dh_now += sums[share * cells + i];
                    if (!lengths || (reverse ? t - 1 : t + 1) < lengths[place.first + b]) dh_now = clamped(dh_now, bound);
                }
                if (lengths && t >= lengths[place.first + b]) {
                    dh_own[i] = dh_now;
                } else {
#pragma unroll
                    for (int k = 0; k < 4; ++k) values[k] = saved[k * cells + i];
                    lstm_gates_backward(values, saved[4 * cells + i], dh_now + saved[5 * cells + i], dc_own[i]);
                    dc_own[i] = clamped(dc_own[i], bound);
                    dh_own[i] = 0;
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) dgates[row * 4 * hidden + k * hidden + unit] = values[k];
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) gradients[b * ROWS + k * UNITS + u] = values[k];
        }
        __syncthreads();
        slice.multiply(gradients, count, int(hidden), own_partial + s % 2 * one_step);
        place.arrive();
        if (s + 1 < steps) fetch(reverse ? t + 1 : t - 1);
    }

    place.await(steps);
    collect(of_group + (steps - 1) % 2 * one_step, place, most, int(hidden), sums);
    __syncthreads();
    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
        const index_t unit = place.unit + i % UNITS, at = (place.first + i / UNITS) * hidden + unit;
        if (unit >= hidden) continue;
        real_t total = dh_own[i];
        for (int share = 0; share < shares; ++share) total += sums[share * cells + i];
        if (!lengths || (reverse ? steps - 1 : 0) < lengths[place.first + i / UNITS]) total = clamped(total, bound);
        dh[at] = total;
        dc[at] = dc_own[i];
    }
}
