// Mean softmax cross-entropy with its gradient, rows of V classes, M of which have a target that is not ignored.
//
//     q_j = (1 - smoothing) [j = target] + smoothing / V, the second term with FG_SMOOTHED alone
//     loss = mean over rows of  log sum_j exp(z_j) - sum_j q_j z_j,    dz_j = (softmax(z)_j - q_j) / M
//
// Each kernel writes the loss of its rows in double; fg_loss_mean in loss.cu takes their mean. A target outside of 0 to
// V - 1 makes the row's loss and gradient NaN, one that is ignored makes them 0.
//
// Bytes: 8 a logit in float32 where a row fits into the registers of a warp or the shared memory of a block, 12 for
// longer rows. About 40 operations a logit; 50 are what an H200 has time for at 8 bytes a logit and 4.3 TB/s.
#include "vecmath.cuh"

#ifndef FG_SMOOTHED
#define FG_SMOOTHED 0
#endif

constexpr int PAIR = 8 / int(sizeof(storage_t));  // what a thread takes at a time: a warp 256 bytes, as a vector of the CPU
constexpr int ITEMS = 16;                         // so often
using Pair = vector_of<storage_t, PAIR>;

constexpr int UNROLL = 4;  // vectors of a long row that a thread has on the way at a time

// The larger; NaN if either is.
__device__ inline real_t larger(real_t a, real_t b) { return b > a || is_nan(b) ? b : a; }

__device__ inline double row_loss(real_t sum, real_t chosen) { return log(double(sum)) - double(chosen); }

// What the rows have in common, and what one of them is.
struct Shares {
    real_t count, one, spread;  // M; what is taken off the gradient at the target, and everywhere
    bool valid, skipped;        // whether the target is a class; whether it is ignored

    __device__ Shares(index_t M, index_t V, index_t target, const index_t* counted, index_t ignored, real_t hit, real_t each)
        : count(real_t(counted ? *counted : M)), one((FG_SMOOTHED ? hit : real_t(1)) / count), spread(each / count),
          valid(target >= 0 && target < V), skipped(counted && target == ignored) {}

    __device__ real_t divisor(real_t sum) const { return valid ? sum * count : not_a_number(); }
    // share: exp(z - largest) / divisor
    __device__ real_t gradient(real_t share, bool at_target) const {
        if (FG_SMOOTHED) share = share - spread;
        share = at_target ? share - one : share;
        return skipped ? real_t(0) : share;
    }
    __device__ double loss(real_t sum, real_t chosen) const {
        return skipped ? 0.0 : valid ? row_loss(sum, chosen) : double(not_a_number());
    }
};

// targets (rows,) in; counted (1,) out: how many are not `ignored`. One block, a multiple of a warp.
extern "C" __global__ void fg_count_targets(const index_t* targets, index_t* counted, index_t rows, index_t ignored) {
    double total = 0;
#pragma unroll 4
    for (index_t i = threadIdx.x; i < rows; i += blockDim.x) total += targets[i] != ignored;
    total = block_sum(total);
    if (threadIdx.x == 0) *counted = index_t(total);
}

