// Dropout by counted random numbers: y = x scale where the random number of an entry is at least `threshold`, else 0.
//
// See philox.cuh. Bytes an element: 8 in float32, 16 at a time, and no mask; 15 instructions an element draw the words.
#include "philox.cuh"

// x (n,) in; out (n,) out, may be x. A thread takes VECTOR counters. vectors: both arrays begin on 16 bytes.
extern "C" __global__ void fg_dropout(const storage_t* x, storage_t* out, index_t n, unsigned long long seed,
                                      unsigned long long offset, unsigned int threshold, real_t scale, int vectors) {
    const Drop drop{threshold, scale};
    each_of_counters(out, n, {seed, offset}, vectors, of_one(x, drop));
}
