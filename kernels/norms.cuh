// Norms of tensors and of a whole list, in a fixed order and without overflow or underflow.
//
//     ord 1: sum |a|      ord 2: sqrt(sum a^2)      ord inf: max |a|        FG_ORD is 1, 2 or 0 for inf
//
// Every sum is a sum of doubles. The square of a float32 is exact there and far from both ends of the range. Squares of
// float64 may leave it: entries are sorted by their magnitude into three sums, those of the large and of the small ones
// scaled by a power of two (Blue, A Portable Fortran Program to Find the Euclidean Norm of a Vector, 1978; the limits
// are LAPACK's), so that one pass does and nobody has to look at its result.
//
// One conversion and one fused multiply-add in double for each float32. An H200 makes 16 such conversions a clock and
// multiprocessor, 3.7e12 a second where its memory brings 1.1e12 numbers. GPUs with few double units make two of
// either, 3.2e11 numbers or 1.3 TB/s on the largest of sm_89, about what its memory brings: sums in float, exact by
// pairs, would take more instructions than they save.
#pragma once
#include "lists.cuh"

#ifndef FG_ORD
#define FG_ORD 2
#endif

#if FG_ORD == 2 && defined(FG_F64)
constexpr int TERMS = 3;  // sums: of the usual, the large and the small
#else
constexpr int TERMS = 1;
#endif

__device__ constexpr double LARGE = 0x1p486, LARGE_FACTOR = 0x1p-538, SMALL = 0x1p-511, SMALL_FACTOR = 0x1p537;

// NaN on either side wins.
__device__ inline double larger(double a, double b) { return b > a || is_nan(b) ? b : a; }

// What becomes the norm of some entries.
struct Total {
    double at[TERMS] = {};

    __device__ void take(real_t x) {
        const double a = abs_(double(x));
        if constexpr (FG_ORD == 1)
            at[0] += a;
        else if constexpr (FG_ORD == 0)
            at[0] = larger(at[0], a);
        else if constexpr (TERMS == 1)
            at[0] = fma_(a, a, at[0]);
        else if (a > LARGE)
            at[1] = fma_(a * LARGE_FACTOR, a * LARGE_FACTOR, at[1]);
        else if (a < SMALL)
            at[2] = fma_(a * SMALL_FACTOR, a * SMALL_FACTOR, at[2]);
        else
            at[0] = fma_(a, a, at[0]);  // NaN too
    }
    __device__ static double fold(double a, double b) {
        if constexpr (FG_ORD == 0)
            return larger(a, b);
        else
            return a + b;
    }
    // Read from memory what another block may have written.
    __device__ void take(const double* terms) {
#pragma unroll
        for (int i = 0; i < TERMS; ++i) at[i] = fold(at[i], __ldcg(terms + i));
    }
    __device__ void take(const Total& other) {
#pragma unroll
        for (int i = 0; i < TERMS; ++i) at[i] = fold(at[i], other.at[i]);
    }
    __device__ void put(double* terms) const {
#pragma unroll
        for (int i = 0; i < TERMS; ++i) terms[i] = at[i];
    }
    // Of several, whose order a place in a vector decides: halves, then halves of those.
    template <int N> __device__ static Total of(Total (&sums)[N]) {
#pragma unroll
        for (int apart = N / 2; apart > 0; apart /= 2) {
#pragma unroll
            for (int k = 0; k < apart; ++k) sums[k].take(sums[k + apart]);
        }
        return sums[0];
    }
    // That of all threads, in the first warp.
    __device__ Total of_block() const {
        Total result;
#pragma unroll
        for (int i = 0; i < TERMS; ++i) result.at[i] = block_fold(at[i], 0.0, fold);
        return result;
    }
    __device__ double norm() const {
        if constexpr (FG_ORD != 2) {
            return at[0];
        } else if constexpr (TERMS == 1) {
            return sqrt(at[0]);
        } else {
            // Beside a large entry the small ones are below the last digit.
            if (at[1] > 0) return sqrt(fma_(at[0] * LARGE_FACTOR, LARGE_FACTOR, at[1])) / LARGE_FACTOR;
            const double usual = sqrt(at[0]), small = sqrt(at[2]) / SMALL_FACTOR;
            if (!(small > 0)) return usual;
            if (usual == 0) return small;
            const double most = small > usual ? small : usual, least = small > usual ? usual : small;
            const double ratio = least / most;
            return is_nan(usual) ? usual : most * sqrt(fma_(ratio, ratio, 1.0));
        }
    }
};

// min(1, limit / (norm + 1e-6)), NaN for a NaN norm; 1 where the limit is negative, which stands for none.
__device__ inline double clip_coefficient(double norm, double limit) {
    const double coefficient = limit / (norm + 1e-6);
    return limit < 0 || coefficient >= 1 ? 1.0 : coefficient;
}

// What the pass over the gradients leaves to the launch that finishes.
struct Sums {
    const double* partial;  // (chunks, TERMS)
    double* totals;         // (tensors, TERMS) scratch
    double* norms;          // (tensors,) out
    unsigned* arrived;      // blocks that are done; 0 before and after
};

// Block b makes the norm of tensor b out of its chunks. The block that comes last makes the one of all of them, in its
// first thread, and returns true; what it reads was written before by all others.
__device__ inline bool finish_norms(const Table& table, const Sums& sums, double& norm) {
    __shared__ bool is_last;
    const int tensor = blockIdx.x;
    const index_t first = table.first_chunk(tensor), end = table.first_chunk(tensor + 1);
    Total own;
    for (index_t chunk = first + threadIdx.x; chunk < end; chunk += blockDim.x) own.take(sums.partial + chunk * TERMS);
    own = own.of_block();
    if (threadIdx.x == 0) {
        own.put(sums.totals + index_t(tensor) * TERMS);
        sums.norms[tensor] = own.norm();
        __threadfence();
        is_last = atomicInc(sums.arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return false;
    __threadfence();
    Total all;
    for (int k = threadIdx.x; k < table.tensors; k += blockDim.x) all.take(sums.totals + index_t(k) * TERMS);
    norm = all.of_block().norm();
    return true;
}
