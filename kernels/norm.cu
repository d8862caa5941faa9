// Norms of a list of tensors: one launch over all chunks, one block for each, and one to finish, one block for each
// tensor. See norms.cuh.
//
// Bytes: 4 an element in float32. A chunk leaves one to three doubles.
#include "norms.cuh"

// table: see lists.cuh, its stream `stream` is read. partial (chunks, TERMS) out. Block: a chunk.
extern "C" __global__ void fg_norm_chunks(const index_t* table, int streams, int tensors, int stream, double* partial) {
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    Total sums[VECTOR];
    each_element(chunk.in(lists, stream), chunk.count, [&](int k, real_t x) { sums[k].take(x); });
    const Total total = Total::of(sums).of_block();
    if (threadIdx.x == 0) total.put(partial + index_t(blockIdx.x) * TERMS);
}

// table: see lists.cuh. partial, totals, norms, arrived: see Sums. norm (1,) out: that of all tensors times `unscale`.
// coefficients (tensors + 2,) out: of each tensor for its own norm; of all, times `unscale`; 1: go on. limit: the norm
// to clip to, negative for none. Block: a tensor.
extern "C" __global__ void fg_norm_finish(const index_t* table, int streams, int tensors, const double* partial,
                                          double* totals, double* norms, unsigned* arrived, double* norm,
                                          double* coefficients, double limit, double unscale) {
    double all;
    if (!finish_norms({table, streams, tensors}, {partial, totals, norms, arrived}, all)) return;
    for (int k = threadIdx.x; k < tensors; k += blockDim.x)
        coefficients[k] = clip_coefficient(__ldcg(norms + k), limit);
    if (threadIdx.x == 0) {
        all *= unscale;
        *norm = all;
        coefficients[tensors] = clip_coefficient(all, limit) * unscale;
        coefficients[tensors + 1] = 1;
    }
}
