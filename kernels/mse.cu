// Mean squared error with its gradient in one pass: loss = mean of (p - t)^2, dp = 2 (p - t) / n.
//
// Bytes: 12 an element in float32.
#include "mean_loss.cuh"

// See mean_loss; scale: 2 / n.
extern "C" __global__ void fg_mse(const storage_t* pred, const storage_t* target, storage_t* dpred, double* partial,
                                  index_t n, real_t scale) {
    mean_loss(pred, target, dpred, partial, n, [&](real_t p, real_t t, double& total) {
        const real_t error = p - t;
        total = fma_(double(error), double(error), total);
        return error * scale;
    });
}
