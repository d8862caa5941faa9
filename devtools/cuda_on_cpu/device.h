// CUDA C++ as g++ compiles it: the keywords, vector types and built-in functions that kernels may use.
//
// Functions that round (fmaf, __fadd_rn, ...) give the device's bits, as long as the compiler contracts nothing:
// g++ is called with -ffp-contract=off, NVRTC with -fmad=false. expf, tanhf and the like are the C library's; those of
// the device, and its approximations (__expf, rsqrtf, ...), differ in the last bits.
#pragma once
#define FASTGRAD_ON_CPU 1
#include <math.h>
#include <stdio.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
#define __grid_constant__
// One thread of the process runs a block, so what is local to that thread is the block's shared memory. __thread takes,
// like CUDA and unlike thread_local, no type that needs a constructor.
#ifdef __SANITIZE_THREAD__
#define __shared__ static __thread __attribute__((aligned(4096)))  // gaps that belong to none of the variables
#else
#define __shared__ static __thread __attribute__((aligned(16)))
#endif

// --- vector types

#define CUDA_ON_CPU_VECTORS(T, name, align2, align4)                                   \
    struct name##1 { T x; };                                                           \
    struct __align__(align2) name##2 { T x, y; };                                      \
    struct __align__(align4) name##4 { T x, y, z, w; };                                \
    inline name##1 make_##name##1(T x) { return {x}; }                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
struct int3 { int x, y, z; };
struct float3 { float x, y, z; };
struct double3 { double x, y, z; };
struct longlong3 { long long x, y, z; };
struct ulonglong3 { unsigned long long x, y, z; };
struct short3 { short x, y, z; };
struct ushort3 { unsigned short x, y, z; };
struct char3 { signed char x, y, z; };
struct uchar3 { unsigned char x, y, z; };
CUDA_ON_CPU_VECTORS(unsigned, uint, 8, 16)
CUDA_ON_CPU_VECTORS(int, int, 8, 16)
CUDA_ON_CPU_VECTORS(float, float, 8, 16)
CUDA_ON_CPU_VECTORS(double, double, 16, 16)
CUDA_ON_CPU_VECTORS(long long, longlong, 16, 16)
CUDA_ON_CPU_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDA_ON_CPU_VECTORS(short, short, 4, 8)
CUDA_ON_CPU_VECTORS(unsigned short, ushort, 4, 8)
CUDA_ON_CPU_VECTORS(signed char, char, 2, 4)
CUDA_ON_CPU_VECTORS(unsigned char, uchar, 2, 4)

// --- launch

namespace cuda_on_cpu {

#define CUDA_ON_CPU_UNCHECKED __attribute__((no_sanitize("thread")))

template <class A>
constexpr char kind() {
    if (std::is_pointer_v<A>) return 'p';
    if (std::is_floating_point_v<A>) return 'f';
    return std::is_integral_v<A> || std::is_enum_v<A> ? 'i' : 's';
}

template <class... A, size_t... I>
CUDA_ON_CPU_UNCHECKED void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
const char* launch(void (*kernel)(A...), const Launch& given) {
    static constexpr char kinds[] = {kind<A>()..., 0};
    static constexpr size_t sizes[] = {sizeof(A)..., 0};
    struct Call {
        void (*kernel)(A...);
        void** arguments;
    } once{kernel, given.arguments};
    auto entry = [](void* p) CUDA_ON_CPU_UNCHECKED {
        call(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->arguments, std::index_sequence_for<A...>{});
    };
    return run(given, {kinds, sizes}, entry, &once);
}

template <class T>
T shuffle(Collective op, unsigned mask, T value, int argument, int width, Site site) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = warp(op, mask, bits, argument, width, site);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A thread whose exchange changes nothing is taken to wait for another one.
template <class T, class F>
CUDA_ON_CPU_UNCHECKED T exchange(T* p, F change, Site site, Order order = Order::RELAXED) {
    before_atomic(p, sizeof *p, Access::EXCHANGE, order, site);
    const T old = *p, now = change(old);
    *p = now;
    if (std::memcmp(&old, &now, sizeof old) == 0) {
        idle(site);
    } else {
        progress();
    }
    return old;
}

template <class To, class From>
To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &x, sizeof x);
    return result;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block_index())
