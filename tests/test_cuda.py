"""The door to the GPU (kernels/cuda.py), and every kernel that a launcher declares, compiled for real architectures."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import emulated
import numpy as np
import pytest
from fastgrad.kernels import cuda

from devtools import nvrtc, sass

emulated.register()
for _file in sorted(Path(cuda.FOLDER).glob("*_gpu.py")):
    importlib.import_module(f"fastgrad.kernels.{_file.stem}")
DECLARED = list(cuda.declared)
SOURCES = sorted({kernel.source for kernel in DECLARED})
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
F32 = np.dtype(np.float32)

# A value for each #define that a source asks for; sources not named here come in one variant, each define 1.
VARIANTS = {
    "activation": [{"kind": "gelu"}],
    "activation_dropout": [{"kind": "gelu"}],
    "attention": [{"chunks": 1}, {"chunks": 2}, {"chunks": 4}, {"chunks": 8}],
    "glu": [{"kind": "silu"}, {"kind": "gelu"}],
    "norm": [{"ord": 2}],
}
NO_DOUBLE = {"lstm_persistent", "gru_persistent"}  # the persistent kernels have their own sizes, and tests of these


def variants(source: str) -> list[dict]:
    names = sorted({name for kernel in DECLARED if kernel.source == source for name in kernel.variants})
    return VARIANTS.get(source) or [dict.fromkeys(names, 1)]


def text(source: str, dtype: str, variant: dict) -> str:
    return cuda.variant_text(source, dtype, tuple((f"FG_{name.upper()}", str(v)) for name, v in variant.items()))


CASES = [(s, d, v) for s in SOURCES if s not in NO_DOUBLE for d in cuda.TYPES for v in variants(s)]
IDS = ["-".join([s, d, *map(str, v.values())]) for s, d, v in CASES]
compiles = pytest.mark.skipif(nvrtc.why_unavailable() is not None, reason=str(nvrtc.why_unavailable()))
inspects = pytest.mark.skipif(sass.why_unavailable() is not None, reason=str(sass.why_unavailable()))


@pytest.fixture
def files(monkeypatch):
    """Put texts in the place of kernels/<name>."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(cuda, "_file", texts.__getitem__)
    return texts


def test_headers_are_put_in_their_place_once(files):
    files["op.cu"] = '// first\n#include "a.cuh"\n#include "b.cuh"\nint op;\n'
    files["a.cuh"] = '#include "b.cuh"\nint a;\n'
    files["b.cuh"] = "int b;\nint c;\n"
    result = cuda.source_text("op", [("FG_KIND", "relu")])
    assert result.startswith("#define FG_KIND relu\n")
    assert "#include" not in result
    # As the compiler counts them: what stands where in which file.
    places, name, line = {}, "", 0
    for row in result.split("\n"):
        if match := re.fullmatch(r'#line (\d+) "(\S+)"', row):
            line, name = int(match[1]), match[2]
            continue
        if row.startswith("int"):
            assert row not in places
            places[row] = (name, line)
        line += 1
    assert places == {"int op;": ("op.cu", 4), "int a;": ("a.cuh", 2), "int b;": ("b.cuh", 1), "int c;": ("b.cuh", 2)}


@compiles
def test_an_error_names_the_line_of_its_header(files):
    files["op.cu"] = '// first\n#include "a.cuh"\n__global__ void f() { wrong_here; }\n'
    files["a.cuh"] = "//\n__device__ int g() { return wrong_there; }\n"
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.compile(cuda.source_text("op"), "sm_90")
    assert "a.cuh(2)" in str(caught.value) and "op.cu(3)" in str(caught.value)


@pytest.fixture
def kernel(monkeypatch):
    """Return a kernel that nobody can launch."""
    monkeypatch.setattr(cuda, "declared", [])
    made = cuda.Kernel("none", "fg_none", "x: const T*, n: i64, k: i32, u: u32, scale: A, bias: T*?", ["kind"])

    def function(*_):
        raise AssertionError("launched")

    monkeypatch.setattr(cuda, "variant_text", lambda *_: "")
    monkeypatch.setattr(emulated.EmulatedDevice, "function", function)
    return made


