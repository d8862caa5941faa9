// What the kernels share that take a recurrent layer through all steps and keep W_hh on the chip.
//
// A group of `members` blocks takes some sequences of the batch through all steps, with a barrier among its blocks at
// each. A block has UNITS hidden units with all their gates, so that their state never leaves it; its rows of W_hh, ROWS
// of them, lie in its threads' registers from the first step to the last. All blocks must run at the same time.
//
// Forward a block needs all of h from the other blocks, B H numbers a step. Backward it has the gradients of its own
// gates, and gives to each column of h what its rows of W_hh make of them: B H partial sums a step, which the owner of
// the column adds up. (All gradients instead would be 4 B H numbers a step.)
#pragma once
#include "recurrent.cuh"
#include "sync.cuh"

constexpr int UNITS = FG_UNITS, DEPTH = FG_DEPTH, LARGEST = 256;  // units a block, vectors of h a thread, threads a block
constexpr int ROW_LANES = 4, DEPTH_LANES = WARP / ROW_LANES;
constexpr int COUNTER_STRIDE = 32;  // a group's counter has a cache line of its own
using Numbers = vector<real_t>;

static_assert(sizeof(storage_t) == sizeof(real_t), "these kernels compute with the numbers as they are stored");

// What another block has written since this kernel began: past the first-level cache, which is this multiprocessor's.
__device__ inline Numbers read_shared_by_blocks(const real_t* p) {
    const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(p));
    Numbers value;
    memcpy(&value, &raw, sizeof raw);
    return value;
}

// The place of a block among the others.
struct Membership {
    int members, group, member;
    index_t first, count;  // sequences of the group
    index_t unit;          // the block's first unit
    unsigned* counter;

    __device__ Membership(unsigned* counters, index_t batch, index_t hidden, int groups) {
        members = int((hidden + UNITS - 1) / UNITS);
        group = blockIdx.x / members, member = blockIdx.x % members;
        first = batch * group / groups, count = batch * (group + 1) / groups - first;
        unit = index_t(member) * UNITS;
        counter = counters + group * COUNTER_STRIDE;
    }

    // All threads of the block have written what the others wait for.
    __device__ void arrive() const {
        __syncthreads();
        if (threadIdx.x == 0) atomic_add_release(counter, 1u);
    }
    // Wait until all blocks have arrived for the n-th time.
    __device__ void await(index_t n) const {
        if (threadIdx.x == 0)
            while (load_acquire(counter) < unsigned(n * members)) {
            }
        __syncthreads();
    }
};

// --- forward: sums[row] of W_hh h for the block's rows, gate by gate
//
// A warp's 32 lanes are 4 parts of the rows by 8 parts of h, and the warps are more parts of h: a warp reads each of its
// numbers of h once, 128 bytes at a time, and no two warps read the same. A number of h meets R weights in a thread, and
// a weight every sequence. What the parts of h gave is added up over lanes, then over warps.

constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

template <int GATES> struct Rows {
    static constexpr int ROWS = GATES * UNITS, R = ROWS / ROW_LANES;  // of the block, of a lane
    static constexpr int LEAST = DEPTH_LANES / gcd(R, DEPTH_LANES);   // sequences that make full sets of sums
    static constexpr int TOGETHER = R * LEAST >= 16 ? LEAST : 16 / (R * LEAST) * LEAST;
    static constexpr int SUMS = R * TOGETHER;
    static_assert(ROWS % ROW_LANES == 0 && SUMS % DEPTH_LANES == 0, "UNITS does not divide into the lanes");

    real_t weight[DEPTH][VECTOR][R];
    int row;   // the lane's first
    int part;  // of h: the numbers from part VECTOR on, and DEPTH - 1 more with all threads' in between
    int parts;

    __device__ Rows(const storage_t* weight_hh, index_t unit, index_t hidden) {
        const int lane = threadIdx.x % WARP;
        row = lane / DEPTH_LANES * R;
        part = threadIdx.x / WARP * DEPTH_LANES + lane % DEPTH_LANES;
        parts = blockDim.x / ROW_LANES;
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int k = at(d);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const index_t u = unit + (row + r) % UNITS, source = (row + r) / UNITS * hidden + u;
                Numbers numbers{};
                if (u < hidden && k < hidden) numbers = load<Numbers>(weight_hh + source * hidden + k);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) weight[d][e][r] = numbers.at[e];
            }
        }
    }

    __device__ int at(int d) const { return (d * parts + part) * VECTOR; }

    // Part d of h for the sequences from b on.
    __device__ void fetch(Numbers (&numbers)[TOGETHER], const real_t* h, int d, int b, int count, int hidden) const {
#pragma unroll
        for (int s = 0; s < TOGETHER; ++s) {
            numbers[s] = Numbers{};
            if (b + s < count && at(d) < hidden)
                numbers[s] = read_shared_by_blocks(h + index_t(b + s) * hidden + at(d));
        }
    }

    // Add what the lanes of two halves have, each keeping half of the sums.
    template <int N, int STEP> __device__ static void halve(real_t (&sums)[SUMS]) {
        const bool upper = threadIdx.x & STEP;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const real_t low = sums[i], high = sums[i + N / 2];
            sums[i] = (upper ? high : low) + __shfl_xor_sync(ALL_LANES, upper ? low : high, STEP);
        }
    }

    // h (count, H) in; sums (warps, count, ROWS) out, in shared memory.
    __device__ void multiply(const real_t* h, int count, int hidden, real_t* sums) const {
        const int lane = threadIdx.x % DEPTH_LANES;
        const int kept = SUMS / 2 * (lane >> 2 & 1) + SUMS / 4 * (lane >> 1 & 1) + SUMS / 8 * (lane & 1);
        sums += threadIdx.x / WARP * count * ROWS;
        Numbers numbers[DEPTH][TOGETHER];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) fetch(numbers[d], h, d, 0, count, hidden);
        for (int b = 0; b < count; b += TOGETHER) {
            real_t own[SUMS] = {};
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
                for (int e = 0; e < VECTOR; ++e)
#pragma unroll
                    for (int s = 0; s < TOGETHER; ++s)
#pragma unroll
                        for (int r = 0; r < R; ++r)
                            own[s * R + r] = fma_(weight[d][e][r], numbers[d][s].at[e], own[s * R + r]);
                // The next sequences' part is on the way while the other parts are multiplied.
                fetch(numbers[d], h, d, b + TOGETHER, count, hidden);
            }
            halve<SUMS, 4>(own);
            halve<SUMS / 2, 2>(own);
            halve<SUMS / 4, 1>(own);
