// What comes before the steps of a recurrent layer.
#include "common.cuh"

// x, out (T, B, I); lengths (B,). out is x, with zeros past each length: what lies there, NaN perhaps, must reach no
// gradient.
extern "C" __global__ void fg_zero_padding(const storage_t* x, const index_t* lengths, storage_t* out, index_t steps,
                                           index_t batch, index_t inputs) {
    const index_t n = steps * batch * inputs;
    for (index_t i = global_thread(); i < n; i += global_threads()) {
        const index_t row = i / inputs, t = row / batch;
        out[i] = t < lengths[row - t * batch] ? x[i] : storage_t(0);
    }
}
