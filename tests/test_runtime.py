"""The compile cache, threads and memory below the CPU kernels."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fastgrad.kernels import cache, runtime

import fastgrad
from fastgrad import _memory

KERNELS = Path(runtime.__file__).parent
PACKAGE = Path(fastgrad.__file__).parent
CALL = (
    "import numpy as np, fastgrad; from fastgrad.kernels import runtime;"
    "print(fastgrad.activation(np.ones(3), 'relu6').sum(), runtime.cache_folder())"
)


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package that a test may edit, as `site/fastgrad`."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "fastgrad", ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    shutil.copytree(KERNELS, site / "fastgrad" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return site


def run(code: str, site: Path, *arguments: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=site, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.bin")}


def test_second_process_compiles_nothing(copied_package, tmp_path):
    cache = tmp_path / "cache"
    run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    before = files(cache)
    assert before
    run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    assert files(cache) == before


def test_an_edit_of_any_kernel_source_is_noticed(copied_package, tmp_path):
    """A kernel of activation_cpu.py is made of simd.py as well: an edit there must not meet the old code."""
    cache = {"FASTGRAD_CACHE_DIR": str(tmp_path / "cache")}
    assert run(CALL, copied_package, **cache).startswith("3.0 ")
    source = copied_package / "fastgrad" / "kernels" / "simd.py"
    text = source.read_text()
    edited = text.replace("return self.select(a > b, b, a)", "return self.select(a > b, b, a) + 1.0")
    assert edited != text
    source.write_text(edited)
    assert run(CALL, copied_package, **cache).startswith("6.0 ")


def test_a_damaged_cache_is_replaced(copied_package, tmp_path):
    cache = tmp_path / "cache"
    run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    for path in files(cache):
        path.write_bytes(path.read_bytes()[:-7])
    assert run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache)).startswith("3.0 ")


def test_a_cache_that_cannot_be_written_is_done_without(copied_package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(blocked)) == "3.0 None"


def test_a_home_that_cannot_be_written_falls_back(copied_package, tmp_path):
    blocked, temporary = tmp_path / "file", tmp_path / "temporary"
    blocked.write_text("not a folder")
    temporary.mkdir()
    environment = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "TMPDIR": str(temporary)}
    code = "import os; os.environ.pop('FASTGRAD_CACHE_DIR', None);" + CALL
    assert run(code, copied_package, **environment).startswith(f"3.0 {temporary}")


# Permissions don't bind root, which tests may run as: the probe that writes a file is told to fail instead.
READ_ONLY = """
from fastgrad.kernels import cache, runtime
cache._writable = lambda folder: {writable}
import numpy as np, fastgrad
print(fastgrad.activation(np.ones(3), "relu6").sum(), fastgrad.activation(np.ones(3), "{kind}").sum())
print([b.compiled for b in runtime.builds], runtime.cache_folder(), *runtime.cache_state().trouble, sep="\\n")
"""


def test_a_filled_cache_that_cannot_be_written_is_read(copied_package, tmp_path):
    cache = tmp_path / "cache"
    run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    before = files(cache)
    code = READ_ONLY.format(writable=False, kind="relu6")
    out = run(code, copied_package, FASTGRAD_CACHE_DIR=str(cache)).splitlines()
    (folder,) = cache.iterdir()
    assert out == ["3.0 3.0", "[False, False]", "None", f"{folder} can't be written"]
    out = run(READ_ONLY.format(writable=False, kind="relu"), copied_package, FASTGRAD_CACHE_DIR=str(cache))
    assert "[False, False, True]" in out
    assert files(cache) == before


def test_what_a_home_that_cannot_be_written_lacks_is_kept_elsewhere(copied_package, tmp_path):
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    temporary.mkdir()
    environment = {"XDG_CACHE_HOME": str(home), "TMPDIR": str(temporary)}
    prepare = "import os; os.environ.pop('FASTGRAD_CACHE_DIR', None);"
    run(prepare + CALL, copied_package, **environment)
    before = files(home)
    assert before and not files(temporary)
    code = prepare + READ_ONLY.format(writable=f"str(folder).startswith({str(temporary)!r})", kind="relu")
    for compiled in (True, False):
        out = run(code, copied_package, **environment).splitlines()
        assert out[:2] == ["3.0 3.0", f"[False, False, {compiled}]"] and out[2].startswith(str(temporary))
    assert files(home) == before and len(files(temporary)) == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes on this system")
@pytest.mark.parametrize("what", ["root", "folder", "files"])
def test_nothing_is_loaded_that_others_can_write(what, copied_package, tmp_path):
    cache = tmp_path / "cache"
    run(CALL, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    (folder,) = cache.iterdir()
    for path in {"root": [cache], "folder": [folder], "files": list(files(cache))}[what]:
        path.chmod(path.stat().st_mode | 0o002)
    code = READ_ONLY.format(writable=True, kind="relu6")
    out = run(code, copied_package, FASTGRAD_CACHE_DIR=str(cache))
    assert "[True, True]" in out
    if what != "files":
        assert "can be written by other users" in out and "\nNone\n" in out
    else:  # they were replaced
        assert "[False, False]" in run(code, copied_package, FASTGRAD_CACHE_DIR=str(cache))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes on this system")
@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [
        (1000, 0o700, True),
        (1000, 0o775, True),
        (1000, 0o777, False),
        (1000, 0o1777, True),
        (0, 0o755, True),
        (0, 0o775, False),
        (0, 0o757, False),
        (1001, 0o700, False),
        (1001, 0o755, False),
    ],
)
def test_code_comes_from_this_user_or_root(owner, mode, trusted, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    status = os.stat_result((0o40000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert (cache._distrust(status) is None) == trusted


def test_other_folders_are_kept_when_old_generations_are_deleted(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_roots", lambda: [tmp_path])
    beside = runtime.folder_beside("other")
    assert beside == tmp_path / "other"
    for folder in (beside, *(tmp_path / f"{k:032x}" for k in range(cache.GENERATIONS_KEPT + 2))):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (0, 0))
    current = tmp_path / runtime.source_hash()
    current.mkdir()
    cache._prune(tmp_path, current)
    assert beside.is_dir() and current.is_dir()
    assert len(list(tmp_path.iterdir())) == 1 + cache.GENERATIONS_KEPT


def test_processes_that_compile_at_once_do_not_disturb_each_other(copied_package, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(copied_package), "FASTGRAD_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CALL]
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(p.communicate(timeout=300)[0].startswith("3.0 ") and p.returncode == 0 for p in processes)


PRODUCT = """
import sys, numpy as np, fastgrad
from fastgrad.kernels import matmul_cpu
fastgrad.set_num_threads(1)
rng = np.random.default_rng(0)
for dtype in sys.argv[1:]:
    a, b, out = (rng.standard_normal(shape).astype(dtype) for shape in ((33, 40), (40, 50), (33, 50)))
    matmul_cpu.matmul(a, b, out)
    np.testing.assert_allclose(out, a @ b, atol=1e-4, err_msg=dtype)