#pragma unroll
            for (int i = 0; i < SUMS / 8; ++i) {
                const int s = (kept + i) / R, r = (kept + i) % R;
                if (b + s < count) sums[(b + s) * ROWS + row + r] = own[i];
            }
        }
    }
};

// --- backward: what the block's rows of W_hh give to all columns of h
//
// A thread has all of the block's rows for VECTOR columns, and takes every `lanes`-th sequence; the gradients of the
// gates come from shared memory, the same for all threads of a warp at a time.

template <int ROWS> struct Columns {
    real_t weight[ROWS][VECTOR];
    int column, lane, lanes;  // of the sequences

    __device__ Columns(const storage_t* weight_hh, index_t unit, int hidden) {
        const int across = hidden / VECTOR;
        column = threadIdx.x % across * VECTOR;
        lanes = blockDim.x / across;
        lane = threadIdx.x / across;
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const index_t u = unit + row % UNITS, source = index_t(row / UNITS) * hidden + u;
            const Numbers numbers = u < hidden ? load<Numbers>(weight_hh + source * hidden + column) : Numbers{};
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) weight[row][e] = numbers.at[e];
        }
    }

    // gradients (count, ROWS) in, in shared memory; partial (count, H) out.
    __device__ void multiply(const real_t* gradients, int count, int hidden, real_t* partial) const {
        if (lane >= lanes) return;
        for (int b = lane; b < count; b += 2 * lanes) {
            const bool both = b + lanes < count;
            const real_t *one = gradients + b * ROWS, *two = both ? one + lanes * ROWS : one;
            Numbers sums[2] = {};
#pragma unroll
            for (int row = 0; row < ROWS; row += VECTOR) {
                const Numbers g = *reinterpret_cast<const Numbers*>(one + row);
                const Numbers f = *reinterpret_cast<const Numbers*>(two + row);
#pragma unroll
                for (int k = 0; k < VECTOR; ++k)
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) {
                        sums[0].at[e] = fma_(g.at[k], weight[row + k][e], sums[0].at[e]);
                        sums[1].at[e] = fma_(f.at[k], weight[row + k][e], sums[1].at[e]);
                    }
            }
            store(partial + index_t(b) * hidden + column, sums[0]);
            if (both) store(partial + index_t(b + lanes) * hidden + column, sums[1]);
        }
    }
};

// How many threads' shares of the members there are to be added up for each number, by all threads of a block.
constexpr int SUM_WIDTH = UNITS % VECTOR == 0 ? VECTOR : 1;
__device__ inline int shares_of(int count, int members) {
    const int items = count * UNITS / SUM_WIDTH, shares = items ? int(blockDim.x) / items : 1;
    return shares < 1 ? 1 : shares > members ? members : shares;
}

// partial (members, rows, H) in; sums (shares, count, UNITS) out, in shared memory: what all members gave to the block's
// units, in their order within a share.
__device__ inline void collect(const real_t* partial, const Membership& place, index_t rows, int hidden, real_t* sums) {
    constexpr int across = UNITS / SUM_WIDTH;
    const int count = int(place.count), items = count * across, shares = shares_of(count, place.members);
    for (int i = threadIdx.x; i < items * shares; i += blockDim.x) {
        const int share = i / items, item = i % items, b = item / across, u = item % across * SUM_WIDTH;
        const int first = place.members * share / shares, last = place.members * (share + 1) / shares;
        real_t total[SUM_WIDTH] = {};
        if (place.unit + u < hidden) {
            const real_t* from = partial + b * index_t(hidden) + place.unit + u;
#pragma unroll 8
            for (int m = first; m < last; ++m) {
                if constexpr (SUM_WIDTH == VECTOR) {
                    const Numbers numbers = read_shared_by_blocks(from + m * rows * hidden);
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) total[e] += numbers.at[e];
                } else {
                    total[0] += __ldcg(from + m * rows * hidden);
                }
            }
        }
#pragma unroll
        for (int e = 0; e < SUM_WIDTH; ++e) sums[(share * count + b) * UNITS + u + e] = total[e];
    }
}
