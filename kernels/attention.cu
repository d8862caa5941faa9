// Scaled dot-product attention and its gradients by tiles (Dao et al., FlashAttention, 2022); attention_ref.py has the
// definition, attention_cpu.py the same way of walking for the CPU.
//
//     forward      s = (scale q) k^T,  p = exp(s - largest so far),  y += p v;      in the end y / total
//     backward     p = exp(s - largest) / total,  ds = p (dy v^T - along),  along = sum_d dy y
//                  dq += ds k,    dk += ds^T q,    dv += p^T dy
//
// A block owns rows, ROWS for each warp, and walks along the other axis in tiles of 32, one number of a row for each
// lane: row and tile lie in shared memory, dot products go by 16 bytes of a row, broadcast, and 16 bytes of the lane's
// own. Then lanes turn to features: the weights of a row go through shared memory, and each lane sums up NEXT features
// side by side, at each CHUNKS / NEXT places of a slab of SLAB. Heads of more features than a slab take several blocks,
// each with all scores. Two kernels backward, one that owns queries and one that owns keys: no sum is shared, nothing is
// atomic, and the bits depend neither on ROWS nor on the size of a block.
//
// Flops: 4 T S D for each batch and head forward, 14 backward (two of seven products are made twice). A block of 8
// warps and D = 64 makes 32 of them for a byte that it reads of keys and values, which come from the L2 cache: an H200
// has 5 TB/s there for its 67 Tflop/s.
//
// What bounds it is shared memory, which gives a multiprocessor 128 bytes a clock while it makes 128 fma: 4 clocks for
// the 16 bytes of each lane's own row of a tile, 1 for 16 bytes that are the same for all lanes. In float32:
//
//     D          products of rows (clocks per fma's clock)     sums of weights
//     up to 32   4 + 8 for 32 of a lane, 8 clocks: 1.5         4 + 8 for 32: 1.5
//     up to 64   the same                                      8 + 8 for 64: 1
//     up to 128  4 + 4 for 16: 2                               16 + 4 for 64: 1.25
//     more       4 + 2 for 8: 3                                16 + 2 for 32: 2.25 (a slab of 256)
//
// So some 0.8 of the fma rate at D = 64 and 0.6 at 128, by calculation: nothing here was measured. Two tiles at a time
// would take the products of rows to 1 clock; they need the registers that the backward kernels, at 128 threads of up to
// 168, do not have.
// What a row does not see is left out of the products: 0 times NaN would be NaN.
#include "vecmath.cuh"
#include "philox.cuh"

#ifndef FG_CHUNKS
#define FG_CHUNKS 2
#endif

constexpr int CHUNKS = FG_CHUNKS, SLAB = CHUNKS * WARP;
// Rows of a warp, as in attention_gpu.py: as many as leave the accumulators in registers.
constexpr int ROWS = (CHUNKS <= 2 ? 8 : CHUNKS == 4 ? 4 : 2) * 4 / int(sizeof(real_t));
constexpr int NEXT = CHUNKS < VECTOR ? CHUNKS : VECTOR;  // features of a lane that lie side by side

// The first of the NEXT features that a lane holds in its accumulators from `chunk` on, a multiple of NEXT.
__device__ inline index_t feature(index_t slab, int chunk) {
    return slab + chunk * WARP + threadIdx.x % WARP * NEXT;
}

// Elements from (batch, head, row) to the next along each axis; features lie side by side.
struct Walk {
    index_t batch, head, row;
    __device__ index_t of(index_t b, index_t h) const { return b * batch + h * head; }
};

// How many keys query `row` sees, of the `keys` that there are.
__device__ inline index_t limit(index_t row, index_t keys, int causal) {
    return causal && row + 1 < keys ? row + 1 : keys;
}

__device__ inline index_t keys_of(const index_t* lengths, index_t b, index_t S) {
    if (!lengths) return S;
    const index_t length = lengths[b];
    return length < 0 ? 0 : length > S ? S : length;
}

// Elements from row to row of a copy in shared memory: whole vectors, an odd number, so that 8 lanes meet 32 banks.
__device__ inline int shared_stride(index_t D) {
    const int vectors = int((D + VECTOR - 1) / VECTOR);
    return (vectors | 1) * VECTOR;
}

using Vector = vector<storage_t>;

struct Dropping {
    unsigned long long seed, offset;
    unsigned int threshold;
    real_t factor;
    // What multiplies the weight of `key` in the row whose numbers begin with group `group`: see philox.cuh.
    __device__ real_t of(index_t group, index_t key) const {
        return Philox{seed, offset}.of_entry(group * 64 + key) >= threshold ? factor : real_t(0);
    }
};