def test_what_is_not_as_declared_is_refused(kernel):
    x = emulated.Module.zeros((4, 4), np.float32)
    device = emulated.DEVICE

    def error(exception, match, *args, grid=1, block=32, **more):
        with pytest.raises(exception, match=match):
            kernel(device, F32, grid, block, *args, **({"kind": "relu"} | more))

    right = (x, 1, 1, 1, 1.0, None)
    error(TypeError, "fg_none: expected 6 arguments, got 5", *right[:5])
    error(TypeError, "fg_none: expected 6 arguments, got 7", *right, 1)
    error(TypeError, "x: expected a device array, got ndarray", np.zeros(4, np.float32), *right[1:])
    error(TypeError, "x: expected a device array, got NoneType", None, *right[1:])
    error(TypeError, "x: expected float32, got float64", emulated.Module.zeros(4), *right[1:])
    error(TypeError, "bias: expected float32, got int64", *right[:5], emulated.Module.zeros(4, np.int64))
    error(ValueError, "x is not C-contiguous", x.T[1:], *right[1:])
    error(ValueError, "k = 2147483648 does not fit i32", x, 1, 2**31, *right[3:])
    error(ValueError, "k = 2147483648 does not fit i32", x, 1, np.int64(2**31), *right[3:])
    error(ValueError, "u = -1 does not fit u32", x, 1, 1, -1, *right[4:])
    error(ValueError, "n = 0.5 does not fit i64", x, 0.5, *right[2:])
    error(ValueError, r"grid \(2147483648,\) is beyond", *right, grid=2**31)
    error(ValueError, r"grid \(1, 65536\) is beyond", *right, grid=(1, 65536))
    error(ValueError, r"grid \(-1,\) is beyond", *right, grid=-1)
    error(ValueError, r"a block of \(64, 32\) threads is beyond 1024", *right, block=(64, 32))
    error(ValueError, r"a block of \(0,\) threads is beyond", *right, block=0)
    error(ValueError, f"{2**20} bytes of shared memory, the device has {device.shared_memory}", *right, shared=2**20)
    with pytest.raises(TypeError, match=r"fg_none: expected the variant \('kind',\), got \(\)"):
        kernel(device, F32, 1, 32, *right)
    with pytest.raises(AssertionError, match="launched"):
        kernel(device, F32, 1, 32, *right, kind="relu")


def test_an_array_of_another_device_is_refused(kernel, monkeypatch):
    x = emulated.Module.zeros(4, np.float32)
    monkeypatch.setattr(cuda, "device_of", lambda array: object())
    with pytest.raises(ValueError, match="x lies on another device than the first array"):
        kernel(emulated.DEVICE, F32, 1, 32, x, 1, 1, 1, 1.0, None, kind="relu")


def test_an_empty_grid_is_no_launch(kernel):
    for grid in (0, (3, 0)):
        kernel(emulated.DEVICE, F32, grid, 32, kind="relu")


def test_unknown_kinds_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "declared", [])
    with pytest.raises(ValueError, match="n: unknown kind 'int'"):
        cuda.Kernel("none", "fg_none", "x: T*, n: int")


def names_in(source_text: str) -> set[str]:
    return set(re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)', source_text))


def test_each_source_has_the_kernels_that_launchers_declare():
    for source in SOURCES:
        wanted = {kernel.name for kernel in DECLARED if kernel.source == source}
        assert wanted == names_in(cuda._file(f"{source}.cu")), source
    assert {path.stem for path in cuda.FOLDER.glob("*.cu")} == set(SOURCES)


# What PTX calls the type of a parameter.
PTX = {"i32": "u32", "u32": "u32", "i64": "u64", "u64": "u64", "f32": "f32", "f64": "f64"}


def declared_types(kernel: cuda.Kernel, dtype: str) -> list[str]:
    real = {"float32": "f32", "float64": "f64"}[dtype]
    return ["u64" if p.kind.endswith("*") else real if p.kind in "TA" else PTX.get(p.kind, p.kind)
            for p in kernel.parameters]  # fmt: skip


