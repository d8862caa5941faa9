"""What `doctor` makes of a machine; the machines are made up, from their files and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastgrad.kernels import runtime

import fastgrad
from fastgrad import _doctor, _gpu, _machine

TOPICS = [
    "versions", "processor", "vectors", "cores", "threads", "threading layer", "blas", "compile cache", "kernels",
    "huge pages", "memory", "backend", "gpu", "nvrtc", "recurrent",
]  # fmt: skip


@pytest.fixture
def system(tmp_path, monkeypatch):
    """An empty /proc and /sys, and a function that puts a file there."""

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    monkeypatch.setattr(_machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_machine, "_SYS", tmp_path / "sys")
    monkeypatch.setattr(_machine, "cores", lambda: 8)
    monkeypatch.setattr(_machine, "allowed_cores", lambda: 8)
    return write


# --- the report


def test_every_topic_is_there_and_nothing_is_raised():
    report = fastgrad.doctor()
    assert [finding.topic for finding in report.findings] == TOPICS
    assert not any(finding.value.startswith("not known: ") for finding in report.findings), str(report)
    assert report["versions"].value.startswith(f"fastgrad {fastgrad.__version__}, python ")
    with pytest.raises(KeyError, match="'gpus': expected one of versions, "):
        report["gpus"]


def test_a_system_that_says_nothing_is_no_error(system):
    report = fastgrad.doctor()
    assert report["huge pages"].value == report["memory"].value == "not known on this system"
    assert report["processor"].value and report["cores"] == _doctor.Finding("cores", "8 of the machine's 8")


def test_advice_stands_below_its_topic():
    findings = (_doctor.Finding("cores", "2 of 8", "ask for more"), _doctor.Finding("memory", "1 GB"))
    assert str(_doctor.DoctorReport(findings)) == "cores   2 of 8\n        -> ask for more\nmemory  1 GB"


def test_what_is_broken_is_said():
    code = (
        "import sys; sys.modules['llvmlite'] = None; import fastgrad; r = fastgrad.doctor(measure=True)\n"
        "print(r['vectors']); print(r['copy']); print(r['memory'].value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    vectors, copy, memory = done.stdout.splitlines()
    for line in (vectors, copy):
        assert "not known: ModuleNotFoundError: import of llvmlite" in line and "pip install" in line
    assert "not known:" not in memory


def test_measuring_adds_rates(monkeypatch):
    monkeypatch.setattr(_doctor, "MEASURED_SECONDS", 0.001)
    monkeypatch.setattr(_doctor, "MEASURED_BYTES", 1 << 16)
    before = runtime.num_threads()
    report = fastgrad.doctor(measure=True)
    assert [f.topic for f in report.findings] == [*TOPICS, "copy", "product float32", "product float64"]
    assert " GB/s on one thread" in report["copy"].value
    assert " GFLOP/s on one thread" in report["product float64"].value
    assert runtime.num_threads() == before


def test_a_product_that_does_not_scale_is_said(monkeypatch):
    monkeypatch.setattr(_doctor, "_on_one_and_all", lambda call: (1.0, 0.8, 2))
    finding = _doctor._rates("product", "GFLOP/s", 10.0, lambda: None, scales=True)
    assert finding.value == "10.0 GFLOP/s on one thread, 12.5 on 2 (1.25x)" and "fewer threads" in finding.advice
    assert not _doctor._rates("copy", "GB/s", 10.0, lambda: None, scales=False).advice


def test_the_command():
    done = subprocess.run([sys.executable, "-m", "fastgrad", "doctor"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == ""
    for topic in TOPICS:
        assert f"\n{topic} " in f"\n{done.stdout}"


def test_json_and_what_is_broken(tmp_path):
    """Exit status 1 where a part does not work, 0 where a GPU is merely absent."""
    command = [sys.executable, "-c", "import sys; sys.modules['cupy'] = None\n{}from fastgrad.cli import main; main()"]

    def run(before: str, *options: str) -> subprocess.CompletedProcess[str]:
        code = command[2].format(before)
        return subprocess.run([*command[:2], code, "doctor", *options], capture_output=True, text=True, timeout=100)

    healthy = run("", "--json")
    found = json.loads(healthy.stdout)
    assert healthy.returncode == 0 and found["broken"] is False
    assert [finding["topic"] for finding in found["findings"]] == TOPICS
    ill = run("sys.modules['numba'] = None; ", "--json")
    found = {finding["topic"]: finding for finding in json.loads(ill.stdout)["findings"]}
    assert ill.returncode == 1 and found["kernels"]["broken"] and not found["gpu"]["broken"]
    assert "pip install" in found["kernels"]["advice"]
    assert "BROKEN: not known: ModuleNotFoundError" in " ".join(run("sys.modules['numba'] = None; ").stdout.split())


@pytest.mark.parametrize("width", [80, 200])
def test_it_is_wrapped_below_its_topics(width):
    environment = {**os.environ, "COLUMNS": str(width)}
    done = subprocess.run(
        [sys.executable, "-m", "fastgrad", "doctor"], capture_output=True, text=True, timeout=100, env=environment
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= width
    topics = [topic for topic in TOPICS if any(line.startswith(f"{topic} ") for line in lines)]
    assert topics == TOPICS
    column = max(map(len, TOPICS)) + 2
    assert all(line[:column].strip() in ("", *TOPICS) and line[column] != " " for line in lines)


# --- the topics


def test_a_kernel_that_is_wrong_is_broken(monkeypatch):
    from fastgrad import activations

    finding = _doctor.kernels()
    assert not finding.broken and "found right in" in finding.value
    monkeypatch.setattr(activations, "activation", lambda x, kind: x)
    finding = _doctor.kernels()
    assert finding.broken and "rm -r ~/.cache/fastgrad" in finding.advice


@pytest.mark.parametrize(("threads", "advice"), [(4, ""), (64, "export OPENBLAS_NUM_THREADS=4")])
def test_blas(threads, advice, monkeypatch):
    info = {"user_api": "blas", "internal_api": "openblas", "version": "0.3.30", "num_threads": threads}
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [info, info, {"user_api": "openmp"}])
    monkeypatch.setattr(_machine, "usable_cores", lambda: 4)
    finding = _doctor.blas()
    assert finding.value == f"openblas 0.3.30 (unknown kernels), {threads} threads"
    assert finding.advice.endswith(advice) and bool(finding.advice) == bool(advice)
    monkeypatch.setattr("threadpoolctl.threadpool_info", list)
    assert "not known" in _doctor.blas().value and not _doctor.blas().broken


def test_a_driver_that_cuda_can_not_use_is_broken(system):
    assert _machine.nvidia_driver() is None
    system("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 2021\n")
    assert _machine.nvidia_driver() == "470.57.02"


class Compiler:
    """NVRTC as CuPy has it, with a planted fault."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.asked = fault, []

    def getVersion(self):
        if self.fault == "missing":
            raise RuntimeError("Failure finding libnvrtc.so.13")
        return (13, 0)

    def createProgram(self, source, name, headers, names):
        assert source == _doctor.ONE_LINE
        return 7

    def compileProgram(self, program, options):
        self.asked.append(options)
        if self.fault == "builtins":
            raise RuntimeError("nvrtc: error: failed to open\nlibnvrtc-builtins.so.13.0")

    def getPTX(self, program):
        return b"ptx " * 25

    def destroyProgram(self, program):
        assert program == 7


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("fault", "value", "advice"),
    [
        ("", "NVRTC 13.0 compiles a line for compute_{}: 100 bytes of PTX", ""),
        ("missing", "CuPy does not find it", 'pip install "fastgrad[cuda13]" (or cuda12) brings it'),
        (
            "builtins",
            "NVRTC 13.0 can't compile a line for compute_{}: nvrtc: error: failed to open lib",
            "pip install --",
        ),
    ],
)
def test_nvrtc(gpu, fault, value, advice, monkeypatch):
    cupy = devices(None)
    cupy.cuda.nvrtc = Compiler(fault)
    status = _gpu.GPUStatus(cupy) if gpu else _gpu.GPUStatus(None, "no driver", "get one")
    monkeypatch.setattr(_gpu, "gpu_status", lambda: status)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    finding = _doctor.nvrtc()
    assert finding.value.startswith(value.format("90" if gpu else "75")) and finding.advice.startswith(advice)
    # Without a GPU nobody needs it; what is there and fails is broken all the same.
    assert finding.broken == (fault == "builtins" or (fault == "missing" and gpu))
    monkeypatch.setitem(sys.modules, "cupy", None)
    if not gpu:
        assert _doctor.nvrtc().value == "not asked: it is reached through CuPy, which is not there"


