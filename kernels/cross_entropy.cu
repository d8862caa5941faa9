// Mean softmax cross-entropy with its gradient, M rows of V classes.
//
//     loss = mean over rows of  log sum_j exp(z_j) - z_target,    dz_j = (softmax(z)_j - [j = target]) / M
//
// Each kernel writes the loss of its rows in double; fg_loss_mean in loss.cu takes their mean. A target outside of 0 to
// V - 1 makes the row's loss and gradient NaN.
//
// Bytes: 8 a logit in float32 where a row fits into the registers of a warp or the shared memory of a block, 12 for
// longer rows. About 40 operations a logit; 50 are what an H200 has time for at 8 bytes a logit and 4.3 TB/s.
#include "vecmath.cuh"

constexpr int PAIR = 8 / int(sizeof(storage_t));  // what a thread takes at a time: a warp 256 bytes, as a vector of the CPU
constexpr int ITEMS = 16;                         // so often
using Pair = vector_of<storage_t, PAIR>;

constexpr int UNROLL = 4;  // vectors of a long row that a thread has on the way at a time

// The larger; NaN if either is.
__device__ inline real_t larger(real_t a, real_t b) { return b > a || is_nan(b) ? b : a; }

__device__ inline double row_loss(real_t sum, real_t chosen) { return log(double(sum)) - double(chosen); }

// logits (M, V) in; targets (M,) in; dlogits (M, V) out, may be logits; losses (M,) out. A row for each group of `width`
// threads, a power of two up to a warp; V is at most width PAIR ITEMS. pairs: rows begin on 8 bytes.
//
// The sum is that of kernels/cross_entropy_cpu.py, in its order: 256 bytes of a row are added lane by lane to the next,
// and then the halves of the lanes until one is left. So the gradient has the same bits.
extern "C" __global__ void fg_cross_entropy_rows(const storage_t* logits, const long long* targets, storage_t* dlogits,
                                                 double* losses, index_t M, index_t V, int width, int pairs) {
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

    real_t sums[PAIR] = {};
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            const bool inside = item * step + lane * PAIR + k < classes;
            const real_t e = exp_negative(real_t(values[item].at[k]) - top);
            values[item].at[k] = storage_t(e);
            if (inside) sums[k] += e;
        }
    }
    for (int lanes = width / 2; lanes > 0; lanes /= 2) {
#pragma unroll
        for (int k = 0; k < PAIR; ++k) sums[k] += __shfl_xor_sync(ALL_LANES, sums[k], lanes);
    }
    const real_t sum = PAIR == 2 ? sums[0] + sums[PAIR - 1] : sums[0];

    const bool valid = target >= 0 && target < V;
    const real_t count = real_t(M), divisor = valid ? sum * count : not_a_number(), one = real_t(1) / count;
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        if (item * step >= classes) break;
        const int at = item * step + lane * PAIR;
#pragma unroll
        for (int k = 0; k < PAIR; ++k) {
            const real_t share = real_t(values[item].at[k]) / divisor;
            values[item].at[k] = storage_t(at + k == target ? share - one : share);
        }
        if (pairs && at + PAIR <= classes) {
            store(dz + at, values[item]);
        } else {
#pragma unroll
            for (int k = 0; k < PAIR; ++k)
                if (at + k < classes) dz[at + k] = values[item].at[k];
        }
    }
    if (row < M && (valid ? target / PAIR % width == lane : lane == 0))
        losses[row] = valid ? row_loss(sum, chosen - top) : double(not_a_number());
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
__device__ void long_row(const storage_t* z, index_t target, storage_t* dz, double* loss, index_t M, index_t V,
                         storage_t* kept, real_t* tops, real_t* sums) {
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
    const bool valid = target >= 0 && target < V;
    const real_t chosen = threadIdx.x == 0 && valid ? real_t(z[skew + target]) : real_t(0);  // dz may be z

    Running own = {-infinity(), 0};
    each(
        [&](index_t at) {
            const Part values = load<Part>(z + at);
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

    const real_t count = real_t(M), divisor = valid ? sum * count : not_a_number(), one = real_t(1) / count;
    const auto gradient = [&](storage_t value, index_t at) {
        const real_t share = (FITS ? real_t(value) : exp_negative(real_t(value) - top)) / divisor;
        return storage_t(at == target + skew ? share - one : share);
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
    if (threadIdx.x == 0) *loss = valid ? row_loss(sum, chosen - top) : double(not_a_number());
}

// logits (M, V) in; targets (M,) in; dlogits (M, V) out, may be logits; losses (M,) out. Block m has row m. V is at
// least the size of a vector. Dynamic shared memory for V and one vector more elements where `fits`, else none.
// vectors: both arrays begin equally many bytes past a multiple of 16. At most 1024 threads in float32, 512 in float64,
// which takes more than 64 registers.
extern "C" __global__ void fg_cross_entropy_long_rows(const storage_t* logits, const long long* targets,
                                                      storage_t* dlogits, double* losses, index_t M, index_t V,
                                                      int vectors, int fits) {
    extern __shared__ uint4 memory[];
    __shared__ real_t tops[WARP], sums[WARP];
    storage_t* kept = reinterpret_cast<storage_t*>(memory);
    const index_t row = blockIdx.x, target = targets[row];
    const storage_t* z = logits + row * V;
    storage_t* dz = dlogits + row * V;
    if (vectors && fits)
        long_row<VECTOR, true>(z, target, dz, losses + row, M, V, kept, tops, sums);
    else if (vectors)
        long_row<VECTOR, false>(z, target, dz, losses + row, M, V, kept, tops, sums);
    else if (fits)
        long_row<1, true>(z, target, dz, losses + row, M, V, kept, tops, sums);
    else
        long_row<1, false>(z, target, dz, losses + row, M, V, kept, tops, sums);
}
