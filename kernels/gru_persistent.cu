// A GRU with reset_after through all steps in one kernel, W_hh in registers; see persistent.cuh. FG_UNITS units a block.
//
//     r, z = sigmoid(sums),   n = tanh(sum of x + r (W_hn h + b_hn));   h' = (1 - z) n + z h
#include "gru_gates.cuh"
#include "persistent.cuh"

using Slice = Rows<3>;
constexpr int ROWS = Slice::ROWS;

// weight_hh (3H, H) in; gates (T, B, 3H) in/out: products of x, then r, z, n; bias_ih, bias_hh (3H,) or null; inner (T,
// B, H) out: W_hn h + b_hn; h (T + 1, B, H): slot before the first step in, the rest out; y, lengths, counters, pass and
// the launch as for fg_lstm_persistent_forward.
// Shared memory: most = the most sequences of a group: warps pass ROWS + most (ROWS + UNITS) + 2 ROWS numbers.
extern "C" __global__ void __launch_bounds__(LARGEST, 1) fg_gru_persistent_forward(
    const storage_t* weight_hh, storage_t* gates, const storage_t* bias_ih, const storage_t* bias_hh, storage_t* inner,
    storage_t* h, storage_t* y, const index_t* lengths, unsigned* counters, index_t steps, index_t batch,
    index_t hidden, int reverse, int groups, int pass) {
    extern __shared__ real_t memory[];
    const Membership place(counters, batch, hidden, groups);
    const int count = int(place.count), warps = blockDim.x / WARP;
    real_t *const products = memory, *const from_x = products + warps * pass * ROWS;     // from_x (count, ROWS)
    real_t *const bias_x = from_x + count * ROWS, *const bias_h = bias_x + ROWS;         // (ROWS,)
    real_t* const state = bias_h + ROWS;                                                 // (count, UNITS): h
    const Slice slice(weight_hh, place.unit, hidden);

    for (int i = threadIdx.x; i < ROWS; i += blockDim.x) {
        const index_t u = place.unit + i % UNITS, at = i / UNITS * hidden + u;
        bias_x[i] = u < hidden && bias_ih ? bias_ih[at] : 0;
        bias_h[i] = u < hidden && bias_hh ? bias_hh[at] : 0;
    }
    const index_t initial = (reverse ? steps : 0) * batch;
    for (int i = threadIdx.x; i < count * UNITS; i += blockDim.x) {
        const index_t u = place.unit + i % UNITS;
        state[i] = u < hidden ? h[(initial + place.first + i / UNITS) * hidden + u] : 0;
    }
    auto fetch = [&](index_t t) {
        for (int i = threadIdx.x; i < count * ROWS; i += blockDim.x) {
            const index_t u = place.unit + i % UNITS, row = t * batch + place.first + i / ROWS;
            if (u < hidden) from_x[i] = gates[row * 3 * hidden + i % ROWS / UNITS * hidden + u];
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
                    h[(now + sequence) * hidden + unit] = own;
                    y[(t * batch + sequence) * hidden + unit] = 0;
                    continue;
                }
                real_t values[3], from_h[3];
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    const int row = k * UNITS + u;
                    values[k] = from_x[(low + b) * ROWS + row] + bias_x[row];
                    from_h[k] = bias_h[row];
                    for (int w = 0; w < warps; ++w) from_h[k] += products[(w * some + b) * ROWS + row];
                }
                values[0] += from_h[0], values[1] += from_h[1];
                own = gru_gates(values, from_h[2], own);
                h[(now + sequence) * hidden + unit] = own;
                inner[(t * batch + sequence) * hidden + unit] = from_h[2];
#pragma unroll
                for (int k = 0; k < 3; ++k)
                    gates[(t * batch + sequence) * 3 * hidden + k * hidden + unit] = values[k];
                if (lengths) y[(t * batch + sequence) * hidden + unit] = own;
            }
        }
        place.arrive();
        if (s + 1 < steps) fetch(reverse ? t - 1 : t + 1);
    }
}

