// Dropout by counted random numbers: y = x scale where the random number of an entry is at least `threshold`, else 0.
//
// Entry i has word (i % 64) / 16 of Philox's counter (16 (i / 64) + i % 16, offset) under the key seed. Bytes an element:
// 8 in float32, and no mask. A thread takes the four entries of a counter, 16 apart: 16 threads read 64 bytes next to
// each other.
#include "common.cuh"
#include "philox.cuh"

// x (n,) in; out (n,) out, may be x.
extern "C" __global__ void fg_dropout(const storage_t* x, storage_t* out, index_t n, unsigned long long seed,
                                      unsigned long long offset, unsigned int threshold, real_t scale) {
    const index_t counter = global_thread(), first = counter / 16 * 64 + counter % 16;
    if (first >= n) return;
    const Words words = philox(counter, offset, seed);
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        const index_t at = first + 16 * word;
        if (at < n) out[at] = words.at[word] >= threshold ? storage_t(real_t(x[at]) * scale) : storage_t(0);
    }
}
