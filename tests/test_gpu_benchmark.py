"""The fixture `gpu_benchmark`, as a suite of somebody else's uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import backends
import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

EMULATED = """
    import sys
    sys.path[:0] = {folders!r}
    import emulated, numpy as np, fastgrad, pytest
    emulated.register()
    xp = emulated.Module
"""


def suite(tmp_path: Path, body: str, *options: str, emulated: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a test file in a process of its own, with the plugins named and no others."""
    here = Path(__file__).resolve().parent
    head = EMULATED.format(folders=[str(here), str(here.parent)]) if emulated else ""
    (tmp_path / "test_it.py").write_text(textwrap.dedent(head) + textwrap.dedent(body))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("FASTGRAD_TEST_BACKENDS", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # which turns benchmarks off
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "fastgrad._pytest_plugin",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


BENCHMARK = ("-p", "pytest_benchmark.plugin", "--benchmark-json=out.json")


def measured(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "out.json").read_text())["benchmarks"]


@pytest.fixture
def _emulated():
    reason = backends.missing("emulated")
    if reason:
        pytest.skip(reason)


@pytest.mark.usefixtures("_emulated")
def test_on_a_device_it_reports_launch_and_device_time(tmp_path):
    body = """
    @pytest.mark.benchmark(group="mine")
    def test_device(gpu_benchmark):
        x = xp.ones(1000, np.float32)
        y = gpu_benchmark(fastgrad.activation, x, "relu")
        assert type(y) is xp.ndarray and (y.get() == 1).all()
        gpu_benchmark.extra_info["mine"] = 7

    def test_arrays_that_a_function_holds(gpu_benchmark):
        x = xp.ones(1000, np.float32)
        gpu_benchmark(lambda: fastgrad.activation(x, "relu"))
    """
    done = suite(tmp_path, body, *BENCHMARK, emulated=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = measured(tmp_path)
    assert first["group"] == "mine" and first["extra_info"]["mine"] == 7
    for one in (first, second):
        extra = one["extra_info"]
        assert extra["clock"] == "CUDA events" and extra["device"] == "emulated GPU"
        # What pytest-benchmark shows is what the events said.
        assert one["stats"]["median"] == pytest.approx(extra["device_seconds"], rel=1e-6)
        assert one["stats"]["rounds"] == 20
        assert extra["launch_seconds"] > 0 and extra["device_seconds_cold_l2"] > 0


def test_on_the_cpu_it_is_the_plain_one(tmp_path):
    body = """
    import sys, time

    def test_plain(gpu_benchmark):
        assert gpu_benchmark(lambda n: time.sleep(0.001) or n + 1, 2) == 3
        assert gpu_benchmark.stats.stats.min >= 0.001

    def test_pedantic(gpu_benchmark):
        gpu_benchmark.group = "named"
        assert gpu_benchmark.pedantic(lambda: 5, rounds=3) == 5
        assert not {"numba", "cupy"} & set(sys.modules)
    """
    done = suite(tmp_path, body, *BENCHMARK)
    assert done.returncode == 0, done.stdout + done.stderr
    plain, pedantic = measured(tmp_path)
    assert plain["extra_info"] == {} and pedantic["group"] == "named" and pedantic["stats"]["rounds"] == 3


@pytest.mark.usefixtures("_emulated")
def test_switched_off_it_calls_once(tmp_path):
    body = """
    def test_once(gpu_benchmark):
        calls = []
        x = xp.ones(10, np.float32)
        assert gpu_benchmark(lambda: calls.append(x) or 3) == 3 and len(calls) == 1
    """
    done = suite(tmp_path, body, "-p", "pytest_benchmark.plugin", "--benchmark-disable", emulated=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_pytest_benchmark_only_its_use_fails(tmp_path):
    body = """
    def test_other():
        pass

    def test_uses(gpu_benchmark):
        pass
    """
    done = suite(tmp_path, body)
    assert done.returncode == 1 and "1 passed, 1 error" in done.stdout, done.stdout
    assert "gpu_benchmark needs pytest-benchmark: pip install pytest-benchmark" in done.stdout


def test_the_entry_point():
    import tomllib

    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not path.exists():
        pytest.skip("pyproject.toml is part of a checkout only")
    points = tomllib.loads(path.read_text())["project"]["entry-points"]["pytest11"]
    assert points == {"fastgrad": "fastgrad._pytest_plugin"}


def test_loading_it_imports_nothing_heavy():
    code = (
        "import sys, fastgrad._pytest_plugin as p; print([n for n in ('numba', 'cupy', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[]\n"
