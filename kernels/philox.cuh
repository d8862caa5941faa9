// Random numbers by counting: Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011).
//
// Entry i of an array in C order has word (i % 64) / 16 of the counter (16 (i / 64) + i % 16, offset), two 64-bit halves,
// under the key seed: on the CPU as here, see dropout_ref.py.
#pragma once
#include "common.cuh"

using word_t = unsigned int;
using wide_t = unsigned long long;

struct Words { word_t at[4]; };

__device__ inline Words philox(index_t counter, wide_t offset, wide_t seed) {
    Words c = {{word_t(counter), word_t(counter >> 32), word_t(offset), word_t(offset >> 32)}};
    word_t k0 = word_t(seed), k1 = word_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const wide_t a = 0xD2511F53ull * c.at[0], b = 0xCD9E8D57ull * c.at[2];
        c.at[0] = word_t(b >> 32) ^ c.at[1] ^ k0;
        c.at[1] = word_t(b);
        c.at[2] = word_t(a >> 32) ^ c.at[3] ^ k1;
        c.at[3] = word_t(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// The number of one entry. A thread that has use for four takes those 16 apart, of one counter.
__device__ inline word_t number_of(index_t entry, wide_t offset, wide_t seed) {
    const Words words = philox(entry / 64 * 16 + entry % 16, offset, seed);
    const int word = int(entry % 64) / 16;
    return word < 2 ? word == 0 ? words.at[0] : words.at[1] : word == 2 ? words.at[2] : words.at[3];
}