#define blockDim (cuda_on_cpu::block_shape())
#define gridDim (cuda_on_cpu::grid_shape())
constexpr int warpSize = 32;

// --- barriers and warps

#define CUDA_ON_CPU_SITE cuda_on_cpu::Site site = cuda_on_cpu::Site::here()
#define CUDA_ON_CPU_OP(name) cuda_on_cpu::Collective::name

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::barrier(CUDA_ON_CPU_OP(BARRIER), 0, site); }
inline int __syncthreads_count(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(CUDA_ON_CPU_OP(COUNT), p, site); }
inline int __syncthreads_and(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(CUDA_ON_CPU_OP(AND), p, site); }
inline int __syncthreads_or(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(CUDA_ON_CPU_OP(OR), p, site); }
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_SITE) {
    cuda_on_cpu::warp(CUDA_ON_CPU_OP(SYNCWARP), mask, 0, 0, 32, site);
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_OP(SHUFFLE), mask, v, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_OP(SHUFFLE_UP), mask, v, int(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_OP(SHUFFLE_DOWN), mask, v, int(delta), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_OP(SHUFFLE_XOR), mask, v, lanes, width, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) {
    return unsigned(cuda_on_cpu::warp(CUDA_ON_CPU_OP(BALLOT), mask, p != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::warp(CUDA_ON_CPU_OP(BALLOT), mask, p != 0, 0, 32, site) != 0;
}
inline int __all_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::warp(CUDA_ON_CPU_OP(BALLOT), mask, p == 0, 0, 32, site) == 0;
}

// --- memory

inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned, CUDA_ON_CPU_SITE) { cuda_on_cpu::sleep(site); }
inline void __trap(CUDA_ON_CPU_SITE) { cuda_on_cpu::fail_at("__trap", site); }
inline bool __isGlobal(const void* p) { return !cuda_on_cpu::is_shared(p); }
inline bool __isShared(const void* p) { return cuda_on_cpu::is_shared(p); }
inline size_t __cvta_generic_to_global(const void* p) { return reinterpret_cast<size_t>(p); }
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
inline void cuda_on_cpu_assume(bool holds, CUDA_ON_CPU_SITE) {
    if (!holds) cuda_on_cpu::fail_at("an assumption does not hold", site);
}
#define __builtin_assume(x) cuda_on_cpu_assume(x)
#undef assert
#define assert(x) ((x) ? (void)0 : cuda_on_cpu::fail_at("assertion failed: " #x, cuda_on_cpu::Site::here()))

// What kernels/sync.cuh defines for the device.
inline unsigned load_acquire(const unsigned* p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::poll(p, site); }
inline CUDA_ON_CPU_UNCHECKED void store_release(unsigned* p, unsigned v, CUDA_ON_CPU_SITE) {
    cuda_on_cpu::before_atomic(p, sizeof *p, cuda_on_cpu::Access::STORE, cuda_on_cpu::Order::RELEASE, site);
    *p = v;
    cuda_on_cpu::progress();
}
inline unsigned atomic_add_release(unsigned* p, unsigned v, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::exchange(p, [=](unsigned o) { return o + v; }, site, cuda_on_cpu::Order::RELEASE);
}
inline unsigned atomic_add_acquire_release(unsigned* p, unsigned v, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::exchange(p, [=](unsigned o) { return o + v; }, site, cuda_on_cpu::Order::ACQUIRE_RELEASE);
}

#define CUDA_ON_CPU_ATOMIC(name, result)                                              \
    template <class T>                                                                \
    T name(T* p, std::common_type_t<T> v, CUDA_ON_CPU_SITE) {                         \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name " takes 4 or 8 bytes"); \
        return cuda_on_cpu::exchange(p, [=](T o) { return T(result); }, site);        \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, o + v)
