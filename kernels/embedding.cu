// Table look-up y_k = weight[indices_k] and the gradient of the table. weight (V, E), indices (n,), y (n, E).
//
// Bytes: twice those of y forward; backward those of dy and of the table, and 16 an index for each doubling of n beyond
// CHUNK. An index outside of 0 to V - 1 gives a row of NaN, and its row of dy goes nowhere.
//
// Backward sorts the indices, and each row of the table then adds up its rows of dy in the order of the indices: no
// atomic operations, and the same bits as kernels/embedding_cpu.py. What is sorted is a key, the index above its
// position: no two are equal, so any way of sorting gives the one order.
#include "common.cuh"

using sort_key = unsigned long long;
constexpr int CHUNK = 2048;                  // keys that a block sorts in shared memory
constexpr sort_key NOWHERE = 0xffffffffull;  // stands for an index out of range, after all others
constexpr int TOGETHER = 4;                  // vectors of a row on the way at a time, forward
constexpr int AHEAD = 8;                     // rows of dy on the way at a time, backward

template <int W>
__device__ void look_up(const storage_t* weight, const long long* indices, storage_t* y, index_t n, index_t V, index_t E) {
    using Part = vector_of<storage_t, W>;
    const index_t k = index_t(blockIdx.x) * blockDim.y + threadIdx.y;
    if (k >= n) return;
    const index_t index = indices[k], step = index_t(blockDim.x) * W;
    const bool valid = index >= 0 && index < V;
    const storage_t* from = weight + (valid ? index : 0) * E;
    Part nan;
#pragma unroll
    for (int j = 0; j < W; ++j) nan.at[j] = storage_t(not_a_number());
    for (index_t first = index_t(threadIdx.x) * W; first < E; first += step * TOGETHER) {
        Part values[TOGETHER];
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u) {
            values[u] = nan;
            if (valid && first + u * step < E) values[u] = load<Part>(from + first + u * step);
        }
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u)
            if (first + u * step < E) store(y + k * E + first + u * step, values[u]);
    }
}

// weight (V, E) in; indices (n,) in; y (n, E) out. Block (x, y): a row for each y. vectors: E divides by VECTOR, and the
// arrays begin on 16 bytes.
extern "C" __global__ void fg_embedding(const storage_t* weight, const long long* indices, storage_t* y, index_t n,
                                        index_t V, index_t E, int vectors) {
    if (vectors)
        look_up<VECTOR>(weight, indices, y, n, V, E);
    else
        look_up<1>(weight, indices, y, n, V, E);
}

// indices (n,) in; keys (n,) out: each CHUNK of them in order, by Batcher's bitonic network. n and V below 2^32 - 1.
extern "C" __global__ void fg_embedding_sort(const long long* indices, unsigned long long* keys, index_t n, index_t V) {
    __shared__ sort_key chunk[CHUNK];
    const index_t first = index_t(blockIdx.x) * CHUNK;
    for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) {
        sort_key key = ~0ull;
        if (first + i < n) {
            const index_t index = indices[first + i];
            key = (index >= 0 && index < V ? sort_key(index) : NOWHERE) << 32 | sort_key(first + i);
        }
        chunk[i] = key;
    }
    for (int run = 2; run <= CHUNK; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < CHUNK / 2; pair += blockDim.x) {
                const int low = pair / apart * 2 * apart + pair % apart, high = low + apart;
                const sort_key a = chunk[low], b = chunk[high];
                if ((a > b) == ((low & run) == 0)) {
                    chunk[low] = b;
                    chunk[high] = a;
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK && first + i < n; i += blockDim.x) keys[first + i] = chunk[i];
}

// from (n,) in, each `run` of it in order; to (n,) out, each two runs merged: a key goes past those of its own run that
// are smaller, and past those of the other.
extern "C" __global__ void fg_embedding_merge(const unsigned long long* from, unsigned long long* to, index_t n,
                                              index_t run) {
    const index_t i = global_thread();
    if (i >= n) return;
    const index_t own = i / run, other = (own ^ 1) * run;
    const sort_key key = from[i];
    index_t low = other < n ? other : n, high = other + run < n ? other + run : n;
    const index_t begin = low;
    while (low < high) {
        const index_t middle = (low + high) / 2;
        if (from[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    to[own / 2 * 2 * run + (i - own * run) + (low - begin)] = key;
}

template <int W>
__device__ void add_rows(const storage_t* dy, const sort_key* keys, storage_t* dweight, index_t n, index_t E) {
    using Part = vector_of<storage_t, W>;
    const index_t span = index_t(blockDim.x) * W, strips = (E + span - 1) / span;
    const index_t head = blockIdx.x / strips * blockDim.y + threadIdx.y;
    const index_t column = blockIdx.x % strips * span + index_t(threadIdx.x) * W;
    if (head >= n || column >= E) return;
    const sort_key index = keys[head] >> 32;
    if (index == NOWHERE || (head > 0 && keys[head - 1] >> 32 == index)) return;  // no row begins here
    real_t sum[W] = {};
    bool more = true;
    for (index_t first = head; more; first += AHEAD) {
        Part row[AHEAD];
        bool mine[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const sort_key key = first + u < n ? keys[first + u] : ~0ull;
            mine[u] = key >> 32 == index;
            if (mine[u]) row[u] = load<Part>(dy + index_t(key & 0xffffffffull) * E + column);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            if (!mine[u]) break;
#pragma unroll
            for (int k = 0; k < W; ++k) sum[k] += real_t(row[u].at[k]);
        }
        more = mine[AHEAD - 1];
    }
    Part total;
#pragma unroll
    for (int k = 0; k < W; ++k) total.at[k] = storage_t(sum[k]);
    store(dweight + index_t(index) * E + column, total);
}

// dy (n, E) in; keys (n,) in, in order; dweight (V, E) in/out: rows with an index are written, the others left. Block
// (x, y): a key for each y. vectors: E divides by VECTOR, the arrays begin on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_embedding_backward(const storage_t* dy, const unsigned long long* keys,
                                                 storage_t* dweight, index_t n, index_t E, int vectors) {
    if (vectors)
        add_rows<VECTOR>(dy, keys, dweight, n, E);
    else
        add_rows<1>(dy, keys, dweight, n, E);
}