@pytest.mark.parametrize(
    ("triple", "features", "flags", "value", "advice"),
    [
        ("x86_64-linux", "+sse2,+avx,+avx2,+avx512f,+fma", "sse2 avx2 avx512f", "AVX-512: 64 bytes, 16 float32", ""),
        ("x86_64-linux", "+sse2,+avx,+avx2,+fma", "sse2 avx2", "AVX2: 32 bytes, 8 float32", ""),
        ("x86_64-linux", "+sse2,+avx,+avx2,+fma", "avx2 avx512f", "AVX2", "has AVX-512, which Numba does not use"),
        ("x86_64-linux", "+sse2", "sse2", "SSE2: 16 bytes, 4 float32 or 2 float64", "no fused multiply-add"),
        ("x86_64-linux", "", "", "none that fastgrad knows", ""),
        ("aarch64-linux", "+fp-armv8", "asimd", "NEON: 16 bytes", ""),
        ("arm64-apple-darwin", "", "", "NEON: 16 bytes", ""),
    ],
)
def test_vectors(triple, features, flags, value, advice, system, monkeypatch):
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "target", lambda: (triple, "some", features))
    system("proc/cpuinfo", f"processor : 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor : 1\n")
    finding = _doctor.vectors()
    assert finding.value.startswith(value) and advice in finding.advice and bool(advice) == bool(finding.advice)
    assert _machine.processor() == "Some CPU"
    system("proc/cpuinfo", "processor : 0\ncpu family : 26\nmodel\t: 2\nmodel name : Some CPU\n\nprocessor : 1\n")
    assert _machine.processor() == "Some CPU (family 26, model 2)"


