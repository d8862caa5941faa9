// Counted random numbers: Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011).
//
// Entry i of an array has word (i % 64) / 16 of the counter (16 (i / 64) + i % 16, offset) under the key seed, on the CPU
// as here. So a thread that takes the 4 VECTOR entries of VECTOR counters, 16 bytes from each quarter of a group of 64,
// uses every word that it draws.
#pragma once
#include "common.cuh"

struct Words { unsigned at[4]; };

struct Philox {
    unsigned long long seed, offset;
    __device__ Words of_counter(index_t counter) const {
        unsigned c[4] = {unsigned(counter), unsigned(counter >> 32), unsigned(offset), unsigned(offset >> 32)};
        unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
            c[0] = unsigned(b >> 32) ^ c[1] ^ k0;
            c[1] = unsigned(b);
            c[2] = unsigned(a >> 32) ^ c[3] ^ k1;
            c[3] = unsigned(a);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        return {{c[0], c[1], c[2], c[3]}};
    }
    __device__ unsigned of_entry(index_t entry) const {
        const Words words = of_counter(entry / 64 * 16 + entry % 16);
        const int word = int(entry % 64 / 16);
        return word < 2 ? (word == 0 ? words.at[0] : words.at[1]) : (word == 2 ? words.at[2] : words.at[3]);
    }
};

constexpr int QUARTER = 16;  // entries of a group that take one word each of their counters
constexpr int OF_GROUP = QUARTER / VECTOR;  // threads that share a group

// value scale where its word keeps it, else 0.
struct Drop {
    unsigned threshold;
    real_t scale;
    __device__ real_t operator()(real_t value, unsigned word) const { return word >= threshold ? value * scale : real_t(0); }
};

// Write what f makes of the entries of this thread and their words into out (n,). A thread takes VECTOR counters; where
// `vectors`, all arrays begin on 16 bytes.
template <class F>
__device__ void each_of_counters(storage_t* out, index_t n, const Philox& random, bool vectors, F f) {
    const index_t thread = global_thread(), group = thread / OF_GROUP;
    const int first = int(thread % OF_GROUP) * VECTOR;
    const index_t start = group * 64 + first;
    if (start >= n) return;
    if (vectors && start + 3 * QUARTER + VECTOR <= n) {
        Words words[VECTOR];
        typename F::Loaded loaded[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) loaded[w] = f.load(start + QUARTER * w);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) words[k] = random.of_counter(group * QUARTER + first + k);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            vector<storage_t> result;
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) result.at[k] = storage_t(f.of(loaded[w], k, words[k].at[w]));
            store(out + start + QUARTER * w, result);
        }
        return;
    }
    // Rolled up, and each word drawn where it is used: the last group, and arrays that begin off 16 bytes.
#pragma unroll 1
    for (int i = 0; i < 4 * VECTOR; ++i) {
        const index_t at = start + QUARTER * (i / VECTOR) + i % VECTOR;
        if (at < n) out[at] = storage_t(f.one(at, random.of_entry(at)));
    }
}

// What each_of_counters calls: of one array, or of two.
template <class G> struct OfOne {
    const storage_t* x;
    G g;  // g(x, word)
    using Loaded = vector<storage_t>;
    __device__ Loaded load(index_t at) const { return ::load<Loaded>(x + at); }
    __device__ real_t of(const Loaded& v, int k, unsigned word) const { return g(real_t(v.at[k]), word); }
    __device__ real_t one(index_t at, unsigned word) const { return g(real_t(x[at]), word); }
};
template <class G> __device__ OfOne<G> of_one(const storage_t* x, G g) { return {x, g}; }

template <class G> struct OfTwo {
    const storage_t *dy, *x;
    G g;  // g(dy, x, word)
    struct Loaded { vector<storage_t> dy, x; };
    __device__ Loaded load(index_t at) const {
        return {::load<vector<storage_t>>(dy + at), ::load<vector<storage_t>>(x + at)};
    }
    __device__ real_t of(const Loaded& v, int k, unsigned word) const {
        return g(real_t(v.dy.at[k]), real_t(v.x.at[k]), word);
    }
    __device__ real_t one(index_t at, unsigned word) const { return g(real_t(dy[at]), real_t(x[at]), word); }
};
template <class G> __device__ OfTwo<G> of_two(const storage_t* dy, const storage_t* x, G g) { return {dy, x, g}; }
