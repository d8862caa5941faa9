"""Say what this machine can do, and why not more: `doctor` and its report."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from fastgrad import _gpu, _machine
from fastgrad._dispatch import backend as use_backend
from fastgrad._dispatch import get_backend

# What the kernels use of a processor, best first: feature in LLVM's name, in that of /proc/cpuinfo, name, bytes.
VECTORS = (
    ("+avx512f", "avx512f", "AVX-512", 64),
    ("+avx2", "avx2", "AVX2", 32),
    ("+avx", "avx", "AVX", 32),
    ("+sse2", "sse2", "SSE2", 16),
    ("+neon", "asimd", "NEON", 16),
)
LAYERS = {
    "tbb": "TBB: several Python threads can run kernels at once",
    "omp": "OpenMP: several Python threads can run kernels at once",
    "workqueue": "workqueue: parallel kernels of several Python threads take turns",
}
PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "torch", "cupy-cuda13x", "cupy-cuda12x", "cupy")
MEASURED_BYTES = 1 << 26  # of each array that is copied: past most caches
MEASURED_SECONDS = 0.12  # for each of six figures


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report.

    topic: what it is about, "threads" for instance.
    value: what was found.
    advice: what to do where that is a limit; "" where there is nothing to do.
    broken: whether something does not work that should; a limit is no such thing.
    """

    topic: str
    value: str
    advice: str = ""
    broken: bool = False


