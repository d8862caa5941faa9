// What the steps of all optimizers share: numbers that tensors have of their own, and the launch between norm and update.
//
// A whole step of an optimizer is three launches, none of which waits for the host: fg_norm_chunks over the gradients;
// fg_<op>_finish, one block for each tensor, the last of which makes the norm, the coefficient, and for every tensor the
// numbers that the update takes; and the update itself. What changes from step to step is read and kept in device
// memory, so that a captured graph goes on with every replay: the count of steps, and the numbers of the groups.
#pragma once
#include "health.cuh"

constexpr int GROUP = 9;     // doubles of a parameter group: lowest and highest weight, then see the rule of the op
constexpr int GROUPS_FROM = 3;
constexpr int NUMBERS = 9;   // doubles that an update takes, the first of them times the gradient; unused ones are 0
constexpr int STORED = NUMBERS + 2;

struct Numbers {
    double at[NUMBERS];
    double low, high;  // what weights are clamped to, -inf and inf for no limit: the same bits then, and no more bytes

    // Those that were given, or those of a tensor, times what the norm says; see State.
    __device__ static Numbers of(const Numbers& given, const double* own, index_t number, const double* control) {
        Numbers result = given;
        if (own) {
#pragma unroll
            for (int i = 0; i < NUMBERS; ++i) result.at[i] = own[number * STORED + i];
            result.low = own[number * STORED + NUMBERS], result.high = own[number * STORED + NUMBERS + 1];
        }
        if (control) result.at[0] = control[0] * result.at[0];
        return result;
    }
    __device__ real_t operator[](int i) const { return real_t(at[i]); }
    __device__ real_t within(real_t weight) const { return minimum(maximum(weight, real_t(low)), real_t(high)); }
};

// What an optimizer keeps on the device, over its parameters: a tensor's `number` in the table is its parameter's.
struct State {
    const double* settings;  // in: the norm to clip to, negative for none; what to do where the norm is not finite: 0 go
                             // on, 1 leave everything as it is and count it, 2 leave it; the factor of every
                             // gradient, before its norm is clipped; from [GROUPS_FROM] (groups, GROUP)
    const index_t* group;    // (parameters,) in
    index_t* steps;          // (parameters,) in/out: steps taken
    double* own;             // (parameters, STORED) out: Numbers
    double* control;         // (2,) out: the coefficient and that factor, and 1 where the step is taken, else 0
    index_t* skipped;        // (2,) in/out: steps left out, in all and in a row up to this one
    double* report;          // (4,) out: norm, coefficient (0 where skipped), whether skipped, skipped in a row
};

// What is said of the gradients beside their norms; null pointers where nobody wants it.
struct Findings {
    const index_t* counts;  // (chunks, COUNTS) in, from fg_health_chunks
    double* found;          // (6, tensors) out: see finish_counts
};

// How far an update moves a parameter: the squares of its changes, and of its entries before, of all that a thread sees.
struct Change {
    double moved = 0, before = 0;

    __device__ void take(real_t from, real_t to) {
        const double step = to - from, start = from;
        moved = fma_(step, step, moved);
        before = fma_(start, start, before);
    }
    // changes (chunks, 2) out, or null. For all threads of a block.
    __device__ void put(double* changes) const {
        if (!changes) return;
        const auto add = [](double a, double b) { return a + b; };
        const double all_moved = block_fold(moved, 0.0, add), all_before = block_fold(before, 0.0, add);
        if (threadIdx.x == 0) {
            changes[index_t(blockIdx.x) * 2] = all_moved;
            changes[index_t(blockIdx.x) * 2 + 1] = all_before;
        }
    }
};

// Say whether an update is to leave everything as it is; then its changes are none.
__device__ inline bool skips(const double* control, double* changes) {
    if (!control || control[1] != 0) return false;
    if (changes && threadIdx.x < 2) changes[index_t(blockIdx.x) * 2 + threadIdx.x] = 0;
    return true;
}

// rule(group, step) returns the Numbers, but for the range, of a tensor that takes its step number `step`, from 1.
template <class F> __device__ void finish_step(const Table& table, const Sums& sums, const State& state,
                                               const Findings& findings, F rule) {
    __shared__ bool goes_on;
    double norm;
    if (findings.found) finish_counts(table, blockIdx.x, findings.counts, findings.found);
    const bool is_last = finish_norms(table, sums, norm);
    if (findings.found && threadIdx.x == 0) findings.found[blockIdx.x] = sums.norms[blockIdx.x];
    if (!is_last) return;
    if (threadIdx.x == 0) {
        const double policy = state.settings[1], unscale = state.settings[2];
        norm *= unscale;
        const bool finite = fabs(norm) <= 1.7976931348623157e308;
        goes_on = finite || policy == 0;
        const double coefficient = goes_on ? clip_coefficient(norm, state.settings[0]) : 0.0;
        state.control[0] = coefficient * unscale;
        state.control[1] = goes_on;
        state.report[0] = norm;
        state.report[1] = coefficient;
        state.report[2] = !goes_on;
        if (!goes_on && policy == 1) state.skipped[0] += 1;
        state.report[3] = double(state.skipped[1] = !goes_on && policy == 1 ? state.skipped[1] + 1 : 0);
    }
    __syncthreads();
    if (!goes_on) return;
    for (int k = threadIdx.x; k < table.tensors; k += blockDim.x) {
        const index_t number = table.number(k), step = ++state.steps[number];
        const double* const group = state.settings + GROUPS_FROM + state.group[number] * GROUP;
        const Numbers numbers = rule(group + 2, step);
        double* const own = state.own + number * STORED;
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) own[i] = numbers.at[i];
        own[NUMBERS] = group[0], own[NUMBERS + 1] = group[1];
    }
}
