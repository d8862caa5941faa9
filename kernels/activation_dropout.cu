// An activation and the dropout of what comes out of it, in one pass each way, for the kind FG_KIND.
//
//     y = f(x) s where it is kept, else 0;    dx = (dy s where it is kept, else 0) f'(x),    s = 1 / (1 - p)
//
// Bytes an element: 8 forward and 12 backward in float32, 16 at a time. The random numbers, see philox.cuh, cost 15
// instructions an element, and four times that beside the sums over the rows: a thread that goes down the columns uses
// one of the four words that it draws. That is still less than the memory of an H200 leaves time for (some 80).
#include "activation_rows.cuh"
#include "philox.cuh"

// x (n,) in; out (n,) out, may be x. A thread takes VECTOR counters. vectors: both arrays begin on 16 bytes.
extern "C" __global__ void fg_activation_dropout(const storage_t* x, storage_t* out, index_t n, unsigned long long seed,
                                                 unsigned long long offset, unsigned int threshold, real_t scale,
                                                 int vectors, real_t p0, real_t p1) {
    const Drop drop{threshold, scale};
    const auto value = [&](real_t input, unsigned word) { return drop(f(input, p0, p1), word); };
    each_of_counters(out, n, {seed, offset}, vectors, of_one(x, value));
}

// dy, x (n,) in; dx (n,) out, may be dy or x. As above.
extern "C" __global__ void fg_activation_dropout_backward(const storage_t* dy, const storage_t* x, storage_t* dx,
                                                          index_t n, unsigned long long seed, unsigned long long offset,
                                                          unsigned int threshold, real_t scale, int vectors, real_t p0,
                                                          real_t p1) {
    const Drop drop{threshold, scale};
    const auto slope = [&](real_t gradient, real_t input, unsigned word) {
        return drop(gradient, word) * derivative(input, p0, p1);
    };
    each_of_counters(dx, n, {seed, offset}, vectors, of_two(dy, x, slope));
}

// dy, x (rows, columns) in; dx (rows, columns) out, may be dy or x; partial (row blocks, columns) out. Block (x, y).
// vectors: the columns divide by VECTOR, the arrays begin on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_activation_dropout_backward_rows(const storage_t* dy, const storage_t* x, storage_t* dx,
                                                               real_t* partial, index_t rows, index_t columns,
                                                               unsigned long long seed, unsigned long long offset,
                                                               unsigned int threshold, real_t scale, int vectors,
                                                               real_t p0, real_t p1) {
    extern __shared__ real_t sums[];
    const Drop drop{threshold, scale};
    const Philox random{seed, offset};
    const auto slope = [&](real_t gradient, real_t input, index_t entry) {
        return drop(gradient, random.of_entry(entry)) * derivative(input, p0, p1);
    };
    if (vectors)
        backward_tile<VECTOR>(dy, x, dx, partial, rows, columns, sums, slope);
    else
        backward_tile<1>(dy, x, dx, partial, rows, columns, sums, slope);
}
