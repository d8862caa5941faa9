// One Adam step over any list of tensors in one launch (Kingma and Ba, 2015; decoupled weight decay: Loshchilov and Hutter,
// 2019; AMSGrad: Reddi et al., 2018).
//
//     g = scale * grad  (sign flipped to maximize)
//     p = p (1 - lr wd)           decoupled;  g = g + wd p  otherwise
//     m = b1 m + (1 - b1) g
//     v = b2 v + (1 - b2) g^2;    AMSGrad: v_max = max(v_max, v), used in place of v below
//     p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//
// Bytes: 28 a parameter in float32, 36 with AMSGrad. FG_AMSGRAD and FG_COUPLED are 0 or 1.
#include "step.cuh"

#ifndef FG_AMSGRAD  // where fg_adam_finish alone is wanted
#define FG_AMSGRAD 0
#define FG_COUPLED 0
#endif

enum { PARAM, GRAD, MEAN, SQUARE, MOST };
constexpr int STREAMS = FG_AMSGRAD ? 5 : 4;

// table: see lists.cuh; streams params in/out, grads in, exp_avg, exp_avg_sq and with AMSGrad max_exp_avg_sq in/out.
// own (parameters, STORED) in, or null: the numbers that follow, of each tensor. control (2,) in, or null: see State.
// changes (chunks, 2) out, or null: see Change. decay: weight decay where coupled, else 1 - lr wd. low, high: the range
// of the weights, see Numbers. Block: a chunk.
extern "C" __global__ void fg_adam(const index_t* table, int streams, int tensors, const double* own,
                                   const double* control, double* changes, double scale, double beta1,
                                   double rest1, double beta2, double rest2, double step_size, double correction2,
                                   double eps, double decay, double low, double high) {
    if (skips(control, changes)) return;
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const Numbers given{{scale, beta1, rest1, beta2, rest2, step_size, correction2, eps, decay}, low, high};
    const Numbers n = Numbers::of(given, own, lists.number(chunk.tensor), control);
    const real_t factor = n[0], b1 = n[1], r1 = n[2], b2 = n[3], r2 = n[4], rate = n[5], root = n[6], e = n[7], wd = n[8];
    Change change;
    update_elements<STREAMS, (1u << STREAMS) - 1 - (1u << GRAD)>(lists, chunk, [&](real_t(&x)[STREAMS]) {
        const real_t before = x[PARAM];
        real_t g = x[GRAD] * factor, p = before;
        if (FG_COUPLED)
            g = fma_(p, wd, g);
        else
            p = p * wd;
        x[MEAN] = fma_(x[MEAN], b1, g * r1);
        x[SQUARE] = fma_(x[SQUARE], b2, g * (g * r2));
        real_t used = x[SQUARE];
        if constexpr (FG_AMSGRAD) used = x[MOST] = used > x[MOST] || is_nan(used) ? used : x[MOST];
        x[PARAM] = n.within(p - rate * x[MEAN] / fma_(sqrt_(used), root, e));
        if (changes) change.take(before, x[PARAM]);
    });
    change.put(changes);
}

// table: see lists.cuh; the grads of all parameters that take part. partial, totals, norms, arrived: see Sums. counts,
// found: see Findings, or both null. The rest: see State; a group has sign, lr, b1, b2, eps, wd, whether it is coupled.
// Block: a tensor.
extern "C" __global__ void fg_adam_finish(const index_t* table, int streams, int tensors, const double* partial,
                                          double* totals, double* norms, unsigned* arrived, const double* settings,
                                          const index_t* group, index_t* steps, double* own, double* control,
                                          index_t* skipped, double* report, const index_t* counts,
                                          double* found) {
    const auto rule = [](const double* of, index_t step) -> Numbers {
        const double sign = of[0], lr = of[1], beta1 = of[2], beta2 = of[3], eps = of[4], decay = of[5];
        const double step_size = lr / (1 - pow(beta1, double(step)));
        const double correction2 = 1 / sqrt(1 - pow(beta2, double(step)));
        return {{sign, beta1, 1 - beta1, beta2, 1 - beta2, step_size, correction2, eps,
                 of[6] != 0 ? decay : 1 - lr * decay}};
    };
    finish_step({table, streams, tensors}, {partial, totals, norms, arrived},
                {settings, group, steps, own, control, skipped, report}, {counts, found}, rule);
}