// logits (M, V) in; targets (M,) in; dlogits (M, V) out, may be logits; losses (M,) out. A row for each group of `width`
// threads, a power of two up to a warp; V is at most width PAIR ITEMS. pairs: rows begin on 8 bytes. counted (1,) in, or
// null where no target is ignored: how many are not. hit, each: 1 - smoothing, smoothing / V.
//
// The sum is that of kernels/cross_entropy_cpu.py, in its order: 256 bytes of a row are added lane by lane to the next,
// and then the halves of the lanes until one is left. So the gradient has the same bits.
extern "C" __global__ void fg_cross_entropy_rows(const storage_t* logits, const long long* targets, storage_t* dlogits,
                                                 double* losses, index_t M, index_t V, int width, int pairs,
                                                 const index_t* counted, index_t ignored, real_t hit, real_t each) {
    const index_t row = global_thread() / width;
    const int lane = threadIdx.x % width, step = width * PAIR;
    const int classes = row < M ? int(V) : 0;  // threads past the end stay for the shuffles
    const index_t target = row < M ? targets[row] : 0;
    const storage_t* z = logits + row * V;
    storage_t* dz = dlogits + row * V;

    Pair values[ITEMS];
    real_t top = -infinity(), chosen = 0;
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
        const int at = item * step + lane * PAIR;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) values[item].at[k] = storage_t(-infinity());
        if (pairs && at + PAIR <= classes) {
            values[item] = load<Pair>(z + at);
        } else {
#pragma unroll
            for (int k = 0; k < PAIR; ++k)
                if (at + k < classes) values[item].at[k] = z[at + k];
        }
    }
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            const real_t value = real_t(values[item].at[k]);
            top = larger(top, value);
            if (item * step + lane * PAIR + k == target) chosen = value;
        }
    }
    for (int lanes = width / 2; lanes > 0; lanes /= 2) top = larger(top, __shfl_xor_sync(ALL_LANES, top, lanes));

    real_t sums[PAIR] = {}, linear[PAIR] = {};
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            const bool inside = item * step + lane * PAIR + k < classes;
            const real_t shifted = real_t(values[item].at[k]) - top, e = exp_negative(shifted);
            values[item].at[k] = storage_t(e);
            if (inside) sums[k] += e;
            if (FG_SMOOTHED && inside) linear[k] += shifted;
        }
    }
    for (int lanes = width / 2; lanes > 0; lanes /= 2) {
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            sums[k] += __shfl_xor_sync(ALL_LANES, sums[k], lanes);
            if (FG_SMOOTHED) linear[k] += __shfl_xor_sync(ALL_LANES, linear[k], lanes);
        }
    }
    const real_t sum = PAIR == 2 ? sums[0] + sums[PAIR - 1] : sums[0];
    real_t mean = chosen - top;
    if (FG_SMOOTHED) mean = fma_(PAIR == 2 ? linear[0] + linear[PAIR - 1] : linear[0], each, mean * hit);

    const Shares shares(M, V, target, counted, ignored, hit, each);
    const real_t divisor = shares.divisor(sum);
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
        const int at = item * step + lane * PAIR;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            const real_t share = real_t(values[item].at[k]) / divisor;
            values[item].at[k] = storage_t(shares.gradient(share, at + k == target));
        }
        if (pairs && at + PAIR <= classes) {
            store(dz + at, values[item]);
        } else {
#pragma unroll
            for (int k = 0; k < PAIR; ++k)
                if (at + k < classes) dz[at + k] = values[item].at[k];
        }
    }
    if (row < M && (shares.valid ? target / PAIR % width == lane : lane == 0)) losses[row] = shares.loss(sum, mean);
}