// Copy rows first to first + count of a matrix (rows, D) times a number into shared memory, by all threads of the block,
// 16 bytes at a time where the rows begin on 16; rows past `end` and what fills up the last vector are zeros.
__device__ inline void fetch(const storage_t* from, index_t step, index_t first, int count, index_t end, index_t D,
                             real_t factor, real_t* to) {
    using Part = vector_of<real_t, VECTOR>;
    const int stride = shared_stride(D), vectors = stride / VECTOR;
    const bool wide = aligned16(from) && step % VECTOR == 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < count * vectors; i += blockDim.x) {
        const int row = i / vectors, d = (i - row * vectors) * VECTOR;
        const storage_t* const at = from + (first + row) * step + d;
        const index_t here = first + row < end ? D - d : 0;
        Part part;
        if (wide && here >= VECTOR) {
            const Vector whole = load<Vector>(at);
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) part.at[k] = real_t(whole.at[k]) * factor;
        } else {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) part.at[k] = k < here ? real_t(at[k]) * factor : real_t(0);
        }
        *reinterpret_cast<Part*>(to + i * VECTOR) = part;
    }
}

// Write what a lane has of a row of an output, f(chunk) the number of each chunk.
template <class F> __device__ inline void put(storage_t* row, index_t slab, index_t D, F f) {
    using Part = vector_of<storage_t, NEXT>;
    const bool wide = aligned16(row);
#pragma unroll
    for (int c = 0; c < CHUNKS; c += NEXT) {
        const index_t d = feature(slab, c);
        if (wide && d + NEXT <= D) {
            Part part;
#pragma unroll
            for (int k = 0; k < NEXT; ++k) part.at[k] = storage_t(f(c + k));
            store(row + d, part);
        } else {
#pragma unroll
            for (int k = 0; k < NEXT; ++k)
                if (d + k < D) row[d + k] = storage_t(f(c + k));
        }
    }
}

// Dot products of the ROWS rows of a warp with the lane's own row of a tile.
__device__ inline void dots(const real_t* rows, const real_t* tile, index_t D, real_t (&result)[ROWS]) {
    using Part = vector_of<real_t, VECTOR>;
    const int stride = shared_stride(D);
    const real_t* const own = tile + int(threadIdx.x % WARP) * stride;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) result[r] = 0;
#pragma unroll 1
    for (int d = 0; d < D; d += VECTOR) {
        const Part b = load<Part>(own + d);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Part a = load<Part>(rows + r * stride + d);
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) result[r] = fma_(a.at[k], b.at[k], result[r]);
        }
    }
}

// The places j of a tile that row r of a warp takes: low + r <= j < high + r and j < end.
constexpr int FAR = 2 * WARP;  // a diagonal that is not met
struct Span {
    int low, high, end;
    __device__ bool has(int r, int j) const { return j >= low + r && j < high + r && j < end; }
    __device__ bool all() const { return low + ROWS - 1 <= 0 && high >= WARP && end >= WARP; }
};
__device__ inline int near(index_t place) { return place < -FAR ? -FAR : place > FAR ? FAR : int(place); }

// sums[r][c] += sum over a tile of weights[r][j] tile[j][feature of c], for the j of the span only, in their order.
// weights: (ROWS, WARP) in shared memory, of this warp
__device__ inline void accumulate(const real_t* weights, const real_t* tile, int stride, index_t slab, index_t D,
                                  Span span, real_t (&sums)[ROWS][CHUNKS]) {
    using Part = vector_of<real_t, NEXT>;
    constexpr int AT_ONCE = CHUNKS > VECTOR ? VECTOR / 2 : VECTOR;  // rows of the tile, in registers
    using Weights = vector_of<real_t, AT_ONCE>;
    const bool all = span.all();
#pragma unroll 1
    for (int first = 0; first < WARP; first += AT_ONCE) {
        real_t value[AT_ONCE][CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c += NEXT) {
            const index_t d = feature(slab, c);
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                // Up to the end of its last vector a row is filled with zeros.
                const Part part = d < D ? load<Part>(tile + (first + j) * stride + d) : Part{};
#pragma unroll
                for (int k = 0; k < NEXT; ++k) value[j][c + k] = part.at[k];
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Weights weight = load<Weights>(weights + r * WARP + first);
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                if (!all && !span.has(r, first + j)) continue;
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) sums[r][c] = fma_(weight.at[j], value[j][c], sums[r][c]);
            }
        }
    }
}

