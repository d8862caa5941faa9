"""Compile every kernel in every variant for this machine's GPU, by many processes, into CuPy's cache on the disk.

And those of the CPU, which the tests set beside them, into Numba's.

    python -m devtools.fill_cache
    python -m devtools.fill_cache --list    name the modules, without a GPU

Ends with 1, and the compiler's words, where one does not compile. Tests and benchmarks that come after it load them.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fastgrad.kernels
from fastgrad.kernels import cuda

from fastgrad.activations import KINDS

FLAGS = dict.fromkeys(
    ("adaptive", "amsgrad", "centered", "coupled", "decay", "momentum", "nesterov", "smoothed"), (0, 1)
)
VALUES: dict[str, tuple[object, ...]] = {**FLAGS, "kind": tuple(KINDS), "ord": (0, 1, 2), "chunks": (1, 2, 4, 8)}
# What the plans of the persistent kernels come to, of float32 alone and never 4 units with 4 vectors.
OF_SOURCES: dict[str, dict[str, tuple[object, ...]]] = {
    "glu": {"kind": ("silu", "gelu")},
    "lstm_persistent": {"units": (4, 6, 8), "depth": (1, 2, 3, 4)},
    "gru_persistent": {"units": (4, 8), "depth": (1, 2, 3, 4)},
}


def texts() -> Iterator[tuple[str, str]]:
    """Yield a name and the source text of each module."""
    for path in sorted(Path(fastgrad.kernels.__path__[0]).glob("*_gpu.py")):
        importlib.import_module(f"fastgrad.kernels.{path.stem}")
    seen = set()
    for kernel in cuda.declared:
        values = {**VALUES, **OF_SOURCES.get(kernel.source, {})}
        for dtype in cuda.TYPES:
            if kernel.source.endswith("_persistent") and dtype != "float32":
                continue
            for chosen in itertools.product(*(values[name] for name in kernel.variants)):
                variant = dict(zip(kernel.variants, chosen, strict=True))
                if variant.get("units") == variant.get("depth") == 4:
                    continue
                text = kernel.text(dtype, **variant)
                if text not in seen:
                    seen.add(text)
                    yield f"{kernel.source} {dtype} {variant}", text


def compiled(job: tuple[str, str]) -> tuple[str, float, str]:
    """Compile one module; return its name, the seconds, and what went wrong."""
    import cupy

    start = time.perf_counter()
    try:
        cupy.RawModule(code=job[1], options=cuda.OPTIONS).compile()
    except Exception as error:
        return job[0], time.perf_counter() - start, f"{type(error).__name__}: {error}"
    return job[0], time.perf_counter() - start, ""


def main() -> None:
    start = time.perf_counter()
    jobs = list(texts())
    if "--list" in sys.argv[1:]:
        print(*(name for name, _ in jobs), f"{len(jobs)} modules listed", sep="\n")
        return
    jobs.sort(key=lambda job: "persistent" not in job[0])  # the longest first
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(12, os.cpu_count() or 1), mp_context=context) as pool:
        done = list(pool.map(compiled, jobs))
    failed = [one for one in done if one[2]]
    for name, _, trouble in failed:
        print(f"{name}: {trouble}")
    slowest = max(done, key=lambda one: one[1])
    print(
        f"{len(jobs)} modules in {time.perf_counter() - start:.1f} s, {sum(one[1] for one in done):.1f} s of work, "
        f"{slowest[1]:.1f} s for {slowest[0]}; {len(failed)} failed",
        flush=True,
    )
    try:
        for dtype in cuda.TYPES:
            print(f"Numba, {dtype}: {str(fastgrad.warmup(dtype=dtype)).splitlines()[0]}", flush=True)
    except Exception as error:  # they are not what is tested here
        print(f"Numba: {type(error).__name__}: {error}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
