// Dropout by counted random numbers: y = x scale where the random number of an entry is at least `threshold`, else 0.
//
// Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011): entry i has word (i % 64) / 16 of
// the counter (16 (i / 64) + i % 16, offset) under the key seed, on the CPU as here. Bytes an element: 8 in float32, and
// no mask. A thread takes the four entries of a counter, 16 apart: 16 threads read 64 bytes next to each other.
#include "common.cuh"

// x (n,) in; out (n,) out, may be x.
extern "C" __global__ void fg_dropout(const storage_t* x, storage_t* out, index_t n, unsigned long long seed,
                                      unsigned long long offset, unsigned int threshold, real_t scale) {
    const index_t counter = global_thread(), first = counter / 16 * 64 + counter % 16;
    if (first >= n) return;
    unsigned int c[4] = {(unsigned int)(counter), (unsigned int)(counter >> 32), (unsigned int)(offset),
                         (unsigned int)(offset >> 32)};
    unsigned int k0 = (unsigned int)(seed), k1 = (unsigned int)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        c[0] = (unsigned int)(b >> 32) ^ c[1] ^ k0;
        c[1] = (unsigned int)(b);
        c[2] = (unsigned int)(a >> 32) ^ c[3] ^ k1;
        c[3] = (unsigned int)(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        const index_t at = first + 16 * word;
        if (at < n) out[at] = c[word] >= threshold ? storage_t(real_t(x[at]) * scale) : storage_t(0);
    }
}