__device__ inline real_t warp_largest(real_t value) {  // a NaN does not enter
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value = maximum(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

// q, y (B, H, T, D) and k, v (B, H, S, D), in and out, walked by strides in elements; largest, total (B, H, T) out;
// lengths (B,) or null. grid: (row blocks of all heads, slabs).
// shared: (rows + 32) rows, and 32 weights for each row of the block
extern "C" __global__ void __launch_bounds__(256, 2) fg_attention(
    const storage_t* q, const storage_t* k, const storage_t* v, storage_t* y, storage_t* largest, storage_t* total,
    const index_t* lengths, index_t H, index_t T, index_t S, index_t D, index_t q_b, index_t q_h, index_t q_t,
    index_t k_b, index_t k_h, index_t k_t, index_t v_b, index_t v_h, index_t v_t, index_t y_b, index_t y_h, index_t y_t,
    real_t scale, int causal, int dropped, unsigned int threshold, real_t factor, unsigned long long seed,
    unsigned long long offset) {
    extern __shared__ __align__(16) real_t room[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, owned = int(blockDim.x) / WARP * ROWS;
    const index_t tiles = (T + owned - 1) / owned, head = blockIdx.x / tiles, b = head / H, h = head % H;
    const index_t block_row = blockIdx.x % tiles * owned, row = block_row + warp * ROWS;
    const index_t slab = index_t(blockIdx.y) * SLAB, keys = keys_of(lengths, b, S);
    const int stride = shared_stride(D);
    real_t* const queries = room;
    real_t* const tile = queries + owned * stride;
    real_t* const weights = tile + WARP * stride + warp * ROWS * WARP;
    const Dropping dropping{seed, offset, threshold, factor};
    const index_t groups = (S + 63) / 64;

    fetch(q + Walk{q_b, q_h, q_t}.of(b, h), q_t, block_row, owned, T, D, scale, queries);
    real_t top[ROWS], sum[ROWS], sums[ROWS][CHUNKS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        top[r] = -infinity();
        sum[r] = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) sums[r][c] = 0;
    }
    const index_t last_row = block_row + owned < T ? block_row + owned : T;
    const index_t end = limit(last_row - 1, keys, causal);
    for (index_t first = 0; first < end; first += WARP) {
        __syncthreads();
        fetch(k + Walk{k_b, k_h, k_t}.of(b, h), k_t, first, WARP, keys, D, 1, tile);
        __syncthreads();
        real_t scores[ROWS];
        dots(queries + warp * ROWS * stride, tile, D, scores);
        __syncthreads();
        fetch(v + Walk{v_b, v_h, v_t}.of(b, h), v_t, first, WARP, keys, D, 1, tile);
        const Span span{-FAR, causal ? near(row + 1 - first) : FAR, near(keys - first)};
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const bool seen = span.has(r, lane);
            const real_t before = top[r];
            top[r] = maximum(before, warp_largest(seen ? maximum(-infinity(), scores[r]) : -infinity()));
            // A score of -inf less -inf would be NaN, and has weight 0.
            const real_t shift = top[r] > -infinity() ? top[r] : real_t(0);
            const real_t rescale = exp_negative(before - shift);
            const real_t weight = seen ? exp_negative(scores[r] - shift) : real_t(0);
            sum[r] = sum[r] * rescale + warp_sum(weight);
            weights[r * WARP + lane] = weight;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) sums[r][c] *= rescale;
        }
        if (dropped)
#pragma unroll 1
            for (int r = 0; r < ROWS; ++r)
                weights[r * WARP + lane] *= dropping.of((head * T + row + r) * groups, first + lane);
        __syncthreads();
        accumulate(weights, tile, stride, slab, D, span, sums);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (row + r >= T) break;
        const bool empty = keys == 0;
        if (lane == 0 && slab == 0) {
            largest[head * T + row + r] = storage_t(top[r] <= -infinity() ? real_t(0) : top[r]);
            total[head * T + row + r] = storage_t(sum[r]);
        }
        put(y + Walk{y_b, y_h, y_t}.of(b, h) + (row + r) * y_t, slab, D,
            [&](int c) { return empty ? real_t(0) : sums[r][c] / sum[r]; });
    }
}

