"""The engine that runs CUDA sources on the CPU: correct kernels give no alarm in any schedule, planted bugs do."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import backends
import numpy as np
import pytest

import devtools.cuda_on_cpu.module as module
from devtools.cuda_on_cpu import CompileError, CpuModule, LaunchError

REASON = backends.missing("emulated")  # an error where FASTGRAD_TEST_BACKENDS names it, see backends.chosen
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SCHEDULES = [0, 1, 2, 3]  # ascending, descending, two random ones
SYNC = (Path(module.__file__).parents[2] / "kernels" / "sync.cuh").read_text()


def variants(kernel: str, text: str, changes: dict[str, tuple[str, str]]) -> tuple[str, list[str]]:
    """Return one source with the kernel and a copy for each planted bug, named kernel_bug, and all the names."""
    parts = [f'#line 1 "{kernel}.cu"\n{text}']
    for bug, (old, new) in changes.items():
        assert text.count(old) == 1, f"{bug}: {old!r} stands {text.count(old)} times in the kernel"
        changed = re.sub(rf"\b{kernel}\b", f"{kernel}_{bug}", text.replace(old, new))
        parts.append(f'#line 1 "{kernel}_{bug}.cu"\n{changed}')
    return "\n".join(parts), [kernel, *(f"{kernel}_{bug}" for bug in changes)]


# --- a sum of squares in two stages: each block sums a part, and the last one to finish adds up the blocks' sums

SUM = r"""
extern "C" __global__ void __launch_bounds__(1024)
sum(const float* __restrict__ x, long long n, float* partial, unsigned* counter, float* out) {
    extern __shared__ float tree[];  // a number for each thread
    __shared__ float warp_sums[8];
    __shared__ bool is_last;
    const int t = threadIdx.x, lane = t % 32, warp = t / 32, warps = blockDim.x / 32;
    const long long step = (long long)gridDim.x * blockDim.x, first = blockIdx.x * (long long)blockDim.x + t;
    float total = 0;
    for (int half = 0; half < 2; ++half) {
        float s = 0;
        for (long long i = 2 * first + half; i < n / 4; i += 2 * step) {
            const float4 v = reinterpret_cast<const float4*>(x)[i];
            s += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        for (long long i = n / 4 * 4 + first; half == 1 && i < n; i += step) s += x[i] * x[i];
        for (int d = 16; d > 0; d /= 2) s += __shfl_down_sync(0xffffffffu, s, d);
        if (lane == 0) warp_sums[warp] = s;
        __syncthreads();  // written
        for (int w = 0; w < warps; ++w) total += warp_sums[w];
        __syncthreads();  // read
    }
    if (t == 0) {
        partial[blockIdx.x] = total;
        __threadfence();
        is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();  // is_last
    if (!is_last) return;
    float s = 0;
    for (unsigned b = t; b < gridDim.x; b += blockDim.x) s += partial[b];
    tree[t] = s;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) tree[t] += tree[t + half];
        __syncthreads();  // one level
    }
    if (t == 0) {
        *out = tree[0];
        *counter = 0;
    }
}
"""
BUGS = {
    "no_barrier_after_write": ("__syncthreads();  // written", ""),
    "no_barrier_before_is_last": ("__syncthreads();  // is_last", ""),
    "no_barrier_after_read": ("__syncthreads();  // read", ""),
    "no_fence": ("partial[blockIdx.x] = total;\n        __threadfence();", "partial[blockIdx.x] = total;"),
    "no_second_fence": ("gridDim.x - 1;\n        __threadfence();", "gridDim.x - 1;"),
    "no_atomic": ("atomicAdd(counter, 1u)", "(*counter)++"),
    "past_the_end": ("+ first; half == 1 && i < n;", "+ first; half == 1 && i <= n;"),
    "misaligned": ("reinterpret_cast<const float4*>(x)[i]", "reinterpret_cast<const float4*>(x + 1)[i]"),
    "short_static": ("warp_sums[8]", "warp_sums[3]"),
    "short_dynamic": ("tree[t] = s;", "tree[t + 1] = s;"),
    "unwritten_shared": ("for (int w = 0; w < warps; ++w)", "for (int w = 0; w <= warps; ++w)"),
    "barrier_in_branch": ("__syncthreads();  // one level", "if (t < half) __syncthreads();"),
    "half_warp_shuffle": ("if (lane == 0) warp_sums", "if (lane < 16) s += __shfl_down_sync(0xffffffffu, s, 1);\n"
                          "        if (lane == 0) warp_sums"),
    "early_return": ("float total = 0;", "float total = 0;\n    if (first >= n) return;"),
    "all_write_partial": ("if (t == 0) {\n        partial", "if (t < 64) {\n        partial"),
    "partial_past_the_end": ("b < gridDim.x; b +=", "b <= gridDim.x; b +="),
    "wrong_shuffle": ("int d = 16;", "int d = 8;"),
    "counter_kept": ("*counter = 0;", ""),
}  # fmt: skip
# What the error of each says, with the line of the kernel; None: nothing but a wrong result.
SAYS = {
    "no_barrier_after_write": r"(race|never written).*: __shared__ .*warp_sums.* at sum_\w+\.cu:20",
    "no_barrier_before_is_last": r"race, read after write: __shared__ .*is_last|never written: __shared__ .*is_last",
    "no_barrier_after_read": r"race, (write after read|read after write): __shared__ .*warp_sums",
    "no_fence": r"race, read after write: argument 2, byte \d+ by thread \d+ of block \d+, against thread 0 of block",
    "no_second_fence": r"race, read after write: argument 2",
    "no_atomic": r"race, (write after write|read after write|write after read): argument 3",
    "past_the_end": r"read 0 bytes past the end of argument 0",
    "misaligned": r"misaligned or null pointer used .* at sum_misaligned\.cu:13",
    "short_static": r"index 3 out of bounds .* at sum_short_static\.cu:",
    "short_dynamic": r"write 0 bytes past the end of dynamic shared memory .* at sum_short_dynamic\.cu:",
    "unwritten_shared": r"read of shared memory that was never written: __shared__ .*warp_sums",
    "barrier_in_branch": r"divergent __syncthreads|deadlock|after some threads of block|race",
    "half_warp_shuffle": r"divergent warp collective|deadlock",
    "early_return": r"__syncthreads at sum_early_return\.cu:\d+ after some threads of block \d+ have returned",
    "all_write_partial": r"race, write after write: argument 2",
    "partial_past_the_end": r"read 0 bytes past the end of argument 2",
    "wrong_shuffle": None,
    "counter_kept": None,
}


@pytest.fixture(scope="module")
def sums() -> CpuModule:
    return CpuModule(*variants("sum", SUM, BUGS))


def run_sum(sums: CpuModule, name: str, policy: int, n: int = 3333, blocks: int = 5, threads: int = 128) -> bool:
    """Run a kernel twice, and say whether it was right both times."""
    x = np.random.default_rng(7).standard_normal(n).astype(np.float32)
    partial, counter, out = np.full(blocks, np.nan, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.float32)
    right = []
    for _ in range(2):
        out[:] = np.nan
        args = (x, np.int64(n), partial, counter, out)
        sums.get_function(name)((blocks,), (threads,), args, shared_mem=4 * threads, policy=policy)
        right.append(bool(np.isclose(out[0], np.sum(x.astype(np.float64) ** 2), rtol=1e-6)))
    return all(right)


@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize(("n", "blocks", "threads"), [(3333, 5, 128), (1, 1, 32), (4, 3, 32), (20_000, 2, 256)])
def test_a_correct_kernel_gives_no_alarm(sums, policy, n, blocks, threads):
    assert run_sum(sums, "sum", policy, n, blocks, threads)


@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize("bug", BUGS)
def test_each_planted_bug_is_caught(sums, bug, policy):
    # So many threads that some have nothing to do, in the kernel that lets these return.
    shape = (100, 5, 128) if bug == "early_return" else (3333, 5, 128)
    if SAYS[bug] is None:
        assert not run_sum(sums, f"sum_{bug}", policy, *shape)
    else:
        with pytest.raises(LaunchError, match=SAYS[bug]):
            run_sum(sums, f"sum_{bug}", policy, *shape)


# --- blocks that wait for each other

GRID = r"""
// Each of `steps` times, y_i = (x_{i-1} + x_{i+1}) / 2 around a ring of n; x and y change places. A block has its part.
extern "C" __global__ void ring(float* x, float* y, int n, int steps, unsigned* counter) {
    extern __shared__ float mine[];
    __shared__ unsigned barriers;
    if (threadIdx.x == 0) barriers = 0;
    for (int step = 0; step < steps; ++step) {
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) mine[threadIdx.x] = (x[(i + n - 1) % n] + x[(i + 1) % n]) / 2;
        __syncthreads();
        if (threadIdx.x < blockDim.x / 2) {  // stored by others than those who computed
            const int k = 2 * (blockIdx.x * (blockDim.x / 2) + threadIdx.x);
            if (k < n) y[k] = mine[2 * threadIdx.x];
            if (k + 1 < n) y[k + 1] = mine[2 * threadIdx.x + 1];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            ++barriers;
            atomic_add_release(counter, 1u);
            while (load_acquire(counter) < barriers * gridDim.x) __nanosleep(32);
        }
        __syncthreads();  // all blocks are here
        float* const old = x;
        x = y;
        y = old;
    }
}
"""
GRID_BUGS = {
    "no_release": ("atomic_add_release(counter, 1u);", "atomicAdd(counter, 1u);"),
    "no_acquire": ("while (load_acquire(counter) <", "while (atomicAdd(counter, 0u) <"),
    "plain_poll": ("while (load_acquire(counter) <", "while (*(volatile unsigned*)counter <"),
    "wrong_target": ("barriers * gridDim.x", "barriers * gridDim.x + 1"),
    "early_target": ("barriers * gridDim.x", "barriers * gridDim.x - 1"),
    "no_barrier_before": ("__syncthreads();\n        if (threadIdx.x == 0)", "if (threadIdx.x == 0)"),
    "no_barrier_after": ("__syncthreads();  // all blocks are here", ""),
    "one_buffer": ("y = old;", "y = x;"),
}  # fmt: skip
MORE = r"""
#line 1 "more.cu"
extern "C" __global__ void ring_by_function(float* x, float* y, int n, int steps, unsigned* counter) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int step = 0; step < steps; ++step) {
        if (i < n) y[i] = (x[(i + n - 1) % n] + x[(i + 1) % n]) / 2;
        grid_barrier(counter, (step + 1) * gridDim.x);
        float* const old = x;
        x = y;
        y = old;
    }
}
// Static shared memory is each block's own, however they take turns.
extern "C" __global__ void own_memory(int* out, unsigned* counter) {
    __shared__ int number;
    extern __shared__ int other[];
    if (threadIdx.x == 0) number = blockIdx.x;
    other[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
    grid_barrier(counter, gridDim.x);
    out[blockIdx.x * blockDim.x + threadIdx.x] = number + other[(threadIdx.x + 1) % blockDim.x];
}
// One block hands numbers to the next through a flag; each thread its own.
extern "C" __global__ void hand_on(float* x, unsigned* flags, int n) {
    const int i = threadIdx.x;
    if (blockIdx.x > 0) while (load_acquire(&flags[(blockIdx.x - 1) * n + i]) == 0) {}
    x[i] += 1;
    store_release(&flags[blockIdx.x * n + i], 1u);
}
extern "C" __global__ void locked(int* sum, int* lock) {
    while (atomicCAS(lock, 0, 1) != 0) {}
    __threadfence();
    *sum += 1;
    __threadfence();
    atomicExch(lock, 0);
}
extern "C" __global__ void locked_without_fence(int* sum, int* lock) {
    while (atomicCAS(lock, 0, 1) != 0) {}
    *sum += 1;
    atomicExch(lock, 0);
}
"""


@pytest.fixture(scope="module")
def grids() -> CpuModule:
    code, names = variants("ring", GRID, GRID_BUGS)
    more = re.findall(r"__global__ void (\w+)", MORE)
    return CpuModule(f'#line 1 "sync.cuh"\n{SYNC}\n{code}\n{MORE}', [*names, *more])


def run_ring(grids: CpuModule, name: str, policy: int, steps: int = 5, blocks: int = 4, **how) -> None:
    n, threads = 8 * blocks - 3, 8
    start = np.random.default_rng(3).standard_normal(n).astype(np.float32)
    x, y, counter = start.copy(), np.full(n, np.nan, np.float32), np.zeros(1, np.uint32)
    how = {"cooperative": True, "resident": blocks, **how}
    args = (x, y, np.int32(n), np.int32(steps), counter)
    grids.get_function(name)((blocks,), (threads,), args, shared_mem=4 * threads, policy=policy, **how)
    for _ in range(steps):
        start = (np.roll(start, 1) + np.roll(start, -1)) / 2
    np.testing.assert_array_equal(y if steps % 2 else x, start)


@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize("name", ["ring", "ring_by_function"])
def test_a_grid_wide_barrier(grids, name, policy):
    run_ring(grids, name, policy)
    run_ring(grids, name, policy, steps=2, blocks=1)


@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize(
    ("bug", "says"),
    [
        ("no_release", "race, (read after write|write after read): argument [01]"),
        ("no_acquire", "race, (read after write|write after read): argument [01]"),
        ("plain_poll", "race, (read after write|write after read): argument 4"),
        ("wrong_target", r"deadlock: thread 0 of block \d waits at ring_wrong_target.cu:20"),
        ("early_target", "race, (read after write|write after read): argument [01]"),
        ("no_barrier_before", "race, (read after write|write after read): argument [01]"),
        ("no_barrier_after", "race, (read after write|write after read): argument [01]"),
        ("one_buffer", "race, (read after write|write after read): argument [01]"),
    ],
)
def test_each_bug_between_blocks_is_caught(grids, bug, says, policy):
    with pytest.raises(LaunchError, match=says):
        run_ring(grids, f"ring_{bug}", policy)


def test_blocks_wait_for_each_other_in_cooperative_launches_only(grids):
    with pytest.raises(LaunchError, match=r"deadlock: thread 0 of block 0 waits at .*only in a cooperative launch"):
        run_ring(grids, "ring", 0, cooperative=False)
    with pytest.raises(LaunchError, match="a cooperative launch of 4 blocks, where 3 fit the device"):
        run_ring(grids, "ring", 0, resident=3)


@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize("mode", ["check", "plain"])
def test_each_block_has_its_own_shared_memory(mode, policy):
    names = re.findall(r"__global__ void (\w+)", MORE)
    module = CpuModule(f'#line 1 "sync.cuh"\n{SYNC}\n{MORE}', names, mode)
    out = np.zeros((6, 4), np.int32)
    function = module.get_function("own_memory")
    function((6,), (4,), (out, np.zeros(1, np.uint32)), shared_mem=16, policy=policy, cooperative=True)
    block, thread = np.arange(6)[:, None], np.arange(4)
    np.testing.assert_array_equal(out, block + 100 * block + (thread + 1) % 4)


@pytest.mark.parametrize("policy", SCHEDULES)
def test_flags_and_locks(grids, policy):
    x = np.zeros(40, np.float32)
    args = (x, np.zeros(5 * 40, np.uint32), np.int32(40))
    grids.get_function("hand_on")((5,), (40,), args, policy=policy, cooperative=True)
    np.testing.assert_array_equal(x, 5)
    total = np.zeros(1, np.int32)
    grids.get_function("locked")((3,), (40,), (total, np.zeros(1, np.int32)), policy=policy, cooperative=True)
    assert total[0] == 120
    with pytest.raises(LaunchError, match=r"race, .*: argument 0, byte 0"):
        args = (total, np.zeros(1, np.int32))
        grids.get_function("locked_without_fence")((3,), (40,), args, policy=policy, cooperative=True)


# --- patterns that are right, and what is wrong next to them

PATTERNS = r"""
extern "C" __global__ void transpose(const double* x, double* y, int n) {
    __shared__ double tile[16][17];
    int i = blockIdx.x * 16 + threadIdx.x, j = blockIdx.y * 16 + threadIdx.y;
    if (i < n && j < n) tile[threadIdx.y][threadIdx.x] = x[(long long)j * n + i];
    __syncthreads();
    i = blockIdx.y * 16 + threadIdx.x, j = blockIdx.x * 16 + threadIdx.y;
    if (i < n && j < n) y[(long long)j * n + i] = tile[threadIdx.x][threadIdx.y];
}
// An inclusive scan of each warp's 32 numbers.
extern "C" __global__ void scan(int* x) {
    __shared__ int s[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * blockDim.x + threadIdx.x;
    s[warp][lane] = x[i];
    for (int d = 1; d < 32; d *= 2) {
        __syncwarp();
        const int before = lane >= d ? s[warp][lane - d] : 0;
        __syncwarp();  // read
        s[warp][lane] += before;
    }
    x[i] = s[warp][lane];
}
extern "C" __global__ void scan_unsynchronised(int* x) {
    __shared__ int s[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * blockDim.x + threadIdx.x;
    s[warp][lane] = x[i];
    for (int d = 1; d < 32; d *= 2) {
        __syncwarp();
        const int before = lane >= d ? s[warp][lane - d] : 0;
        s[warp][lane] += before;
    }
    x[i] = s[warp][lane];
}
// The halves of a warp go their own ways.
extern "C" __global__ void half_warps(int* x, unsigned mask) {
    __shared__ int s[32];
    const int lane = threadIdx.x;
    s[lane] = x[lane];
    if (lane < 16) {
        __syncwarp(mask);
        x[lane] = s[lane ^ 1];
    } else {
        x[lane] = __shfl_xor_sync(0xffff0000u, s[lane], 2);
    }
}
// The lower half meets without lane 0, whose number lane 1 reads.
extern "C" __global__ void short_mask(int* x) {
    __shared__ int s[32];
    const int lane = threadIdx.x;
    s[lane] = x[lane];
    if (lane > 0) {
        __syncwarp(0xfffffffeu);
        x[lane] = s[lane - 1];
    }
}
extern "C" __global__ void histogram(const unsigned char* x, int n, unsigned long long* counts, float* weight) {
    __shared__ unsigned bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&bins[x[i] % 16], 1u);
        atomicAdd(weight, 1.0f);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], (unsigned long long)bins[threadIdx.x]);
}
// Neighbours in memory are no race, however small.
extern "C" __global__ void bytes(unsigned char* x, short* y, int apart) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    x[i / apart] = (unsigned char)i;
    y[i] = (short)(x[i / apart] + 1);
}
// Every block reads what the last one to finish changes.
extern "C" __global__ void read_then_changed(float* shared_by_all, float* out, unsigned* counter) {
    __shared__ bool last;
    out[blockIdx.x * blockDim.x + threadIdx.x] = shared_by_all[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) last = atomic_add_acquire_release(counter, 1u) == gridDim.x - 1;
    __syncthreads();
    if (last) shared_by_all[threadIdx.x] += 1;
}
extern "C" __global__ void read_then_changed_unordered(float* shared_by_all, float* out, unsigned* counter) {
    __shared__ bool last;
    out[blockIdx.x * blockDim.x + threadIdx.x] = shared_by_all[threadIdx.x];
    if (threadIdx.x == 0) last = atomic_add_acquire_release(counter, 1u) == gridDim.x - 1;
    __syncthreads();
    if (last) shared_by_all[threadIdx.x] += 1;
}
extern "C" __global__ void all_read_one_writes(float* out, int writer) {
    __shared__ float s;
    if (threadIdx.x == 0) s = 1;
    __syncthreads();
    out[threadIdx.x] = s;
    if (threadIdx.x == writer) s = 2;
}
struct Table { const float* x[2]; float* y[2]; int n; };
extern "C" __global__ void by_table(const Table t, const unsigned long long* addresses, bool negate) {
    const float* const z = reinterpret_cast<const float*>(addresses[0]);
    __builtin_assume(__isGlobal(z));
    for (int k = 0; k < 2; ++k)
        if (threadIdx.x < t.n) t.y[k][threadIdx.x] = (negate ? -1.0f : 1.0f) * t.x[k][threadIdx.x] + __ldg(z + k);
}
extern "C" __global__ void copy(const float* x, float* y, long long n) {
    for (long long i = threadIdx.x; i < n; i += blockDim.x) __stcs(y + i, __ldcs(x + i));
}
__device__ __forceinline__ float reach(const float* x, int i) { return x[i]; }
extern "C" __global__ void stray(const float* x, float* y, int by) {
#line 77 "other.cuh"
    y[threadIdx.x] = reach(x, by);
}
#line 200 "patterns.cu"
extern "C" __global__ void shared_48k(float* y) {
    __shared__ float s[12000];
    extern __shared__ float d[];
    s[threadIdx.x] = d[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[threadIdx.x] + d[threadIdx.x];
}
extern "C" __global__ void endless(volatile int* x) { while (x[0] == 0) {} }
extern "C" __global__ void failing(int* x) { assert(x[0] == 1); __builtin_assume(x[1] == 2); }
"""
ARITHMETIC = r"""
#line 1 "arithmetic.cu"
extern "C" __global__ void in_float(const float* a, const float* b, const float* c, float* out, int n) {
    const int i = threadIdx.x;
    const float results[] = {fmaf(a[i], b[i], c[i]), __fmaf_rn(a[i], b[i], c[i]), __fadd_rn(a[i], b[i]),
                             __fsub_rn(a[i], b[i]), __fmul_rn(a[i], b[i]), __fdiv_rn(a[i], b[i]),
                             __frcp_rn(a[i]), a[i] * b[i] + c[i], __fsqrt_rn(fabsf(a[i]))};
    for (int k = 0; k < 9; ++k) out[k * n + i] = results[k];
}
extern "C" __global__ void in_double(const double* a, const double* b, const double* c, double* out, int n) {
    const int i = threadIdx.x;
    const double results[] = {fma(a[i], b[i], c[i]), __fma_rn(a[i], b[i], c[i]), __dadd_rn(a[i], b[i]),
                              __dsub_rn(a[i], b[i]), __dmul_rn(a[i], b[i]), __ddiv_rn(a[i], b[i]),
                              __drcp_rn(a[i]), a[i] * b[i] + c[i], __dsqrt_rn(fabs(a[i]))};
    for (int k = 0; k < 9; ++k) out[k * n + i] = results[k];
}
extern "C" __global__ void in_bits(long long* out, float nan, float big) {
    int k = 0;
    out[k++] = __popc(0xf0f0u); out[k++] = __popcll(~0ull); out[k++] = __clz(1); out[k++] = __clzll(0);
    out[k++] = __ffs(8); out[k++] = __ffsll(0); out[k++] = __umulhi(~0u, ~0u); out[k++] = __float_as_int(1.0f);
    out[k++] = __double_as_longlong(1.0); out[k++] = __double2hiint(1.0); out[k++] = __double2loint(1.0);
    out[k++] = __double_as_longlong(__hiloint2double(0x3ff00000, 7)); out[k++] = __float2int_rn(2.5f);
    out[k++] = __float2int_rz(-2.5f); out[k++] = __float2int_rn(nan); out[k++] = __float2int_rn(big);
    out[k++] = __float2int_rn(-big); out[k++] = __float2uint_rn(-1.0f);
    out[k++] = (long long)__umul64hi(1ull << 40, 1ull << 40);
    out[k++] = min(nan, 3.0f) == 3.0f; out[k++] = max(-2.0, -3) == -2.0; out[k++] = isnan(nan); out[k++] = min(-1, 2);
    out[k++] = dim3(4).y; out[k++] = make_float4(1, 2, 3, 4).w; out[k++] = sizeof(double2) + alignof(float4);
    static_assert(sizeof(float4) == 16, "");
}
extern "C" __global__ void in_warps(int* out) {
    const int i = threadIdx.x, lane = i % 32;
#pragma unroll
    for (int k = 0; k < 1; ++k) {}
    int results[] = {__shfl_sync(~0u, i, 5), __shfl_sync(~0u, i, 5, 8), __shfl_up_sync(~0u, i, 3),
                     __shfl_down_sync(~0u, i, 3, 16), __shfl_xor_sync(~0u, i, 9),
                     int(__ballot_sync(~0u, lane % 3 == 0)), __any_sync(~0u, i == 40), __all_sync(~0u, i >= 32),
                     __syncthreads_count(i % 2), __syncthreads_or(i == 3), __syncthreads_and(i != 3)};
    for (int k = 0; k < 11; ++k) out[k * blockDim.x + i] = results[k];
}
extern "C" __global__ void indices(int* out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}
extern "C" __global__ void halve_float(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] * 0.5f; }
extern "C" __global__ void halve_double(const double* x, double* y) { y[threadIdx.x] = x[threadIdx.x] * 0.5; }
"""


@pytest.fixture(scope="module", params=["check", "plain"])
def patterns(request) -> CpuModule:
    code = f'{SYNC}\n#line 1 "patterns.cu"{PATTERNS}{ARITHMETIC}'
    return CpuModule(code, re.findall(r"__global__ void (\w+)", code), request.param)


@pytest.fixture
def checked(patterns) -> CpuModule:
    if patterns.mode != "check":
        pytest.skip("mode plain does not see it")
    return patterns


@pytest.mark.parametrize("policy", SCHEDULES)
def test_patterns_give_no_alarm(patterns, policy):
    def run(name, grid, block, *args):
        patterns.get_function(name)(grid, block, args, policy=policy)

    x = np.random.default_rng(1).standard_normal((37, 37))
    y = np.zeros_like(x)
    run("transpose", (3, 3), (16, 16), x, y, np.int32(37))
    np.testing.assert_array_equal(y, x.T)
    x = np.arange(512, dtype=np.int32)
    expected = x.reshape(-1, 32).cumsum(axis=1).ravel()
    run("scan", (4,), (128,), x)
    np.testing.assert_array_equal(x, expected)
    x = np.arange(32, dtype=np.int32)
    expected = np.where(x < 16, x ^ 1, 16 + ((x - 16) ^ 2))
    run("half_warps", (1,), (32,), x, np.uint32(0xFFFF))
    np.testing.assert_array_equal(x, expected)
    x, counts, weight = np.arange(999).astype(np.uint8), np.zeros(16, np.uint64), np.zeros(1, np.float32)
    run("histogram", (3,), (50,), x, np.int32(999), counts, weight)
    np.testing.assert_array_equal(counts, np.bincount(x % 16, minlength=16))
    assert weight[0] == 999
    x, y = np.zeros(100, np.uint8), np.zeros(100, np.int16)
    run("bytes", (4,), (25,), x, y, np.int32(1))
    np.testing.assert_array_equal(y, np.arange(100) + 1)
    x, y = np.arange(40, dtype=np.float32), np.zeros((6, 40), np.float32)
    run("read_then_changed", (6,), (40,), x, y, np.zeros(1, np.uint32))
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(40), (6, 40)))
    np.testing.assert_array_equal(x, np.arange(40) + 1)


@pytest.mark.parametrize("policy", SCHEDULES)
def test_their_neighbours_do(checked, policy):
    def fails(says, name, grid, block, *args):
        with pytest.raises(LaunchError, match=says):
            checked.get_function(name)(grid, block, args, policy=policy)

    numbers = np.arange(32, dtype=np.int32)
    fails("race.*__shared__ .*::s, byte", "scan_unsynchronised", (1,), (32,), numbers)
    fails("not in the mask that it passes|never written", "half_warps", (1,), (32,), numbers, np.uint32(0xFFFE))
    fails("race|never written", "short_mask", (1,), (32,), numbers)
    fails("race.*argument 0", "bytes", (4,), (25,), np.zeros(100, np.uint8), np.zeros(100, np.int16), np.int32(2))
    for writer in (0, 127):
        fails("race.*::s, byte 0", "all_read_one_writes", (1,), (128,), np.zeros(128, np.float32), np.int32(writer))
    x, y = np.zeros(40, np.float32), np.zeros((6, 40), np.float32)
    fails("race.*argument 0", "read_then_changed_unordered", (6,), (40,), x, y, np.zeros(1, np.uint32))


def test_arrays_by_tables_and_structs(patterns):
    n, z = 5, np.array([10, 20], np.float32)
    x, y = [np.arange(n, dtype=np.float32) + k for k in (1, 2)], [np.zeros(n, np.float32) for _ in range(2)]
    table = np.zeros(1, [("x", np.uintp, 2), ("y", np.uintp, 2), ("n", np.int32), ("", np.int32)])
    table["x"], table["y"], table["n"] = [a.ctypes.data for a in x], [a.ctypes.data for a in y], n
    addresses = np.array([z.ctypes.data], np.uint64)
    run = patterns.get_function("by_table")
    run((1,), (32,), (table, addresses, True), touches=[*x, *y, z])
    np.testing.assert_array_equal(y, [z[k] - x[k] for k in range(2)])
    if patterns.mode == "check":
        with pytest.raises(LaunchError, match=r"outside of every array|past the end of"):
            run((1,), (32,), (table, addresses, True), touches=[*x, y[0], z])


def test_accesses_outside_of_arrays(checked):
    x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
    copy = checked.get_function("copy")
    with pytest.raises(
        LaunchError, match=r"read 0 bytes past the end of argument 0 by thread 0 .* at patterns\.cu:\d+"
    ):
        copy((1,), (32,), (x[:32], y, np.int64(33)))
    with pytest.raises(LaunchError, match=r"write 0 bytes past the end of argument 1 by thread 31"):
        copy((1,), (32,), (x, y[:31], np.int64(32)))
    with pytest.raises(LaunchError, match="write through a null pointer"):
        copy((1,), (32,), (x, None, np.int64(32)))
    y.flags.writeable = False
    with pytest.raises(LaunchError, match="write to a read-only array: argument 1, byte 0"):
        copy((1,), (32,), (x, y, np.int64(32)))
    copy((1,), (32,), (x[:32], x[32:], np.int64(32)))
    copy((1,), (32,), (x[1:33], x[1:33], np.int64(32)))  # in place
    with pytest.raises(LaunchError, match=r"race, .* argument 0 / argument 1"):
        copy((1,), (32,), (x[1:33], x[:32], np.int64(32)))


def test_errors_name_the_line_that_a_line_directive_gives(checked):
    y = np.zeros(32, np.float32)
    says = r"stray: read outside .* at patterns\.cu:\d+, called at other\.cuh:77$"
    with pytest.raises(LaunchError, match=says):
        checked.get_function("stray")((1,), (32,), (np.zeros(4, np.float32), y, np.int32(100_000)))
    with pytest.raises(CompileError, match=r"broken\.cu:8:\d+: error"):
        CpuModule('#line 7 "broken.cu"\nextern "C" __global__ void f() {\n  y = 3;\n}', ["f"])
    with pytest.raises(LaunchError, match=r"assertion failed: x\[0\] == 1 by thread 0 .* at patterns\.cu:\d+$"):
        checked.get_function("failing")((1,), (1,), (np.zeros(2, np.int32),))
    with pytest.raises(LaunchError, match=r"an assumption does not hold by thread 0 .* at patterns\.cu:\d+$"):
        checked.get_function("failing")((1,), (1,), (np.ones(2, np.int32),))


def test_a_loop_without_end(checked):
    with pytest.raises(LaunchError, match=r"no end is in sight: \d+ accesses by thread 0"):
        checked.get_function("endless")((1,), (1,), (np.zeros(1, np.int32),))


def test_argument_kinds(patterns):
    x = np.zeros(8, np.float32)
    copy = patterns.get_function("copy")
    copy((1,), (8,), (x, x, 8))  # Python's int has 64 bits
    for args, have in [
        ((x, x, np.int32(8)), "p8 p8 i4"),
        ((x, x, 8.0), "p8 p8 f8"),
        ((x, x), "p8 p8"),
        ((x, np.float32(1), 8), "p8 f4 i8"),
        ((x, x.ctypes.data, 8), "p8 i8 i8"),
    ]:
        with pytest.raises(LaunchError, match=f"copy: arguments are '{have}', the kernel takes 'p8 p8 i8'"):
            copy((1,), (8,), args)
    with pytest.raises(LaunchError, match="an argument is str: expected an array, a number, a struct, or None"):
        copy((1,), (8,), (x, x, "8"))


@pytest.mark.parametrize(
    ("grid", "block", "says"),
    [
        ((1, 65536), (32,), "grid is"),
        ((1, 1, 65536), (32,), "grid is"),
        ((0,), (32,), "grid is"),
        ((1,), (1025,), "block is"),
        ((1,), (1, 1, 65), "block is"),
        ((1,), (32, 33), "1056 threads in a block"),
        ((1,), (0,), "block is"),
        ((1, 1, 1, 1), (1,), "grid is"),
        ((2**31 - 1,), (1,), "too many to run on the CPU"),
    ],
)
def test_shapes_that_a_device_refuses(patterns, grid, block, says):
    with pytest.raises(LaunchError, match=says):
        patterns.get_function("indices")(grid, block, (np.zeros(1, np.int32),))


def test_shared_memory_limits(patterns):
    run = patterns.get_function("shared_48k")  # 48 000 bytes of static shared memory
    y = np.zeros(32, np.float32)
    run((1,), (32,), (y,), shared_mem=49152 - 48000)
    np.testing.assert_array_equal(y, 2 * np.arange(32))
    with pytest.raises(LaunchError, match=r"1156 bytes of dynamic shared memory besides 48000 of static"):
        run((1,), (32,), (y,), shared_mem=49156 - 48000)
    run.max_dynamic_shared_size_bytes = 180_000
    run((1,), (32,), (y,), shared_mem=180_000)
    with pytest.raises(LaunchError, match="180004 bytes of dynamic"):
        run((1,), (32,), (y,), shared_mem=180_004)
    run.max_dynamic_shared_size_bytes = 200_000
    with pytest.raises(LaunchError, match="100 bytes of dynamic"):
        run((1,), (32,), (y,), shared_mem=100)
    with pytest.raises(CompileError, match="49156 bytes; a device takes 49152"):
        CpuModule(
            'extern "C" __global__ void f(float* x) { __shared__ float s[12289]; s[0] = *x; *x = s[*(int*)x]; }',
            ["f"],
            "plain",
        )
    with pytest.raises(CompileError, match="declare dynamic shared memory in the kernel"):
        CpuModule("extern __shared__ float s[];", [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_is_rounded_once(patterns, dtype):
    n, rng = 200, np.random.default_rng(5)
    a, b, c = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    c[: n // 2] = -(a * b)[: n // 2]  # where a second rounding of the product shows
    out = np.empty((9, n), dtype)
    patterns.get_function(f"in_{'float' if dtype is np.float32 else 'double'}")((1,), (n,), (a, b, c, out, np.int32(n)))

    def rounded(value: Fraction):
        nearest = dtype(float(value))  # at most one step away, for float32
        near = [np.nextafter(nearest, dtype(-np.inf)), nearest, np.nextafter(nearest, dtype(np.inf))]
        return min(near, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(f"i{x.itemsize}")) & 1))

    fma = [
        rounded(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r))) for p, q, r in zip(a, b, c, strict=True)
    ]
    one = dtype(1)
    expected = [fma, fma, a + b, a - b, a * b, a / b, one / a, a * b + c, np.sqrt(abs(a))]
    np.testing.assert_array_equal(out, expected)


def test_bits_and_conversions(patterns):
    out = np.zeros(26, np.int64)
    patterns.get_function("in_bits")((1,), (1,), (out, np.float32(np.nan), np.float32(1e20)))
    expected = [8, 64, 31, 64, 4, 0, 2**32 - 2, 0x3F800000, 0x3FF0000000000000, 0x3FF00000, 0, 0x3FF0000000000007, 2,
                -2, 0, 2**31 - 1, -(2**31), 0, 1 << 16, 1, 1, 1, -1, 1, 4, 32]  # fmt: skip
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("policy", SCHEDULES)
def test_warp_and_block_functions(patterns, policy):
    out = np.zeros((11, 64), np.int32)
    patterns.get_function("in_warps")((1,), (64,), (out,), policy=policy)
    i = np.arange(64)
    lane, warp = i % 32, i // 32 * 32
    ballot = np.int64(sum(1 << k for k in range(0, 32, 3))).astype(np.int32)
    expected = [warp + 5, i // 8 * 8 + 5, np.where(lane < 3, i, i - 3), np.where(i % 16 + 3 < 16, i + 3, i),
                warp + (lane ^ 9), np.full(64, ballot), i >= 32, i >= 32, np.full(64, 32), np.full(64, 1),
                np.full(64, 0)]  # fmt: skip
    np.testing.assert_array_equal(out, expected)


def test_every_thread_runs_once(patterns):
    out = np.zeros((2 * 3 * 2, 4 * 3 * 5), np.int32)
    patterns.get_function("indices")((2, 3, 2), (4, 3, 5), (out,), policy=5)
    np.testing.assert_array_equal(out, 1000 * np.arange(12)[:, None] + np.arange(60))


def test_subnormal_numbers_are_flushed_as_by_ftz(patterns):
    tiny, tinier = np.full(4, 1e-40, np.float32), np.full(4, 1e-310)
    y, z = np.ones(4, np.float32), np.ones(4)
    patterns.get_function("halve_float")((1,), (4,), (tiny, y))
    assert (y == 0).all()
    assert tiny[0] * np.float32(0.5) > 0  # the processor's mode is what it was
    patterns.get_function("halve_double")((1,), (4,), (tinier, z))
    assert (z == tinier / 2).all()
    code = 'extern "C" __global__ void halve(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] * 0.5f; }'
    for ftz in (True, False):
        CpuModule(code, ["halve"], "plain", ftz=ftz).get_function("halve")((1,), (4,), (tiny, y))
        assert (y == 0).all() == ftz


# --- the cache


@pytest.fixture
def empty_cache(monkeypatch, tmp_path) -> Path:
    """An empty folder for modules, the engine being built already."""
    engine = module._engine("plain")
    monkeypatch.setattr(module, "_engine", lambda mode: engine)
    monkeypatch.setattr(module, "_cache_folder", lambda: tmp_path)
    return tmp_path


def test_a_module_is_built_once(monkeypatch, empty_cache):
    code = 'extern "C" __global__ void f(int* x) { __shared__ int s; s = VALUE; x[0] = s; }'

    def result(value: int) -> int:
        x = np.zeros(1, np.int32)
        CpuModule(code, ["f"], "plain", [f"-DVALUE={value}"]).get_function("f")((1,), (1,), (x,))
        return int(x[0])

    runs = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda command: runs.append(command) or run(command))
    assert [result(1), result(1)] == [1, 1]
    assert len(runs) == 2  # compiled, linked
    assert result(2) == 2
    assert len(runs) == 4
    assert sorted(path.suffix for path in empty_cache.iterdir()) == [".json", ".json", ".so", ".so"]


def test_the_oldest_modules_are_deleted(monkeypatch, empty_cache):
    monkeypatch.setattr(module, "MODULES_KEPT", 1)
    for k in range(3):
        CpuModule(f'extern "C" __global__ void f(int* x) {{ x[0] = {k}; }}', ["f"], "plain")
    assert len(list(empty_cache.glob("*.so"))) == 2


def test_unknown_names():
    with pytest.raises(ValueError, match="mode is 'fast'; expected one of plain, check"):
        CpuModule("", [], "fast")
    with pytest.raises(KeyError, match="no kernel 'g' was asked for; there are f"):
        CpuModule('extern "C" __global__ void f() {}', ["f"], "plain").get_function("g")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "g++ is not on the PATH" in str(module.why_unavailable())