// What all threads of a block hold, combined in a fixed order, in every thread. parts: shared memory of a warp's size,
// used once.
template <class F> __device__ real_t block_combine(real_t value, real_t nothing, real_t* parts, F combine) {
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int step = 1; step < WARP; step *= 2) value = combine(value, __shfl_xor_sync(ALL_LANES, value, step));
    if (lane == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    value = lane < warps ? parts[lane] : nothing;
    for (int step = 1; step < WARP; step *= 2) value = combine(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

// The largest logit seen, and the sum of exp(z - largest).
struct Running {
    real_t top, sum;
    template <int N> __device__ void add(const storage_t (&values)[N]) {
        real_t next = top;
#pragma unroll
        for (int k = 0; k < N; ++k) next = larger(next, real_t(values[k]));
        if (next == -infinity()) return;  // where inf - inf would make the sum NaN
        if (next != top) {
            sum *= exp_negative(top - next);
            top = next;
        }
#pragma unroll
        for (int k = 0; k < N; ++k) sum += exp_negative(real_t(values[k]) - top);
    }
};

// A row for the threads of a block. W elements are moved at a time; `skew` of them are missing before the row's first
// whole place in memory. FITS: the row is kept in shared memory, as exp(z - largest) once that is known; else it is read
// twice. tops, sums: shared memory of a warp's size.
template <int W, bool FITS>
__device__ void long_row(const storage_t* z, index_t target, storage_t* dz, double* loss, index_t V, const Shares& shares,
                         real_t hit, real_t each_class, storage_t* kept, real_t* tops, real_t* sums) {
    using Part = vector_of<storage_t, W>;
    const int skew = W == 1 ? 0 : int(reinterpret_cast<unsigned long long>(z) / sizeof(storage_t) % W);
    z -= skew;
    dz -= skew;
    const index_t end = V + skew, whole = end / W;
    // Whole vectors, and the elements before and after them, are for the same threads in every pass.
    const auto each = [&](auto on_vector, auto on_element) {
#pragma unroll UNROLL
        for (index_t v = (skew > 0) + threadIdx.x; v < whole; v += blockDim.x) on_vector(v * W);
        if (W > 1 && threadIdx.x < W) {
            if (skew > 0 && int(threadIdx.x) >= skew) on_element(index_t(threadIdx.x));
            if (whole * W + threadIdx.x < end) on_element(whole * W + threadIdx.x);
        }
    };
    const real_t chosen = threadIdx.x == 0 && shares.valid ? real_t(z[skew + target]) : real_t(0);  // dz may be z

    Running own = {-infinity(), 0};
    double plain = 0;  // sum of all logits, in double: the largest is known only later
    each(
        [&](index_t at) {
            const Part values = load<Part>(z + at);
            if constexpr (FG_SMOOTHED) {
#pragma unroll
                for (int k = 0; k < W; ++k) plain += double(values.at[k]);
            }
            if constexpr (FITS) {
                *reinterpret_cast<Part*>(kept + at) = values;
#pragma unroll
                for (int k = 0; k < W; ++k) own.top = larger(own.top, real_t(values.at[k]));
            } else {
                own.add(values.at);
            }
        },
        [&](index_t at) {
            const storage_t value[1] = {z[at]};
            if (FG_SMOOTHED) plain += double(value[0]);
            if constexpr (FITS) {
                kept[at] = value[0];
                own.top = larger(own.top, real_t(value[0]));
            } else {
                own.add(value);
            }
        });
    const real_t top = block_combine(own.top, -infinity(), tops, larger);
    if constexpr (FITS) {
        each(
            [&](index_t at) {
                Part values = *reinterpret_cast<const Part*>(kept + at);
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    const real_t e = exp_negative(real_t(values.at[k]) - top);
                    values.at[k] = storage_t(e);
                    own.sum += e;
                }
                *reinterpret_cast<Part*>(kept + at) = values;
            },
            [&](index_t at) {
                const real_t e = exp_negative(real_t(kept[at]) - top);
                kept[at] = storage_t(e);
                own.sum += e;
            });
    } else if (own.top != top && own.top != -infinity()) {
        own.sum *= exp_negative(own.top - top);
    }
    const real_t sum = block_combine(own.sum, 0, sums, [](real_t a, real_t b) { return a + b; });

    const real_t divisor = shares.divisor(sum);
    const auto gradient = [&](storage_t value, index_t at) {
        const real_t share = (FITS ? real_t(value) : exp_negative(real_t(value) - top)) / divisor;
        return storage_t(shares.gradient(share, at == target + skew));
    };
    const storage_t* from = FITS ? kept : z;
    each(
        [&](index_t at) {
            Part values = FITS ? *reinterpret_cast<const Part*>(from + at) : load<Part>(from + at);
#pragma unroll
            for (int k = 0; k < W; ++k) values.at[k] = gradient(values.at[k], at + k);
            store(dz + at, values);
        },
        [&](index_t at) { dz[at] = gradient(from[at], at); });
    real_t mean = chosen - top;
    if constexpr (FG_SMOOTHED) {
        const double linear = block_sum(plain) - double(V) * double(top);
        mean = fma_(real_t(linear), each_class, mean * hit);
    }
    if (threadIdx.x == 0) *loss = shares.loss(sum, mean);
}

// logits (M, V) in; targets (M,) in; dlogits (M, V) out, may be logits; losses (M,) out. Block m has row m. V is at
// least the size of a vector. Dynamic shared memory for V and one vector more elements where `fits`, else none.
// vectors: both arrays begin equally many bytes past a multiple of 16. At most 1024 threads in float32, 512 in float64,
// which takes more than 64 registers. The last four as above.
extern "C" __global__ void fg_cross_entropy_long_rows(const storage_t* logits, const long long* targets,
                                                      storage_t* dlogits, double* losses, index_t M, index_t V,
                                                      int vectors, int fits, const index_t* counted, index_t ignored,
                                                      real_t hit, real_t each) {
    extern __shared__ uint4 memory[];
    __shared__ real_t tops[WARP], sums[WARP];
    storage_t* kept = reinterpret_cast<storage_t*>(memory);
    const index_t row = blockIdx.x, target = targets[row];
    const storage_t* z = logits + row * V;
    storage_t* dz = dlogits + row * V;
    const Shares shares(M, V, target, counted, ignored, hit, each);
    if (vectors && fits)
        long_row<VECTOR, true>(z, target, dz, losses + row, V, shares, hit, each, kept, tops, sums);
    else if (vectors)
        long_row<VECTOR, false>(z, target, dz, losses + row, V, shares, hit, each, kept, tops, sums);
    else if (fits)
        long_row<1, true>(z, target, dz, losses + row, V, shares, hit, each, kept, tops, sums);
    else
        long_row<1, false>(z, target, dz, losses + row, V, shares, hit, each, kept, tops, sums);
}