// weight_hh (3H, H), gates (T, B, 3H), inner (T, B, H), h (T + 1, B, H) in, as forward left them; dy (T, B, H) or null;
// dh (B, H) in/out: gradient of the state after the last step, then of that before the first; dgates (T, B, 3H) out:
// gradients of the sums of x; dproducts (T, B, 3H) out: those of W_hh h; partial, lengths, counters, most, bound and the
// launch as for fg_lstm_persistent_backward. Shared memory: most (ROWS + 7 UNITS) + max(most UNITS, blockDim.x SUM_WIDTH).
extern "C" __global__ void __launch_bounds__(LARGEST, 1) fg_gru_persistent_backward(
    const storage_t* weight_hh, const storage_t* gates, const storage_t* inner, const storage_t* h,
    const storage_t* dy, storage_t* dh, storage_t* dgates, storage_t* dproducts, real_t* partial,
    const index_t* lengths, unsigned* counters, index_t steps, index_t batch, index_t hidden, int reverse, int groups,
    int most, real_t bound) {
    extern __shared__ real_t memory[];
    const Membership place(counters, batch, hidden, groups);
    const int count = int(place.count), cells = count * UNITS, shares = shares_of(count, place.members);
    real_t *const gradients = memory, *const saved = gradients + count * ROWS;  // (count, ROWS), (6, count, UNITS)
    real_t *const dh_own = saved + 6 * cells, *const sums = dh_own + cells;     // (count, UNITS), (shares, count, UNITS)
    const Columns<ROWS> slice(weight_hh, place.unit, int(hidden));
    const index_t one_step = index_t(groups) * place.members * most * hidden;
    real_t* const of_group = partial + index_t(place.group) * place.members * most * hidden;
    real_t* const own_partial = of_group + index_t(place.member) * most * hidden;

    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
        const index_t unit = place.unit + i % UNITS;
        dh_own[i] = unit < hidden ? dh[(place.first + i / UNITS) * hidden + unit] : 0;
    }
    auto fetch = [&](index_t t) {
        for (int i = threadIdx.x; i < cells; i += blockDim.x) {
            const index_t unit = place.unit + i % UNITS, row = t * batch + place.first + i / UNITS;
            if (unit >= hidden) continue;
#pragma unroll
            for (int k = 0; k < 3; ++k) saved[k * cells + i] = gates[row * 3 * hidden + k * hidden + unit];
            saved[3 * cells + i] = inner[row * hidden + unit];
            saved[4 * cells + i] = h[(row + (reverse ? batch : 0)) * hidden + unit];
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
            real_t values[3] = {}, dinner = 0;
            if (unit < hidden) {
                real_t dh_now = dh_own[i];
                if (s > 0) {
                    for (int share = 0; share < shares; ++share) dh_now += sums[share * cells + i];
                    if (!lengths || (reverse ? t - 1 : t + 1) < lengths[place.first + b]) dh_now = clamped(dh_now, bound);
                }
                dh_own[i] = dh_now;
                if (!lengths || t < lengths[place.first + b]) {
                    const real_t r = saved[i], z = saved[cells + i], n = saved[2 * cells + i];
                    const GruCandidate d =
                        gru_candidate_backward(z, n, saved[4 * cells + i], dh_now + saved[5 * cells + i]);
                    values[0] = gru_reset_backward(r, d.dn * saved[3 * cells + i]);
                    values[1] = d.dz, values[2] = d.dn;
                    dinner = d.dn * r;
                    dh_own[i] = d.kept;
                }
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    dgates[row * 3 * hidden + k * hidden + unit] = values[k];
                    dproducts[row * 3 * hidden + k * hidden + unit] = k < 2 ? values[k] : dinner;
                }
            }
#pragma unroll
            for (int k = 0; k < 3; ++k) gradients[b * ROWS + k * UNITS + u] = k < 2 ? values[k] : dinner;
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
        const index_t unit = place.unit + i % UNITS;
        if (unit >= hidden) continue;
        real_t total = dh_own[i];
        for (int share = 0; share < shares; ++share) total += sums[share * cells + i];
        if (!lengths || (reverse ? steps - 1 : 0) < lengths[place.first + i / UNITS]) total = clamped(total, bound);
        dh[(place.first + i / UNITS) * hidden + unit] = total;
    }
}
