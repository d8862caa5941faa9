"""NVRTC without a GPU: sources compile as CuPy compiles them, and the reports on what came out are true."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from devtools import nvrtc, sass

pytestmark = pytest.mark.skipif(nvrtc.why_unavailable() is not None, reason=str(nvrtc.why_unavailable()))
needs_sass = pytest.mark.skipif(sass.why_unavailable() is not None, reason=str(sass.why_unavailable()))

SYNC = (Path(nvrtc.__file__).parents[1] / "kernels" / "sync.cuh").read_text()
KERNELS = r"""
struct Table { float* p[2]; int n; };
extern "C" __global__ void every_kind(float* a, const double* b, int c, unsigned d, long long e, unsigned long long f,
                                      float g, double h, bool i, Table j, short k) {
    a[0] = b[c] + d + e + f + g + h + i + j.n + k;
}
extern "C" __global__ void none() {}
extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y) {
    __shared__ float4 s[32];
    s[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
    __syncthreads();
    reinterpret_cast<float4*>(y)[threadIdx.x] = s[threadIdx.x ^ 1];
    y[1000] = x[1000];
}
extern "C" __global__ void __launch_bounds__(1024) spill(const float* x, float* y, int n) {
    float v[100];
    for (int k = 0; k < 100; ++k) v[k] = x[threadIdx.x + k * n];
    for (int r = 0; r < n; ++r)
#pragma unroll
        for (int k = 0; k < 100; ++k) v[k] = v[k] * v[(k * 7 + 1) % 100] + 1;
    for (int k = 0; k < 100; ++k) y[threadIdx.x + k * n] = v[k];
}
extern "C" __global__ void product(float* x) { x[0] = x[0] * x[1] + x[2]; }
extern "C" __global__ void meet(unsigned* counter) {
    grid_barrier(counter, gridDim.x);
    store_release(counter, atomic_add_acquire_release(counter, 1u) + load_acquire(counter));
}
"""
CODE = f'#line 1 "sync.cuh"\n{SYNC}\n#line 1 "kernels.cu"\n{KERNELS}'


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_a_source_compiles_without_a_word_for_each_architecture(arch):
    compiled = nvrtc.compile(CODE, arch)
    assert compiled.image[:4] == b"\x7fELF"
    assert compiled.log == ""


def test_parameters_are_those_of_the_kernel():
    ptx = nvrtc.compile(CODE, "compute_75").ptx
    found = nvrtc.parameters(ptx)
    assert found["every_kind"] == ["u64", "u64", "u32", "u32", "u64", "u64", "f32", "f64", "u8", "b8[24]", "u16"]
    assert found["none"] == []
    assert found["copy"] == ["u64", "u64"]


def test_parameters_of_ptx_that_names_what_pointers_point_to():
    ptx = ".visible .entry f(\n\t.param .u64 .ptr .align 1 f_param_0,\n\t.param .u64 .ptr .global .align 4 f_param_1,\n"
    assert nvrtc.parameters(ptx + "\t.param .f32 f_param_2\n)\n{ }") == {"f": ["u64", "u64", "f32"]}


def test_errors_and_warnings_name_the_line_that_a_line_directive_gives():
    with pytest.raises(nvrtc.CompileError, match=r'^broken\.cu\(8\): error: identifier "y" is undefined'):
        nvrtc.compile('#line 7 "broken.cu"\n__global__ void f() {\n y = 3; }', "sm_90")
    compiled = nvrtc.compile('#line 7 "dull.cu"\n__global__ void f() {\n int unused; }', "sm_90")
    assert "dull.cu(8): warning #177-D" in compiled.log
    with pytest.raises(nvrtc.CompileError, match="invalid value for --gpu-architecture"):
        nvrtc.compile("", "sm_1")


def test_options_reach_the_compiler():
    code = 'extern "C" __global__ void NAME(float* x) { static_assert(__cplusplus == 201703); x[0] = VALUE; }'
    ptx = nvrtc.compile(code, "compute_80", ["-DNAME=f", "-DVALUE=2.5f"]).ptx
    assert list(nvrtc.parameters(ptx)) == ["f"]
    assert f"0x{np.float32(2.5).view(np.uint32):X}" in ptx or str(np.float32(2.5).view(np.uint32)) in ptx


def test_products_are_not_contracted_and_subnormals_are_flushed():
    ptx = nvrtc.compile(CODE, "compute_90", ["-ftz=false"]).ptx  # CuPy's -ftz=true comes after it
    product = ptx[ptx.index(".entry product") :]
    product = product[: product.index("}")]
    assert "mul.rn.ftz.f32" in product or "mul.ftz.f32" in product
    assert "fma" not in product


def test_the_options_are_those_of_cupy(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    pytest.importorskip("cupy")
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda.compiler import _NVRTCProgram

    options = [*assemble_cupy_compiler_options(nvrtc.OPTIONS), *nvrtc.CUPY_OPTIONS[:1], "-arch=compute_90"]
    ptx, _ = _NVRTCProgram(CODE, "kernel.cu", method="ptx").compile((*options, *nvrtc.CUPY_OPTIONS[1:]))
    assert (
        ptx.rstrip(b"\0").decode() == nvrtc.compile(CODE, "compute_90").ptx
    )  # a cubin holds the options too, and these name folders


@needs_sass
def test_the_report_on_a_kernel():
    kernels = sass.report(CODE, "sm_90")
    assert set(kernels) == {"every_kind", "none", "copy", "spill", "product", "meet"}
    copy, spill = kernels["copy"], kernels["spill"]
    assert copy.accesses == {"LDG.128": 1, "LDG.32": 1, "STG.128": 1, "STG.32": 1, "STS.128": 1, "LDS.128": 1}
    assert (copy.shared, copy.spills, copy.stack, copy.local_accesses) == (512, 0, 0, 0)
    assert 0 < copy.registers <= 32
    assert spill.registers <= 64 and spill.spills > 0 and spill.stack > 0 and spill.local_accesses > 0


def test_widths_of_accesses():
    text = "LDG.E R1, [R2] ; LDG.E.128.CONSTANT R4, desc ; STG.E.64 [R2] ; LDG.E.U8 R1 ; LDS.U.128 R4 ; "
    text += "ST.E [R2] ; LDC R1 ; "
    expected = {"LDG.32": 1, "LDG.128": 1, "STG.64": 1, "LDG.8": 1, "LDS.128": 1, "ST.32": 1}
    assert sass.accesses(text) == expected


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.setattr(nvrtc, "_NAMES", ())
    monkeypatch.setenv("PATH", "")
    for cached in (nvrtc._library, sass._tools):
        cached.cache_clear()
    try:
        assert "fastgrad[cuda-dev]" in str(nvrtc.why_unavailable())
        assert "cuobjdump" in str(sass.why_unavailable())
        with pytest.raises(nvrtc.CompileError, match="NVRTC is not installed"):
            nvrtc.compile("", "sm_90")
    finally:
        for cached in (nvrtc._library, sass._tools):
            cached.cache_clear()
