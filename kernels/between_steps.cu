// What may come between the steps of an LSTM or GRU: zoneout, variational dropout, the clamp of the state's gradient.
// See between_steps_ref.py for the equations and the random numbers. The kernels of the steps are not changed by it:
// these run before and behind them. Dimensions: T time, B batch, H hidden, N any.
//
// Bytes a unit and sequence, float32: zoneout 24 for h and c (each read twice and written), its backward 36, the end of
// a step back up to 36. A thread for each unit: a step has few, and waits for its launches.
#include "philox.cuh"
#include "recurrent.cuh"

__device__ inline real_t masked(real_t x, real_t factor) { return factor > 0 ? x * factor : real_t(0); }

// a (T, n) in; mask (n,) in; out (T, n) out, may be a: a mask, and 0 where that is 0. Threads along n, blocks.y
// along T.
extern "C" __global__ void fg_mask_steps(const storage_t* a, const storage_t* mask, storage_t* out, index_t steps,
                                         index_t n) {
    const index_t i = global_thread();
    if (i >= n) return;
    const real_t factor = real_t(mask[i]);
    for (index_t t = blockIdx.y; t < steps; t += gridDim.y) out[t * n + i] = storage_t(masked(a[t * n + i], factor));
}

using wide_t = unsigned long long;

// z of an entry of (T, B, H): 1 below the threshold and 0 above where it is random, else p.
struct Zone { wide_t seed, offset; unsigned threshold; real_t p; };
__device__ inline real_t zone_of(const Zone& zone, index_t entry, int random) {
    if (!random) return zone.p;
    return zone.threshold && Philox{zone.seed, zone.offset}.of_entry(entry) < zone.threshold ? real_t(1) : real_t(0);
}

// state (T + 1, B, H) in/out: that after the step becomes z of that before and (1 - z) of what it was.
__device__ inline real_t mixed(storage_t* state, const Cell<1>& cell, real_t z) {
    const real_t before = state[cell.before], now = state[cell.now];
    const real_t value = z == 0 ? now : z == 1 ? before : fma_(z, before, (real_t(1) - z) * now);
    state[cell.now] = storage_t(value);
    return value;
}

// Behind the forward kernel of step t. h, c (T + 1, B, H) in/out, c null for a GRU; y (T, B, H) out with lengths;
// lengths (B,) or null.
extern "C" __global__ void fg_zoneout(storage_t* h, storage_t* c, storage_t* y, const index_t* lengths, wide_t seed,
                                      wide_t offset_h, wide_t offset_c, unsigned threshold_h, unsigned threshold_c,
                                      real_t p_h, real_t p_c, int random, index_t t, index_t batch, index_t hidden,
                                      int reverse) {
    const Cell<1> cell(t, batch, hidden, reverse, lengths);
    if (!cell.valid) return;
    const index_t entry = cell.row * hidden + cell.unit;
    const real_t value = mixed(h, cell, zone_of({seed, offset_h, threshold_h, p_h}, entry, random));
    if (lengths) y[entry] = storage_t(value);
    if (c) mixed(c, cell, zone_of({seed, offset_c, threshold_c, p_c}, entry, random));
}

// gradient in/out: (1 - z) of itself and `above`; kept out: z of them.
__device__ inline void split(storage_t& gradient, real_t above, storage_t& kept, real_t z) {
    const real_t all = real_t(gradient) + above;
    kept = storage_t(z > 0 ? z * all : real_t(0));
    gradient = storage_t(z >= 1 ? real_t(0) : (real_t(1) - z) * all);
}

// Before the backward kernel of step t, which gets no dy then. dh, dc (B, H) in/out: gradients of the state after the
// step, then of what the step itself gave to it; kept_h, kept_c (B, H) out: what goes past the step; dc and kept_c null
// for a GRU; dy (T, B, H) or null.
extern "C" __global__ void fg_zoneout_backward(storage_t* dh, storage_t* dc, const storage_t* dy, storage_t* kept_h,
                                               storage_t* kept_c, const index_t* lengths, wide_t seed, wide_t offset_h,
                                               wide_t offset_c, unsigned threshold_h, unsigned threshold_c, real_t p_h,
                                               real_t p_c, int random, index_t t, index_t batch, index_t hidden) {
    const Cell<1> cell(t, batch, hidden, 0, lengths);
    if (!cell.valid) return;
    const index_t entry = cell.row * hidden + cell.unit;
    const real_t above = dy ? real_t(dy[entry]) : real_t(0);
    split(dh[cell.at], above, kept_h[cell.at], zone_of({seed, offset_h, threshold_h, p_h}, entry, random));
    if (dc) split(dc[cell.at], 0, kept_c[cell.at], zone_of({seed, offset_c, threshold_c, p_c}, entry, random));
}

// Behind the product that ends step t back. dh, dc (B, H) in/out, dc null for a GRU; products, mask (B, H) or null:
// gradient of h as it entered the products, and its mask; kept_h, kept_c (B, H) or null: what went past the step;
// bound: of the results, infinity for none. overwrite: where there are products, dh is not read.
extern "C" __global__ void fg_finish_step(storage_t* dh, storage_t* dc, const storage_t* products,
                                          const storage_t* mask, const storage_t* kept_h, const storage_t* kept_c,
                                          const index_t* lengths, real_t bound, int overwrite, index_t t,
                                          index_t batch, index_t hidden) {
    const Cell<1> cell(t, batch, hidden, 0, lengths);
    if (!cell.valid) return;
    real_t value = products && overwrite ? real_t(0) : real_t(dh[cell.at]);
    if (products) value += masked(products[cell.at], mask[cell.at]);
    if (kept_h) value += real_t(kept_h[cell.at]);
    dh[cell.at] = storage_t(clamped(value, bound));
    if (!dc) return;
    real_t other = dc[cell.at];
    if (kept_c) other += real_t(kept_c[cell.at]);
    dc[cell.at] = storage_t(clamped(other, bound));
}