def differences(kernels: list[cuda.Kernel], dtype: str, ptx: str) -> list[str]:
    """Say where what a launcher declares is not what the compiled kernel takes; a struct may be any b8[...]."""
    found = nvrtc.parameters(ptx)
    result = []
    for kernel in kernels:
        wanted, actual = declared_types(kernel, dtype), found[kernel.name]
        same = [w == a.replace("s", "u") or (w == "struct" and a.startswith("b8[")) for w, a in zip(wanted, actual)]  # noqa: B905
        if len(wanted) != len(actual) or not all(same):
            result.append(f"{kernel.name}: declared {wanted}, takes {actual}")
    return result


@compiles
@pytest.mark.parametrize(("source", "dtype", "variant"), CASES, ids=IDS)
def test_parameters_are_those_declared(source, dtype, variant):
    kernels = [kernel for kernel in DECLARED if kernel.source == source]
    assert differences(kernels, dtype, nvrtc.compile(text(source, dtype, variant), "compute_90").ptx) == []


@compiles
@pytest.mark.parametrize("fault", ["index_t V", "double* losses", "int width", "storage_t* dlogits, "])
def test_a_planted_difference_of_parameters_is_caught(fault):
    right = {"index_t V": "int V", "double* losses": "double losses", "int width": "float width",
             "storage_t* dlogits, ": ""}[fault]  # fmt: skip
    source = "extern \"C\" __global__ void fg_cross_entropy_rows(const float* logits, const long long* targets, " \
        "storage_t* dlogits, double* losses, index_t M, index_t V, int width, int pairs, const index_t* counted, " \
        "index_t ignored, float hit, float each) {}"  # fmt: skip
    given = "using storage_t = float; using index_t = long long;"
    kernels = [kernel for kernel in DECLARED if kernel.name == "fg_cross_entropy_rows"]
    assert differences(kernels, "float32", nvrtc.compile(given + source, "compute_90").ptx) == []
    wrong = nvrtc.compile(given + source.replace(fault, right), "compute_90").ptx
    assert differences(kernels, "float32", wrong)


# Of blocks of 128 threads, three to a multiprocessor.
MOST_REGISTERS = {"fg_attention_backward_queries": 168, "fg_attention_backward_keys": 168}


def warnings_of(log: str) -> list[str]:
    return [line for line in log.splitlines() if "warning" in line.lower()]


@functools.cache
def compiled(source: str, dtype: str, variant: tuple, arch: str) -> nvrtc.Compiled:
    return nvrtc.compile(text(source, dtype, dict(variant)), arch, ["--ptxas-options=-v"])


@compiles
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("source", "dtype", "variant"), CASES, ids=IDS)
def test_sources_compile_without_a_warning_or_a_spill(source, dtype, variant, arch):
    log = compiled(source, dtype, tuple(variant.items()), arch).log
    assert warnings_of(log) == []
    for name, kernel in sass.resources(log).items():
        assert kernel.spills == 0, name
        # A block of 1024 threads has 64 registers for each; what takes more is launched in smaller ones.
        assert kernel.registers <= MOST_REGISTERS.get(name, 128), name


@compiles
def test_a_planted_warning_and_a_planted_spill_are_caught():
    warned = 'extern "C" __global__ void f(int* x) { int unused = 1; *x = 2; }'
    assert warnings_of(nvrtc.compile(warned, "sm_90").log)
    body = "".join(f"float v{i} = x[{i}];" for i in range(100)) + "__syncthreads();"
    body += "".join(f"x[{i}] = v{i} * v{(i * 7) % 100};" for i in range(100))
    spilling = f'extern "C" __global__ void f(float* x) {{ {body} }}'
    log = nvrtc.compile(spilling, "sm_90", ["--ptxas-options=-v", "--maxrregcount=32"]).log
    assert sass.resources(log)["f"].spills > 0