// The gradient of queries. dy, y, dq as q above; largest, total (B, H, T) in; along (B, H, T) out: sums over d of dy y.
// shared: (2 rows + 64) rows, and 32 weights for each row of the block
extern "C" __global__ void __launch_bounds__(128, 3) fg_attention_backward_queries(
    const storage_t* dy, const storage_t* q, const storage_t* k, const storage_t* v, const storage_t* y,
    const storage_t* largest, const storage_t* total, real_t* along, storage_t* dq, const index_t* lengths, index_t H,
    index_t T, index_t S, index_t D, index_t dy_b, index_t dy_h, index_t dy_t, index_t q_b, index_t q_h, index_t q_t,
    index_t k_b, index_t k_h, index_t k_t, index_t v_b, index_t v_h, index_t v_t, index_t y_b, index_t y_h, index_t y_t,
    index_t dq_b, index_t dq_h, index_t dq_t, real_t scale, int causal, int dropped, unsigned int threshold,
    real_t factor, unsigned long long seed, unsigned long long offset) {
    extern __shared__ __align__(16) real_t room[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, owned = int(blockDim.x) / WARP * ROWS;
    const index_t tiles = (T + owned - 1) / owned, head = blockIdx.x / tiles, b = head / H, h = head % H;
    const index_t block_row = blockIdx.x % tiles * owned, row = block_row + warp * ROWS;
    const index_t slab = index_t(blockIdx.y) * SLAB, keys = keys_of(lengths, b, S);
    const int stride = shared_stride(D);
    real_t* const queries = room;
    real_t* const upstream = queries + owned * stride;
    real_t* const tile_k = upstream + owned * stride;
    real_t* const tile_v = tile_k + WARP * stride;
    real_t* const weights = tile_v + WARP * stride + warp * ROWS * WARP;
    const Dropping dropping{seed, offset, threshold, factor};
    const index_t groups = (S + 63) / 64;

    fetch(q + Walk{q_b, q_h, q_t}.of(b, h), q_t, block_row, owned, T, D, scale, queries);
    fetch(dy + Walk{dy_b, dy_h, dy_t}.of(b, h), dy_t, block_row, owned, T, D, 1, upstream);
    __syncthreads();
    real_t top[ROWS], share[ROWS], mean[ROWS], sums[ROWS][CHUNKS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const bool real = row + r < T;
        top[r] = real ? real_t(largest[head * T + row + r]) : real_t(0);
        share[r] = real ? real_t(1) / real_t(total[head * T + row + r]) : real_t(0);
        real_t own = 0;
        if (real) {
            const storage_t* const of_y = y + Walk{y_b, y_h, y_t}.of(b, h) + (row + r) * y_t;
#pragma unroll 1
            for (index_t d = lane; d < D; d += WARP)
                own = fma_(upstream[(warp * ROWS + r) * stride + d], real_t(of_y[d]), own);
        }
        mean[r] = warp_sum(own);
        if (real && lane == 0 && slab == 0) along[head * T + row + r] = mean[r];
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) sums[r][c] = 0;
    }
    const index_t last_row = block_row + owned < T ? block_row + owned : T;
    const index_t end = limit(last_row - 1, keys, causal);
    for (index_t first = 0; first < end; first += WARP) {
        __syncthreads();
        fetch(k + Walk{k_b, k_h, k_t}.of(b, h), k_t, first, WARP, keys, D, 1, tile_k);
        fetch(v + Walk{v_b, v_h, v_t}.of(b, h), v_t, first, WARP, keys, D, 1, tile_v);
        __syncthreads();
        real_t scores[ROWS], slopes[ROWS];
        dots(queries + warp * ROWS * stride, tile_k, D, scores);
        dots(upstream + warp * ROWS * stride, tile_v, D, slopes);
        const Span span{-FAR, causal ? near(row + 1 - first) : FAR, near(keys - first)};
        if (dropped)
#pragma unroll 1
            for (int r = 0; r < ROWS; ++r)
                weights[r * WARP + lane] = dropping.of((head * T + row + r) * groups, first + lane);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            real_t slope = 0;
            if (span.has(r, lane)) {
                const real_t weight = exp_negative(scores[r] - top[r]) * share[r];
                const real_t kept = dropped ? weights[r * WARP + lane] : real_t(1);
                slope = weight * (slopes[r] * kept - mean[r]);
            }
            weights[r * WARP + lane] = slope;
        }
        __syncwarp();
        accumulate(weights, tile_k, stride, slab, D, span, sums);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (row + r >= T) break;
        put(dq + Walk{dq_b, dq_h, dq_t}.of(b, h) + (row + r) * dq_t, slab, D,
            [&](int c) { return sums[r][c] * scale; });
    }
}