@dataclass(frozen=True)
class DoctorReport:
    """What `doctor` found; print it. `report["threads"]` is the finding of a topic."""

    findings: tuple[Finding, ...]

    def __getitem__(self, topic: str) -> Finding:
        for finding in self.findings:
            if finding.topic == topic:
                return finding
        raise KeyError(f"{topic!r}: expected one of {', '.join(f.topic for f in self.findings)}")

    @property
    def broken(self) -> bool:
        """Whether anything is broken: the exit status of `fastgrad doctor`."""
        return any(finding.broken for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {"broken": self.broken, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        width = max(len(finding.topic) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.topic:{width}}  {'BROKEN: ' if finding.broken else ''}{finding.value}")
            if finding.advice:
                lines.append(f"{'':{width}}  -> {finding.advice}")
        return "\n".join(lines)


def doctor(measure: bool = False) -> DoctorReport:
    """Say what this machine can do for the kernels, and what keeps them from doing more.

    Looks at the processor and its vectors, cores, threads and the threading layer, NumPy's BLAS, the compile cache and
    whether a kernel compiles and is right, huge pages, memory, versions, the GPU and its compiler, and where the choice
    between the two ways of an LSTM or GRU on it comes from. Nothing is changed, and nothing missing is an error: what
    can't be found out is said.

    Args:
        measure: also spend about a second on what is reached: copying with stores past the caches, and matrix products
            in float32 and float64, on one thread and on all that are set. Takes 150 MB. Let nothing else run meanwhile.

    Returns:
        A report; `print` shows it, one line for each topic, with advice under those that name a limit.
    """
    sections: list[tuple[str, Callable[[], Finding]]] = [
        ("versions", versions),
        ("processor", lambda: Finding("processor", f"{_machine.processor()} ({platform.machine() or 'unknown'})")),
        ("vectors", vectors),
        ("cores", cores),
        ("threads", threads),
        ("threading layer", threading_layer),
        ("blas", blas),
        ("compile cache", compile_cache),
        ("kernels", kernels),
        ("huge pages", huge_pages),
        ("memory", memory),
        ("backend", backend),
        ("gpu", gpu),
        ("nvrtc", nvrtc),
        ("recurrent", recurrent),
    ]
    if measure:
        sections += [
            ("copy", measured_copy),
            ("product float32", lambda: measured_product("float32")),
            ("product float64", lambda: measured_product("float64")),
        ]
    return DoctorReport(tuple(_examined(topic, section) for topic, section in sections))


def _examined(topic: str, section: Callable[[], Finding]) -> Finding:
    # A broken installation is what this is called for: whatever a part of it raises belongs into the report.
    try:
        return section()
    except Exception as error:
        message = " ".join(str(error).split())
        advice = "Numba can't be used: pip install --upgrade fastgrad numba" if isinstance(error, ImportError) else ""
        return Finding(topic, f"not known: {type(error).__name__}: {message}", advice, True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> Finding:
    import fastgrad

    found = [(name, _version(name)) for name in PACKAGES]
    numbers = [f"{name} {number}" for name, number in found if number is not None]
    own = f"fastgrad {fastgrad.__version__}, python {platform.python_version()}"
    return Finding("versions", ", ".join([own, *numbers]))


def vectors() -> Finding:
    from fastgrad.kernels import runtime

    triple, _, features = runtime.target()
    used = set(features.split(","))
    if triple.startswith(("aarch64", "arm64")):
        used.add("+neon")  # part of the architecture
    rank = next((i for i, row in enumerate(VECTORS) if row[0] in used), None)
    if rank is None:
        return Finding("vectors", "none that fastgrad knows: whatever LLVM makes of the kernels")
    _, _, title, size = VECTORS[rank]
    value = f"{title}: {size} bytes, {size // 4} float32 or {size // 8} float64 at once"
    better = [row[2] for row in VECTORS[:rank] if row[1] in _machine.processor_flags()]
    if better:
        names = [name for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX") if name in os.environ]
        how = f"unset {' and '.join(names)}" if names else "LLVM holds it back, or Numba's configuration does"
        return Finding("vectors", value, f"the processor has {better[0]}, which Numba does not use: {how}")
    if rank:
        value += "; the processor has no wider ones that kernels use"
    if triple.startswith(("x86_64", "i686")) and "+fma" not in used:
        return Finding("vectors", value, "no fused multiply-add: it is a function call here, and all kernels are slow")
    return Finding("vectors", value)


def cores() -> Finding:
    total, allowed, quota = _machine.cores(), _machine.allowed_cores(), _machine.cpu_quota()
    value = f"{allowed} of the machine's {total}"
    limits = []
    if allowed < total:
        limits.append("the affinity of this process leaves some out (taskset, a job scheduler, docker --cpuset-cpus)")
    if quota is not None:
        value += f", {quota:g} processors' worth of time"
        if quota < allowed:
            limits.append("the control group limits the time (docker --cpus): more threads than that get paused")
    return Finding("cores", value, "; ".join(limits))


def threads() -> Finding:
    from fastgrad.kernels import runtime

    used, most, usable = runtime.num_threads(), runtime.max_threads(), _machine.usable_cores()
    value = f"{used} of at most {most}"
    if "NUMBA_NUM_THREADS" in os.environ:
        value += f", NUMBA_NUM_THREADS={os.environ['NUMBA_NUM_THREADS']}"
    if runtime.pool_lost():
        return Finding(
            "threads",
            f"{value}: the threads stayed behind in the parent of this process",
            "start processes with 'spawn', or fork before the first kernel runs",
        )
    if used > usable:
        advice = f"more than the {usable} that can run at once get in each other's way: set_num_threads({usable})"
        return Finding("threads", value, advice)
    if most < usable:
        return Finding("threads", value, f"{usable} could run at once: set NUMBA_NUM_THREADS={usable}, or unset it")
    if used < min(most, usable):
        return Finding("threads", value, f"{usable} could run at once: fastgrad.set_num_threads({min(most, usable)})")
    return Finding("threads", value)


def threading_layer() -> Finding:
    from fastgrad.kernels import runtime

    if runtime.max_threads() == 1:
        return Finding("threading layer", "none: there is one thread")
    if runtime.pool_lost():
        return Finding("threading layer", "not used after the fork")
    layer = runtime.threading_layer()
    advice = "pip install tbb, or install OpenMP's library (libgomp, libomp)" if layer == "workqueue" else ""
    return Finding("threading layer", LAYERS.get(layer, layer), advice)


def blas() -> Finding:
    """What NumPy multiplies matrices with: fastgrad does not, but its threads are on the same cores."""
    import threadpoolctl

    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    if not found:
        return Finding("blas", "not known: threadpoolctl does not see NumPy's")
    parts = [
        f"{info['internal_api']} {info['version'] or ''} ({info.get('architecture', 'unknown')} kernels), "
        f"{info['num_threads']} thread{'s' if info['num_threads'] > 1 else ''}"
        for info in found
    ]
    most, usable = max(info["num_threads"] for info in found), _machine.usable_cores()
    advice = ""
    if most > usable:
        names = {"openblas": "OPENBLAS_NUM_THREADS", "mkl": "MKL_NUM_THREADS", "blis": "BLIS_NUM_THREADS"}
        name = names.get(found[0]["internal_api"], "OMP_NUM_THREADS")
        advice = f"more threads than the {usable} that can run at once get in each other's way: export {name}={usable}"
    return Finding("blas", "; ".join(dict.fromkeys(parts)), advice)


def kernels() -> Finding:
    """Whether a kernel compiles, runs on all threads, and is right."""
    from fastgrad.activations import activation
    from fastgrad.kernels import compiler  # noqa: F401  what comes from the cache would not say that Numba is missing

    x = np.linspace(-3.0, 3.0, 1 << 17, dtype=np.float32)
    start = time.perf_counter()
    with use_backend("cpu"):
        found = activation(x, "relu")
    seconds = time.perf_counter() - start
    if not np.array_equal(found, np.maximum(x, 0)):
        advice = "empty the compile cache: rm -r ~/.cache/fastgrad, or set FASTGRAD_CACHE_DIR to an empty folder"
        return Finding("kernels", "a kernel computes something else than its definition", advice, True)
    return Finding("kernels", f"one compiled or loaded, run and found right in {seconds:.2f} s")


def compile_cache() -> Finding:
    from fastgrad.kernels import runtime

    state = runtime.cache_state()
    wanted = "set FASTGRAD_CACHE_DIR to a folder that this user owns and can write"
    trouble = "; ".join(state.trouble)
    if not state.folders:
        return Finding("compile cache", "none, each process compiles anew", f"{trouble}: {wanted}", True)
    parts = []
    for folder in state.folders:
        sizes = [path.stat().st_size for path in folder.glob("*.bin")]
        kept = ", writable" if folder == state.written else ", read only"
        parts.append(f"{folder}: {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB{kept}")
    if state.written is None:
        parts.append("what is not there each process compiles anew")
    return Finding("compile cache", "; ".join(parts), f"{trouble}: {wanted}" if trouble else "")


def huge_pages() -> Finding:
    setting = _machine.huge_pages()
    if setting is None:
        return Finding("huge pages", "not known on this system")
    if setting == "never":
        return Finding(
            "huge pages",
            "never: large arrays lie on pages of 4 KB, which makes kernels up to 1.7 times slower",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if setting == "madvise" and os.environ.get("NUMPY_MADVISE_HUGEPAGE") == "0":
        return Finding("huge pages", "madvise, but NumPy is told not to ask", "unset NUMPY_MADVISE_HUGEPAGE")
    asked = ": NumPy asks for them for its large arrays" if setting == "madvise" else ""
    return Finding("huge pages", f"{setting}{asked}")


def memory() -> Finding:
    available = _machine.available_memory()
    return Finding("memory", "not known on this system" if available is None else f"{available / 1e9:.1f} GB available")


def backend() -> Finding:
    if get_backend() == "reference":
        advice = "fastgrad.set_backend(None), or leave the `with fastgrad.backend(...)` block"
        return Finding("backend", "reference: the definitions in plain NumPy, which are slow", advice)
    return Finding("backend", "cpu: compiled kernels")


def gpu() -> Finding:
    cupy, reason, advice, broken = _gpu.gpu_status()
    if cupy is None:
        installed = sys.modules.get("cupy")
        compiler = "" if installed is None else f"; {_compiler(installed)}"
        driver = _machine.nvidia_driver()
        if driver is not None:
            compiler += f"; driver {driver}"
        return Finding("gpu", f"none: {reason}{compiler}", advice, broken)
    runtime = cupy.cuda.runtime
    parts = []
    for ordinal in range(runtime.getDeviceCount()):
        found = runtime.getDeviceProperties(ordinal)
        capability = f"compute capability {found['major']}.{found['minor']}"
        parts.append(f"{found['name'].decode()} ({capability}, {found['totalGlobalMem'] / 1e9:.0f} GB)")
    return Finding("gpu", ", ".join([*parts, f"CuPy {cupy.__version__}", _compiler(cupy)]))


ONE_LINE = 'extern "C" __global__ void one(float* x) { *x = 1.0f; }'


def nvrtc() -> Finding:
    """Whether NVIDIA's run-time compiler compiles a line; it needs no GPU for that."""
    status = _gpu.gpu_status()
    cupy = status.cupy or sys.modules.get("cupy")
    install = 'pip install "fastgrad[cuda13]" (or cuda12) brings it'
    if cupy is None:
        return Finding("nvrtc", "not asked: it is reached through CuPy, which is not there")
    version = _gpu.nvrtc_version(cupy)
    if version is None:
        return Finding("nvrtc", "CuPy does not find it", install, status.cupy is not None)
    compiler, title = cupy.cuda.nvrtc, f"NVRTC {version[0]}.{version[1]}"
    architecture = "compute_75"  # the oldest that CUDA 13 knows
    if status.cupy is not None:
        found = cupy.cuda.runtime.getDeviceProperties(0)
        architecture = f"compute_{found['major']}{found['minor']}"
    try:
        program = compiler.createProgram(ONE_LINE, "one.cu", [], [])
        compiler.compileProgram(program, [f"--gpu-architecture={architecture}"])
        size = len(compiler.getPTX(program))
        compiler.destroyProgram(program)
    except Exception as error:
        message = " ".join(str(error).split())
        advice = f"pip install --force-reinstall nvidia-cuda-nvrtc~={version[0]}.{version[1]}"
        return Finding("nvrtc", f"{title} can't compile a line for {architecture}: {message}", advice, True)
    return Finding("nvrtc", f"{title} compiles a line for {architecture}: {size} bytes of PTX")


def _compiler(cupy: Any) -> str:
    version = _gpu.nvrtc_version(cupy)
    return "no NVRTC" if version is None else f"NVRTC {version[0]}.{version[1]}"


def recurrent() -> Finding:
    """Where the choice between the two ways through the steps of an LSTM or GRU comes from."""
    cupy = _gpu.gpu_status().cupy
    if cupy is None:
        return Finding("recurrent", "not asked: the choice between two ways through the steps is a GPU's")
    from fastgrad.kernels import cuda, recurrent_choice, recurrent_gpu

    method = recurrent_gpu.method()
    if method != "auto":
        return Finding("recurrent", f"{method}, as FASTGRAD_RECURRENT or set_method says")
    found = recurrent_choice.choice(cuda.device_of(cupy.empty(1, np.float32)))
    date, driver = (found.measurement.get(key, "unknown") for key in ("date", "driver"))
    value = {
        "measured": f"by size, measured here on {date} with driver {driver}: {found.path}",
        "packaged": f"by size, measured elsewhere on such a GPU, on {date} with driver {driver}",
        "estimated": "by size, from an estimate",
    }[found.origin]
    advice = "" if found.origin == "measured" else "fastgrad tune measures it on this GPU"
    return Finding("recurrent", value, ": ".join([*found.passed_over, advice]) if advice else "")


# --- measurements


def _best(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of many calls."""
    call()
    best, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _on_one_and_all(call: Callable[[], object]) -> tuple[float, float, int]:
    """Return the seconds of a call on one thread and on all that are set, and how many those are."""
    from fastgrad.kernels import runtime

    most = runtime.num_threads()
    try:
        runtime.set_num_threads(1)
        one = _best(call)
    finally:
        runtime.set_num_threads(most)
    return one, _best(call) if most > 1 else one, most


def _rates(topic: str, unit: str, work: float, call: Callable[[], object], scales: bool) -> Finding:
    one, all_, most = _on_one_and_all(call)
    value = f"{work / one:.1f} {unit} on one thread"
    if most == 1:
        return Finding(topic, value)
    value += f", {work / all_:.1f} on {most} ({one / all_:.2f}x)"
    if scales and one / all_ < 0.7 * most:
        advice = "the processors are busy with other work, or are halves of the same cores: try fewer threads"
        return Finding(topic, value, advice)
    return Finding(topic, value)


def measured_copy() -> Finding:
    from fastgrad.kernels import activation_cpu, streams

    source = np.ones(MEASURED_BYTES // 4, np.float32)
    target = np.zeros_like(source)
    kernel = activation_cpu._forward("identity", source.dtype, 0, True)
    # Memory is shared by the cores: that more of them copy no faster is a property of the machine.
    return _rates(
        "copy", "GB/s", 2e-9 * source.nbytes, lambda: streams.run_single(kernel, (source, target)), scales=False
    )


def measured_product(dtype: str) -> Finding:
    from fastgrad.kernels.matmul_cpu import matmul

    n = 512
    a, b, out = (np.full((n, n), 0.5, dtype) for _ in range(3))
    return _rates(f"product {dtype}", "GFLOP/s", 2e-9 * n**3, lambda: matmul(a, b, out), scales=True)
