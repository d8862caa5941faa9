// One step of stochastic gradient descent over any list of tensors in one launch, with momentum as in torch, or Nesterov's
// (Sutskever et al., 2013).
//
//     g = scale * grad  (sign flipped to maximize) + wd p
//     b = momentum b + (1 - dampening) g
//     p = p - lr (g + momentum b)  nesterov;  p - lr b  with momentum;  p - lr g  without
//
// Bytes: 12 a parameter in float32, 20 with momentum. FG_MOMENTUM, FG_NESTEROV and FG_DECAY are 0 or 1.
#include "step.cuh"

#ifndef FG_MOMENTUM  // where fg_sgd_finish alone is wanted
#define FG_MOMENTUM 0
#define FG_NESTEROV 0
#define FG_DECAY 0
#endif

enum { PARAM, GRAD, BUFFER };
constexpr int STREAMS = FG_MOMENTUM ? 3 : 2;

// table: see lists.cuh; streams params in/out, grads in, and with momentum its buffer in/out. own (parameters, STORED)
// in, or null: the numbers that follow, of each tensor. control (2,) in, or null: see State. changes (chunks, 2)
// out, or null: see Change. rest: 1 - dampening. low, high: the range of the weights, see Numbers. Block: a chunk.
extern "C" __global__ void fg_sgd(const index_t* table, int streams, int tensors, const double* own,
                                  const double* control, double* changes, double scale, double lr,
                                  double weight_decay, double momentum, double rest, double low, double high) {
    if (skips(control, changes)) return;
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const Numbers n =
        Numbers::of({{scale, lr, weight_decay, momentum, rest}, low, high}, own, lists.number(chunk.tensor), control);
    const real_t factor = n[0], rate = n[1], wd = n[2], mu = n[3], share = n[4];
    Change change;
    update_elements<STREAMS, (1u << STREAMS) - 1 - (1u << GRAD)>(lists, chunk, [&](real_t(&x)[STREAMS]) {
        const real_t p = x[PARAM];
        real_t g = x[GRAD] * factor;
        if (FG_DECAY) g = fma_(p, wd, g);
        if constexpr (FG_MOMENTUM) {
            const real_t b = x[BUFFER] = fma_(x[BUFFER], mu, g * share);
            g = FG_NESTEROV ? fma_(b, mu, g) : b;
        }
        x[PARAM] = n.within(fma_(-g, rate, p));
        if (changes) change.take(p, x[PARAM]);
    });
    change.put(changes);
}

// table: see lists.cuh; the grads of all parameters that take part. partial, totals, norms, arrived: see Sums. counts,
// found: see Findings, or both null. The rest: see State; a group has sign, lr, wd, momentum, dampening. Block: a tensor.
extern "C" __global__ void fg_sgd_finish(const index_t* table, int streams, int tensors, const double* partial,
                                         double* totals, double* norms, unsigned* arrived, const double* settings,
                                         const index_t* group, index_t* steps, double* own, double* control,
                                         index_t* skipped, double* report, const index_t* counts,
                                         double* found) {
    const auto rule = [](const double* of, index_t step) -> Numbers {
        // torch's first step takes the gradient whole into the buffer: zeros and no dampening.
        return {{of[0], of[1], of[2], of[3], step == 1 ? 1 : 1 - of[4]}};
    };
    finish_step({table, streams, tensors}, {partial, totals, norms, arrived},
                {settings, group, steps, own, control, skipped, report}, {counts, found}, rule);
}