// The gradients of keys and values. along (B, H, T) in, the others as above; dk, dv (B, H, S, D) out, zeros for padding.
// grid: (blocks of keys of all heads, slabs)
// shared: (2 rows + 64) rows, and 64 weights for each row of the block
extern "C" __global__ void __launch_bounds__(128, 3) fg_attention_backward_keys(
    const storage_t* dy, const storage_t* q, const storage_t* k, const storage_t* v, const storage_t* largest,
    const storage_t* total, const real_t* along, storage_t* dk, storage_t* dv, const index_t* lengths, index_t H,
    index_t T, index_t S, index_t D, index_t dy_b, index_t dy_h, index_t dy_t, index_t q_b, index_t q_h, index_t q_t,
    index_t k_b, index_t k_h, index_t k_t, index_t v_b, index_t v_h, index_t v_t, index_t dk_b, index_t dk_h,
    index_t dk_t, index_t dv_b, index_t dv_h, index_t dv_t, real_t scale, int causal, int dropped,
    unsigned int threshold, real_t factor, unsigned long long seed, unsigned long long offset) {
    extern __shared__ __align__(16) real_t room[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, owned = int(blockDim.x) / WARP * ROWS;
    const index_t tiles = (S + owned - 1) / owned, head = blockIdx.x / tiles, b = head / H, h = head % H;
    const index_t block_key = blockIdx.x % tiles * owned, key = block_key + warp * ROWS;
    const index_t slab = index_t(blockIdx.y) * SLAB, keys = keys_of(lengths, b, S);
    const int stride = shared_stride(D);
    real_t* const own_k = room;
    real_t* const own_v = own_k + owned * stride;
    real_t* const tile_q = own_v + owned * stride;
    real_t* const tile_dy = tile_q + WARP * stride;
    real_t* const weights = tile_dy + WARP * stride + warp * 2 * ROWS * WARP;
    real_t* const changes = weights + ROWS * WARP;
    const Dropping dropping{seed, offset, threshold, factor};
    const index_t groups = (S + 63) / 64;

    fetch(k + Walk{k_b, k_h, k_t}.of(b, h), k_t, block_key, owned, keys, D, 1, own_k);
    fetch(v + Walk{v_b, v_h, v_t}.of(b, h), v_t, block_key, owned, keys, D, 1, own_v);
    real_t sums_k[ROWS][CHUNKS], sums_v[ROWS][CHUNKS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) sums_k[r][c] = sums_v[r][c] = 0;
    const index_t begin = causal ? block_key / WARP * WARP : 0, end = block_key < keys ? T : 0;
    for (index_t first = begin; first < end; first += WARP) {
        __syncthreads();
        fetch(q + Walk{q_b, q_h, q_t}.of(b, h), q_t, first, WARP, T, D, scale, tile_q);
        fetch(dy + Walk{dy_b, dy_h, dy_t}.of(b, h), dy_t, first, WARP, T, D, 1, tile_dy);
        __syncthreads();
        const index_t row = first + lane;
        const bool real = row < T;
        const real_t top = real ? real_t(largest[head * T + row]) : real_t(0);
        const real_t share = real ? real_t(1) / real_t(total[head * T + row]) : real_t(0);
        const real_t mean = real ? along[head * T + row] : real_t(0);
        real_t scores[ROWS], slopes[ROWS];
        dots(own_k + warp * ROWS * stride, tile_q, D, scores);
        dots(own_v + warp * ROWS * stride, tile_dy, D, slopes);
        const Span span{causal ? near(key - first) : -FAR, FAR, near(T - first)};
        if (dropped)
#pragma unroll 1
            for (int r = 0; r < ROWS; ++r)
                weights[r * WARP + lane] = dropping.of((head * T + row) * groups, key + r);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            real_t weight = 0, slope = 0;
            if (span.has(r, lane)) {
                const real_t kept = dropped ? weights[r * WARP + lane] : real_t(1);
                weight = exp_negative(scores[r] - top) * share;
                slope = weight * (slopes[r] * kept - mean);
                weight *= kept;
            }
            weights[r * WARP + lane] = weight;
            changes[r * WARP + lane] = slope;
        }
        __syncwarp();
        accumulate(changes, tile_q, stride, slab, D, span, sums_k);
        accumulate(weights, tile_dy, stride, slab, D, span, sums_v);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (key + r >= S) break;
        const bool padding = key + r >= keys;
        put(dk + Walk{dk_b, dk_h, dk_t}.of(b, h) + (key + r) * dk_t, slab, D,
            [&](int c) { return padding ? real_t(0) : sums_k[r][c]; });
        put(dv + Walk{dv_b, dv_h, dv_t}.of(b, h) + (key + r) * dv_t, slab, D,
            [&](int c) { return padding ? real_t(0) : sums_v[r][c]; });
    }
}
