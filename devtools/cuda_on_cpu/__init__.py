"""Run CUDA C++ kernels on NumPy arrays, on the CPU, under a checker.

    module = CpuModule(code, ["scale"])
    module.get_function("scale")((4,), (256,), (x, np.float32(2), np.int64(x.size)))

The calling form is CuPy's RawModule's; all that is needed is g++ on Linux. A thread of a kernel is a fiber, so launches
are deterministic; one of 1e5 threads takes 20 ms, and building a file of six kernels 0.4 s, once (Zen 5).

In mode "check" each of these ends the launch with an error that names array, byte, threads and source line:

- reads and writes outside of the arrays given to the launch, in shared memory beyond its variable, of misaligned
  vectors, and writes to arrays that NumPy holds read-only;
- races: accesses that no barrier, __syncwarp, or release and acquire orders, whatever the schedule. Between blocks,
  the writer needs __threadfence() before its atomic, and the reader one after its own; or kernels/sync.cuh;
- shared memory that is read before it is written;
- barriers and warp collectives that only some threads reach, deadlocks, and loops without end.

Mode "plain" finds barriers that only some threads reach and deadlocks alone; shared memory starts as NaNs in both.

CuPy flushes subnormal floats; so does a launch on float32 arrays alone, unless CpuModule is told otherwise. Under
NVRTC's -fmad=false, sums, products, quotients, roots and fmaf are rounded by IEEE's rules there as here.

What can't be seen, and is left to runs on a device:

- the device's expf, tanhf, rsqrtf, __expf and the like: other last bits;
- what depends on how threads interleave between two barriers; of a release and an acquire, orders other than those run;
- an overrun from one array into another that begins where the first ends, as in views of one buffer;
- races on variables of the module (__device__, __constant__), and atomic loads that race with plain stores;
- plain or volatile reads in place of atomics: reported as races, which on a device may happen to work;
- __threadfence_block(), which orders nothing here; inline PTX, textures, cooperative_groups, cub, half types: missing;
- registers, spills, occupancy, speed, and the number of threads that __launch_bounds__ allows.
"""

from .module import CompileError, CpuFunction, CpuModule, LaunchError, why_unavailable

__all__ = ["CompileError", "CpuFunction", "CpuModule", "LaunchError", "why_unavailable"]