CUDA_ON_CPU_ATOMIC(atomicSub, o - v)
CUDA_ON_CPU_ATOMIC(atomicMax, o < v ? v : o)
CUDA_ON_CPU_ATOMIC(atomicMin, v < o ? v : o)
CUDA_ON_CPU_ATOMIC(atomicAnd, o & v)
CUDA_ON_CPU_ATOMIC(atomicOr, o | v)
CUDA_ON_CPU_ATOMIC(atomicXor, o ^ v)
CUDA_ON_CPU_ATOMIC(atomicExch, v)
inline unsigned atomicInc(unsigned* p, unsigned top, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::exchange(p, [=](unsigned o) { return o >= top ? 0u : o + 1; }, site);
}
inline unsigned atomicDec(unsigned* p, unsigned top, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::exchange(p, [=](unsigned o) { return o == 0 || o > top ? top : o - 1; }, site);
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> old, std::common_type_t<T> v, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::exchange(p, [=](T o) { return o == old ? v : o; }, site);
}

#define CUDA_ON_CPU_LOAD(name) \
    template <class T>         \
    __forceinline__ T name(const T* p) { return *p; }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
#define CUDA_ON_CPU_STORE(name) \
    template <class T>          \
    __forceinline__ void name(T* p, std::common_type_t<T> v) { *p = v; }
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)

// --- arithmetic

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }

inline float rsqrtf(float a) { return float(1.0 / sqrt(double(a))); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float rsqrt(float a) { return rsqrtf(a); }
inline float fdividef(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

// Of floating-point numbers, the smaller of a number and NaN is the number, as in fminf.
template <class A, class B>
constexpr auto min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) {
        return C(__builtin_fmin(C(a), C(b)));
    } else {
        return C(a) < C(b) ? C(a) : C(b);
    }
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) {
        return C(__builtin_fmax(C(a), C(b)));
    } else {
        return C(a) < C(b) ? C(b) : C(a);
    }
}

// --- bits and conversions

inline int __float_as_int(float x) { return cuda_on_cpu::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::bits<double>(x); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int hi, int lo) {
    return cuda_on_cpu::bits<double>(uint64_t(unsigned(hi)) << 32 | unsigned(lo));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(uint64_t(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// From a float to an integer the device rounds, saturates, and turns NaN into 0 or, of 64 bits, the smallest number.
template <class I, class F>
I cuda_on_cpu_integer(F x) {
    constexpr F top = F(1ull << (sizeof(I) * 8 - 2)) * (std::is_signed_v<I> ? 2 : 4);
    if (x != x) return sizeof(I) == 8 ? I(1ull << 63) : I(0);
    if (x >= top) return I(~I(0)) > 0 ? I(~I(0)) : I(~(uint64_t(1) << (sizeof(I) * 8 - 1)));
    if (x < (std::is_signed_v<I> ? -top : F(0))) return std::is_signed_v<I> ? I(uint64_t(1) << (sizeof(I) * 8 - 1)) : I(0);
    return I(x);
}
inline int __float2int_rn(float x) { return cuda_on_cpu_integer<int>(rintf(x)); }
inline int __float2int_rz(float x) { return cuda_on_cpu_integer<int>(x); }
inline int __float2int_rd(float x) { return cuda_on_cpu_integer<int>(floorf(x)); }
inline int __float2int_ru(float x) { return cuda_on_cpu_integer<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return cuda_on_cpu_integer<unsigned>(rintf(x)); }
inline long long __float2ll_rn(float x) { return cuda_on_cpu_integer<long long>(rintf(x)); }
inline int __double2int_rn(double x) { return cuda_on_cpu_integer<int>(rint(x)); }
inline int __double2int_rz(double x) { return cuda_on_cpu_integer<int>(x); }
inline long long __double2ll_rn(double x) { return cuda_on_cpu_integer<long long>(rint(x)); }
inline float __double2float_rn(double x) { return float(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
