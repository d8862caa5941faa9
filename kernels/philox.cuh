// Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011): the four random words of a counter,
// two 64-bit halves, under a key, on the CPU as here.
#pragma once

struct Words { unsigned int at[4]; };

__device__ inline Words philox(unsigned long long counter, unsigned long long offset, unsigned long long seed) {
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
    return {{c[0], c[1], c[2], c[3]}};
}