"""


def test_code_that_processes_compiled_apart_works_together(tmp_path):
    """As after `pytest -n 2` on an empty cache, where each process compiled what it met first.

    The folders are filled apart and then put together: a process that finds anything in the cache compiles, and so
    numbers, other functions than one that finds nothing.
    """
    cache, other = tmp_path / "cache", tmp_path / "other"
    run(PRODUCT, PACKAGE.parent, "float32", FASTGRAD_CACHE_DIR=str(cache))
    run(PRODUCT, PACKAGE.parent, "float64", FASTGRAD_CACHE_DIR=str(other))
    for path in files(other):
        shutil.copy(path, cache / path.relative_to(other))
    before = files(cache)
    for order in (("float32", "float64"), ("float64", "float32")):
        run(PRODUCT, PACKAGE.parent, *order, FASTGRAD_CACHE_DIR=str(cache))
    assert files(cache) == before


WITHOUT_NUMBA = """
import sys, numpy as np, fastgrad
report = fastgrad.warmup(dtype=sys.argv[1], processes=1)
print(report.count("compiled"), report.count("loaded"))
x = np.ones(1 << 18)
assert fastgrad.global_norm([x]) == 512, fastgrad.global_norm([x])
assert fastgrad.global_norm([np.ones(4), np.ones(5)]) == 3  # through frexp and ldexp
assert "numba" not in sys.modules
"""


def test_what_is_in_the_cache_needs_no_numba(dtype):
    """Every kernel of the package: what its code refers to is in the C library, or given to the linker."""
    report = fastgrad.warmup(dtype=dtype)
    if not report.kept:
        pytest.skip("no cache to load from")
    compiled, loaded = run(WITHOUT_NUMBA, PACKAGE.parent, np.dtype(dtype).name).split()
    assert compiled == "0" and int(loaded) > 100


def test_the_processor_is_the_one_that_numba_compiles_for():
    code = (
        "from fastgrad.kernels import runtime; ours = runtime.target()\n"
        "import numba.core.registry as r\n"
        "print(ours == r.cpu_target.target_context.codegen().magic_tuple(), ours[1])"
    )
    settings = {"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    for environment in ({}, {"NUMBA_ENABLE_AVX": "0"}, {"NUMBA_ENABLE_AVX": "1"}, *settings):
        found = run(code, PACKAGE.parent, **environment).split()
        assert found[0] == "True" and found[1] == environment.get("NUMBA_CPU_NAME", found[1])


def test_a_setting_of_the_compiler_is_noticed():
    code = "from fastgrad.kernels import runtime; print(runtime.source_hash())"
    settings = {}, {"NUMBA_OPT": "1"}, {"NUMBA_CPU_NAME": "generic"}, {"NUMBA_ENABLE_AVX": "0"}
    assert len({run(code, PACKAGE.parent, **environment) for environment in settings}) == len(settings)


LAYER = """
import numpy as np, fastgrad
from fastgrad.kernels import runtime
x = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
found = [fastgrad.activation(x, "gelu"), fastgrad.global_norm([x]), fastgrad.activation(np.ones(1 << 20), "relu").sum()]
fastgrad.set_num_threads(1)
again = [fastgrad.activation(x, "gelu"), fastgrad.global_norm([x]), fastgrad.activation(np.ones(1 << 20), "relu").sum()]
assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
print(runtime.threading_layer(), type(runtime.layer()).__name__)
"""


@pytest.mark.parametrize("name", ["default", "omp", "workqueue", "no library"])
def test_threading_layers(name):
    """Numba's serve where OpenMP's library is missing, or is not what was asked for."""
    missing = "from fastgrad.kernels import threads; threads.LIBRARY = 'nothing.so'\n" if name == "no library" else ""
    asked = "default" if name == "no library" else name
    environment = {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": asked}
    found, kind = run(missing + LAYER, PACKAGE.parent, **environment).split()
    assert found in ("omp", "tbb", "workqueue") and (found == asked or asked == "default")
    if name in ("workqueue", "no library"):
        assert kind == "NumbaLayer"
    elif sys.platform.startswith("linux"):
        assert kind == "OpenMP" or found != "omp"


def test_more_threads_than_blocks():
    code = (
        "import numpy as np, fastgrad\n"
        "x = np.ones(70_000, np.float32)\n"
        "print(float(fastgrad.global_norm([x], ord=1)), fastgrad.activation(x, 'relu').sum(dtype=int))"
    )
    assert run(code, PACKAGE.parent, NUMBA_NUM_THREADS="13") == "70000.0 70000"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_on():
    code = (
        "import os, numpy as np, fastgrad\n"
        "x = np.ones(1 << 20, np.float32)\n"
        "assert float(fastgrad.global_norm([x])) == 1024\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if float(fastgrad.global_norm([x])) == 1024 else 1)\n"
        "print(os.waitpid(pid, 0)[1])"
    )
    assert run(code, PACKAGE.parent) == "0"


def test_kernels_run_from_several_python_threads():
    arrays = [np.full(300_000, k, np.float32) for k in range(1, 5)]
    results: dict[int, list[float]] = {}

    def work(k: int) -> None:
        results[k] = [float(fastgrad.global_norm([arrays[k]], ord=1)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: [300_000.0 * (k + 1)] * 20 for k in range(4)}


def test_set_num_threads_leaves_numba_alone():
    import numba

    before, most = numba.get_num_threads(), runtime.max_threads()
    fastgrad.set_num_threads(1)
    try:
        assert numba.get_num_threads() == before
        assert fastgrad.global_norm([np.ones(1 << 18)]) == 512
    finally:
        fastgrad.set_num_threads(before)
    for wrong, error in ((0, ValueError), (most + 1, ValueError), (1.5, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="n: expected"):
            fastgrad.set_num_threads(wrong)


def test_numba_num_threads_is_honoured():
    code = (
        "import numpy as np, fastgrad\n"
        "from fastgrad.threads import get_num_threads\n"
        "assert fastgrad.global_norm([np.ones(1 << 18)]) == 512\n"
        "try:\n    fastgrad.set_num_threads(2)\nexcept ValueError as error:\n    print(get_num_threads(), error)"
    )
    out = run(code, PACKAGE.parent, NUMBA_NUM_THREADS="1")
    assert out.startswith("1 n: expected 1 to 1 threads, got 2;") and out.endswith("variable NUMBA_NUM_THREADS")


# --- memory that is used again


def test_memory_is_used_again_after_the_last_view():
    first = _memory.empty((300, 400), np.float32)
    address, view = first.__array_interface__["data"][0], first[10:20].T
    del first
    gc.collect()
    assert _memory.empty((300, 400), np.float32).__array_interface__["data"][0] != address
    view[...] = 1
    del view
    gc.collect()
    again = _memory.empty((300, 400), np.float32)
    assert again.__array_interface__["data"][0] == address


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0, 2), (1000, 1000), 7])
def test_memory_is_aligned_and_writable(shape, dtype):
    array = _memory.empty(shape, dtype)
    assert array.shape == ((shape,) if isinstance(shape, int) else shape) and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    assert array.__array_interface__["data"][0] % 64 == 0 or array.nbytes < _memory.SMALLEST
    array[...] = 1
    assert (array == 1).all()


def test_memory_kept_has_a_limit(monkeypatch):
    assert 1 << 28 <= _memory.LIMIT <= 1 << 30
    monkeypatch.setattr(_memory, "LIMIT", 1 << 26)
    arrays = [_memory.empty(1 << 20, np.float64) for _ in range(40)]
    del arrays
    gc.collect()
    assert _memory._kept <= 1 << 26


def test_arrays_are_distinct():
    arrays = [_memory.empty(100_000, np.float32) for _ in range(5)]
    for k, array in enumerate(arrays):
        array[...] = k
    assert [float(a.max()) for a in arrays] == [0, 1, 2, 3, 4]


# --- other processors

COMPARED = """
import numpy as np, fastgrad
rng = np.random.default_rng(0)
x, w, u = (rng.standard_normal(s).astype(np.float32) for s in ((5, 13, 17), (4 * 33, 17), (4 * 33, 33)))
def results():
    y, _, saved = fastgrad.lstm(x, None, None, w, u)
    return [y, *fastgrad.lstm_backward(y, None, None, saved)[:5], fastgrad.activation_backward(x, x, "gelu")]
ours = results()
with fastgrad.backend("reference"):
    exact = results()
for a, b in zip(ours, exact, strict=True):
    assert np.allclose(a, b, rtol=1e-4, atol=1e-5), abs(a - b).max()
print("same")
"""


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="processors of the x86-64 family")
@pytest.mark.parametrize(("name", "features"), [("haswell", "+avx2,+fma"), ("generic", "")], ids=["avx2", "sse2"])
def test_code_for_lesser_processors(name, features):
    """Tiles and vectors are chosen by the processor; what is chosen without AVX-512, or even AVX, must work too."""
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    assert run(COMPARED, PACKAGE.parent, **environment) == "same"
