// Set to 0 what a mask leaves out, in one launch. Bytes: 12 an element in float32.
#include "lists.cuh"

// table: see lists.cuh; stream 0 is changed, stream 1 holds the masks.
extern "C" __global__ void fg_apply_masks(const index_t* table, int streams, int tensors) {
    const Table lists{table, streams, tensors};
    update_elements<2, 1>(lists, Chunk(lists), [&](real_t(&x)[2]) { x[0] = x[1] < 0 || x[1] > 0 ? x[0] : real_t(0); });
}