# Kernels bound by memory, at sm_90: registers at most, loads and stores of 16 bytes at least, of any variant and dtype.
BOUNDS = {
    "fg_activation": (72, 4, 4), "fg_activation_backward": (72, 8, 4), "fg_activation_backward_rows": (96, 4, 2),
    "fg_glu": (64, 8, 4), "fg_glu_backward": (64, 6, 4), "fg_mse": (64, 8, 4),
    "fg_prelu_across": (72, 3, 2), "fg_prelu_backward_across": (80, 5, 2), "fg_prelu_along": (64, 4, 4),
    "fg_prelu_backward_along": (80, 8, 4), "fg_matrix_partial_sums": (80, 4, 0), "fg_add_bias": (80, 5, 4),
    "fg_embedding": (64, 4, 4), "fg_embedding_backward": (80, 8, 1), "fg_cross_entropy_long_rows": (80, 8, 4),
    "fg_lstm_forward": (64, 13, 6), "fg_lstm_backward": (64, 8, 5), "fg_gru_forward": (64, 12, 5),
    "fg_gru_backward": (64, 7, 7), "fg_gru_candidate": (64, 5, 3), "fg_gru_reset_backward": (64, 4, 2),
    "fg_batch_norm_sums_across": (96, 3, 0), "fg_batch_norm_sums_along": (64, 2, 0), "fg_batch_norm_apply": (64, 2, 1),
    "fg_dropout": (48, 4, 4), "fg_activation_dropout": (64, 4, 4), "fg_activation_dropout_backward": (80, 8, 4),
    "fg_activation_dropout_backward_rows": (128, 4, 2),
    "fg_attention": (128, 3, 0), "fg_attention_backward_queries": (168, 4, 0),
    "fg_attention_backward_keys": (168, 4, 0),
    "fg_layer_norm": (64, 4, 1), "fg_layer_norm_backward": (80, 6, 1),
    # A thread for each unit: what a step waits for is its launches.
    "fg_mask_steps": (32, 0, 0), "fg_zoneout": (48, 0, 0), "fg_zoneout_backward": (48, 0, 0),
    "fg_finish_step": (40, 0, 0), "fg_layer_norm_lstm": (80, 0, 0), "fg_layer_norm_lstm_backward": (96, 0, 0),
}  # fmt: skip


def beyond(name: str, kernel: sass.Kernel) -> list[str]:
    registers, loads, stores = BOUNDS[name]
    found = kernel.registers, kernel.accesses["LDG.128"], kernel.accesses["STG.128"]
    fits = found[0] <= registers and found[1] >= loads and found[2] >= stores
    return [] if fits else [f"{name}: registers, loads, stores {found}, expected {BOUNDS[name]}"]


@inspects
def test_registers_and_accesses_of_16_bytes():
    seen, wrong = set(), []
    for source, dtype, variant in CASES:
        if {kernel.name for kernel in DECLARED if kernel.source == source} & set(BOUNDS):
            result = compiled(source, dtype, tuple(variant.items()), "sm_90")
            kernels = sass.resources(result.log)
            for name, instructions in sass.disassembled(result.image).items():
                if name in BOUNDS:
                    kernels[name].accesses = sass.accesses(instructions)
                    seen.add(name)
                    wrong += beyond(name, kernels[name])
    assert wrong == [] and seen == set(BOUNDS)


def test_planted_faults_of_registers_and_accesses_are_caught():
    good = sass.Kernel(registers=40, accesses=sass.Counter({"LDG.128": 8, "STG.128": 4}))
    assert beyond("fg_glu", good) == []
    for change in ({"registers": 65}, {"accesses": sass.Counter({"LDG.32": 32, "STG.128": 4})},
                   {"accesses": sass.Counter({"LDG.128": 8, "STG.32": 16})}):  # fmt: skip
        parts = {"registers": good.registers, "accesses": good.accesses} | change
        assert beyond("fg_glu", sass.Kernel(**parts))


@inspects
@pytest.mark.parametrize(("dtype", "threads"), [("float32", 1024), ("float64", 512)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("smoothed", [0, 1])
def test_a_long_row_of_cross_entropy_has_registers_for_its_block(arch, dtype, threads, smoothed):
    log = compiled("cross_entropy", dtype, (("smoothed", smoothed),), arch).log
    kernel = sass.resources(log)["fg_cross_entropy_long_rows"]
    assert kernel.registers * (threads >> smoothed) <= 65536