def test_vectors_that_are_switched_off_name_the_switch(system, monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setattr(runtime, "target", lambda: ("x86_64", "generic", "+sse2,+fma"))
    system("proc/cpuinfo", "flags : sse2 avx2")
    assert _doctor.vectors().advice == "the processor has AVX2, which Numba does not use: unset NUMBA_CPU_NAME"


def test_cores_left_out_by_affinity(system, monkeypatch):
    monkeypatch.setattr(_machine, "allowed_cores", lambda: 3)
    finding = _doctor.cores()
    assert finding.value == "3 of the machine's 8" and "affinity" in finding.advice
    assert _machine.usable_cores() == 3


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2.5),  # of one around it
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "250000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            2.5,
        ),
        ({"proc/self/cgroup": "0::/of/the/host", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"proc/self/cgroup": "nonsense\n::::\n0::/../..", "sys/fs/cgroup/cpu.max": "what is this"}, None),
        ({"sys/fs/cgroup/cpu.max": ""}, None),
    ],
)
def test_cpu_quota(files, quota, system):
    for path, text in files.items():
        system(path, text)
    assert _machine.cpu_quota() == quota
    assert _machine.usable_cores() == (8 if quota is None else max(1, int(quota)))
    finding = _doctor.cores()
    assert ("docker --cpus" in finding.advice) == (quota is not None)


@pytest.mark.parametrize(
    ("used", "most", "usable", "lost", "advice"),
    [
        (8, 8, 8, False, ""),
        (8, 8, 2, False, "set_num_threads(2)"),
        (2, 2, 8, False, "set NUMBA_NUM_THREADS=8"),
        (2, 8, 8, False, "fastgrad.set_num_threads(8)"),
        (1, 8, 8, True, "'spawn'"),
    ],
)
def test_threads(used, most, usable, lost, advice, monkeypatch):
    monkeypatch.setattr(runtime, "num_threads", lambda: used)
    monkeypatch.setattr(runtime, "max_threads", lambda: most)
    monkeypatch.setattr(runtime, "pool_lost", lambda: lost)
    monkeypatch.setattr(_machine, "usable_cores", lambda: usable)
    finding = _doctor.threads()
    assert finding.value.startswith(f"{used} of at most {most}")
    assert advice in finding.advice and bool(advice) == bool(finding.advice)
    if lost:
        assert _doctor.threading_layer().value == "not used after the fork"


def test_the_layer_that_takes_turns_is_a_limit(monkeypatch):
    monkeypatch.setattr(runtime, "max_threads", lambda: 2)
    monkeypatch.setattr(runtime, "threading_layer", lambda: "workqueue")
    finding = _doctor.threading_layer()
    assert "take turns" in finding.value and "pip install tbb" in finding.advice


