// One RMSprop step over any list of tensors in one launch (Tieleman and Hinton, 2012; centered: Graves, 2013), with
// momentum as in torch.
//
//     g = scale * grad  (sign flipped to maximize) + wd p
//     v = alpha v + (1 - alpha) g^2
//     a = alpha a + (1 - alpha) g
//     d = sqrt(max(v - a^2, 0)) + eps  centered;  sqrt(v) + eps  otherwise
//     b = momentum b + g / d
//     p = p - lr b  with momentum;  p - lr g / d  without
//
// Bytes: 20 a parameter in float32, 8 more with momentum and 8 more centered. FG_MOMENTUM, FG_CENTERED and FG_DECAY are
// 0 or 1.
#include "step.cuh"

#ifndef FG_MOMENTUM  // where fg_rmsprop_finish alone is wanted
#define FG_MOMENTUM 0
#define FG_CENTERED 0
#define FG_DECAY 0
#endif

enum { PARAM, GRAD, SQUARE, BUFFER };
constexpr int STREAMS = 3 + FG_MOMENTUM + FG_CENTERED;

// table: see lists.cuh; streams params in/out, grads in, square_avg in/out, with momentum its buffer in/out, and centered
// last grad_avg in/out. own (parameters, STORED) in, or null: the numbers that follow, of each tensor. control (2,) in,
// or null: see State. changes (chunks, 2) out, or null: see Change. rest: 1 - alpha. low, high: the range of the
// weights, see Numbers. Block: a chunk.
extern "C" __global__ void fg_rmsprop(const index_t* table, int streams, int tensors, const double* own,
                                      const double* control, double* changes, double scale, double lr,
                                      double alpha, double rest, double eps, double weight_decay, double momentum,
                                      double low, double high) {
    if (skips(control, changes)) return;
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const Numbers given{{scale, lr, alpha, rest, eps, weight_decay, momentum}, low, high};
    const Numbers n = Numbers::of(given, own, lists.number(chunk.tensor), control);
    const real_t factor = n[0], rate = n[1], a = n[2], r = n[3], e = n[4], wd = n[5], mu = n[6];
    Change change;
    update_elements<STREAMS, (1u << STREAMS) - 1 - (1u << GRAD)>(lists, chunk, [&](real_t(&x)[STREAMS]) {
        const real_t p = x[PARAM];
        real_t g = x[GRAD] * factor;
        if (FG_DECAY) g = fma_(p, wd, g);
        real_t variance = x[SQUARE] = fma_(x[SQUARE], a, g * (g * r));
        if constexpr (FG_CENTERED) {
            constexpr int MEAN = STREAMS - 1;
            const real_t mean = x[MEAN] = fma_(x[MEAN], a, g * r);
            // Rounding takes the variance of a constant gradient below 0, where a square root would be NaN.
            variance = maximum(fma_(-mean, mean, variance), real_t(0));
        }
        const real_t d = sqrt_(variance) + e;
        if constexpr (FG_MOMENTUM) {
            const real_t b = x[BUFFER] = fma_(x[BUFFER], mu, g / d);
            x[PARAM] = n.within(fma_(-b, rate, p));
        } else {
            x[PARAM] = n.within(p - rate * g / d);
        }
        if (changes) change.take(p, x[PARAM]);
    });
    change.put(changes);
}

// table: see lists.cuh; the grads of all parameters that take part. partial, totals, norms, arrived: see Sums. counts,
// found: see Findings, or both null. The rest: see State; a group has sign, lr, alpha, eps, wd, momentum. Block: a tensor.
extern "C" __global__ void fg_rmsprop_finish(const index_t* table, int streams, int tensors, const double* partial,
                                             double* totals, double* norms, unsigned* arrived, const double* settings,
                                             const index_t* group, index_t* steps, double* own, double* control,
                                             index_t* skipped, double* report, const index_t* counts,
                                             double* found) {
    const auto rule = [](const double* of, index_t step) -> Numbers {
        return {{of[0], of[1], of[2], 1 - of[2], of[3], of[4], of[5]}};
    };
    finish_step({table, streams, tensors}, {partial, totals, norms, arrived},
                {settings, group, steps, own, control, skipped, report}, {counts, found}, rule);
}
