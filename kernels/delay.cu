// Keep a stream busy for a while, so that the host gets ahead of it: what is timed behind this has no gaps of launches.
#include "common.cuh"

// state (1,) in/out: any number but 0; steps: how many numbers of Marsaglia's xorshift to go on. One thread. Each step
// waits for the one before, six operations of some 4 cycles, and no compiler folds them as it does a product's.
extern "C" __global__ void fg_delay(unsigned* state, index_t steps) {
    unsigned x = *state;
    for (index_t i = 0; i < steps; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
    }
    *state = x;
}