def test_compile_cache(monkeypatch, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 250_000)
    cases = {
        runtime.CacheState((tmp_path,), tmp_path, ()): (f"{tmp_path}: 1 kernels, 0.2 MB", ""),
        runtime.CacheState((tmp_path,), None, ("no room",)): ("read only; what is not there", "no room: set FASTGRAD"),
        runtime.CacheState((), None, ("no room",)): (
            "none, each process compiles anew",
            "no room: set FASTGRAD_CACHE_",
        ),
    }
    for state, (value, advice) in cases.items():
        monkeypatch.setattr(runtime, "cache_state", lambda state=state: state)
        finding = _doctor.compile_cache()
        assert value in finding.value and finding.advice.startswith(advice) and bool(advice) == bool(finding.advice)


@pytest.mark.parametrize(
    ("setting", "numpy", "value", "advice"),
    [
        ("[always] madvise never", "1", "always", ""),
        ("always [madvise] never", "1", "madvise: NumPy asks", ""),
        ("always [madvise] never", "0", "madvise, but NumPy is told not to ask", "unset NUMPY_MADVISE_HUGEPAGE"),
        ("always madvise [never]", "1", "never: large arrays lie on pages of 4 KB", "as root: echo madvise > /sys/"),
    ],
)
def test_huge_pages(setting, numpy, value, advice, system, monkeypatch):
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", numpy)
    system("sys/kernel/mm/transparent_hugepage/enabled", setting)
    finding = _doctor.huge_pages()
    assert (
        finding.value.startswith(value) and finding.advice.startswith(advice) and bool(advice) == bool(finding.advice)
    )


def test_memory_is_what_the_container_leaves(system):
    system("proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    assert _doctor.memory().value == "32.8 GB available"
    system("proc/self/cgroup", "0::/a")
    system("sys/fs/cgroup/a/memory.max", "4000000000")
    system("sys/fs/cgroup/a/memory.current", "1500000000")
    assert _doctor.memory().value == "2.5 GB available"
    system("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 500000000\n")
    assert _doctor.memory().value == "3.0 GB available"
    system("sys/fs/cgroup/a/memory.max", "max")
    assert _doctor.memory().value == "32.8 GB available"


def test_the_reference_backend_is_a_limit():
    assert not _doctor.backend().advice
    with fastgrad.backend("reference"):
        assert "set_backend(None)" in _doctor.backend().advice


def devices(nvrtc) -> SimpleNamespace:
    """Return a CuPy with two devices."""
    found = [
        {"name": name, "major": 9, "minor": 0, "totalGlobalMem": size * 10**9}
        for name, size in ((b"NVIDIA H200", 150), (b"NVIDIA H100", 85))
    ]
    runtime = SimpleNamespace(getDeviceCount=lambda: 2, getDeviceProperties=found.__getitem__)
    compiler = SimpleNamespace(getVersion=nvrtc)
    return SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=runtime, nvrtc=compiler))


def test_gpus_and_their_compiler(monkeypatch):
    monkeypatch.setattr(_gpu, "gpu_status", lambda: _gpu.GPUStatus(devices(lambda: (13, 0))))
    found = "NVIDIA H200 (compute capability 9.0, 150 GB), NVIDIA H100 (compute capability 9.0, 85 GB), CuPy 14.2.0, "
    assert _doctor.gpu() == _doctor.Finding("gpu", f"{found}NVRTC 13.0")


def test_no_gpu_is_said_with_its_reason(monkeypatch):
    monkeypatch.setattr(_gpu, "gpu_status", lambda: _gpu.GPUStatus(None, "there is none", "buy one"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert _doctor.gpu() == _doctor.Finding("gpu", "none: there is none", "buy one")
    monkeypatch.setitem(sys.modules, "cupy", devices(lambda: (13, 0)))
    assert _doctor.gpu().value == "none: there is none; NVRTC 13.0"

    def missing():
        raise RuntimeError("Failure finding libnvrtc.so.13")

    monkeypatch.setitem(sys.modules, "cupy", devices(missing))
    assert _doctor.gpu().value == "none: there is none; no NVRTC"


def test_torch_is_not_imported_for_its_version():
    code = "import sys, fastgrad; print(fastgrad.doctor()['versions'].value); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, stdout=subprocess.DEVNULL)


def test_numbers_of_this_machine_are_plausible():
    assert 1 <= _machine.usable_cores() <= _machine.allowed_cores() <= _machine.cores()
    assert Path("/proc/meminfo").exists() <= bool(_machine.available_memory())
    assert np.isfinite(_doctor._best(lambda: None))
