"""Machines without a GPU: what is said where one is asked for, and that nobody else pays for the question."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = "import sys; sys.modules['cupy'] = None\n"
NO_DRIVER = """
__version__ = "14.2.0"
class cuda:
    class runtime:
        class CUDARuntimeError(RuntimeError):
            pass
        @staticmethod
        def getDeviceCount():
            {answer}
    class nvrtc:
        @staticmethod
        def getVersion():
            {compiler}
"""
NVRTC = "return (13, 0)"
BROKEN = """
try:
    raise ImportError("libcudart.so.13: cannot open shared object file")
except ImportError as error:
    raise ImportError("\\n=====\\nFailed to import CuPy.\\n\\nIf you installed CuPy via wheels ...\\n=====") from error
"""
# What a machine has for CuPy: the source of a module of that name, what is said of it, and what to do.
MACHINES = {
    "absent": (None, "CuPy is not installed", 'pip install "fastgrad[cuda13]" (or cuda12)'),
    "no home": (
        "raise OSError(30, 'Read-only file system', '/.cupy')",
        "CuPy can't be imported (OSError: [Errno 30] Read-only file system: '/.cupy')",
        "set CUPY_CACHE_DIR to a folder that can be written",
    ),
    "broken": (
        BROKEN,
        "CuPy can't be imported (ImportError: libcudart.so.13: cannot open shared object file)",
        'pip install "fastgrad[cuda13]"',
    ),
    "incomplete": (
        "import a_part_that_is_missing",
        "CuPy can't be imported (ModuleNotFoundError: No module",
        "install",
    ),
    "no driver": (
        NO_DRIVER.format(
            compiler=NVRTC, answer='raise cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver:\\n too old")'
        ),
        "CuPy 14.2.0 is installed but finds no GPU (cudaErrorInsufficientDriver: too old)",
        "see what nvidia-smi says",
    ),
    "hidden": (
        NO_DRIVER.format(compiler=NVRTC, answer="return 0"),
        "there is no CUDA device",
        "CUDA_VISIBLE_DEVICES may hide it",
    ),
    "no compiler": (
        NO_DRIVER.format(compiler='raise RuntimeError("Failure finding libnvrtc.so.13")', answer="return 1"),
        "CuPy 14.2.0 finds a GPU, but not NVRTC, which compiles the kernels",
        'pip install "fastgrad[cuda13]" (or cuda12) brings it',
    ),
}


@pytest.fixture(params=MACHINES)
def machine(request, tmp_path):
    """Return (run Python there, run the command line there, reason, advice) for each kind of machine."""
    module, reason, advice = MACHINES[request.param]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    if module is not None:
        (tmp_path / "cupy.py").write_text(module)
    before = ABSENT if module is None else ""

    def python(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", before + code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=tmp_path)

    def fastgrad(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python(f"import sys; sys.argv = {['fastgrad', *arguments]}; from fastgrad.cli import main; main()")

    return python, fastgrad, reason, advice


def one_sentence(line: str, name: str, reason: str, advice: str) -> None:
    assert line.startswith(f"{name}: no GPU can be used: {reason}") and "\n" not in line.strip(), line
    assert advice in line and line.strip().endswith(", or stay on the CPU"), line


ASKING = """
from fastgrad.layers import LSTM, Linear
layer = Linear(2, 3)
for ask in (lambda: layer.to("gpu"), lambda: LSTM(2, 3, device="gpu")):
    try:
        ask()
    except RuntimeError as error:
        print(error)
layer.to("cpu")
"""


def test_layers_say_why_and_what_to_do(machine):
    python, _, reason, advice = machine
    done = python(ASKING)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        one_sentence(line, "device", reason, advice)


def test_the_trainer_says_it_in_one_line(machine, tmp_path):
    _, fastgrad, reason, advice = machine
    done = fastgrad("train", "--backend", "gpu", "--steps", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    one_sentence(done.stderr.removeprefix("fastgrad: "), "--backend gpu", reason, advice)
    assert not (tmp_path / "out").exists()


def test_tuning_says_it_in_one_line(machine):
    python, fastgrad, reason, advice = machine
    done = fastgrad("tune")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    one_sentence(done.stderr.removeprefix("fastgrad: "), "tune", reason, advice)
    done = python("import fastgrad\ntry: fastgrad.tune_recurrent()\nexcept RuntimeError as error: print(error)")
    one_sentence(done.stdout, "tune_recurrent", reason, advice)


def test_doctor_says_it(machine):
    python, _, reason, advice = machine
    code = "f = fastgrad.doctor()['gpu']; print(f.value, f.advice, f.broken, sep='\\n')"
    done = python(f"import fastgrad; {code}")
    assert done.returncode == 0, done.stderr
    value, told, broken = done.stdout.splitlines()
    # What is installed and fails is broken; what is not there is absent.
    assert broken == str("can't be imported" in reason or "but not NVRTC" in reason)
    assert value.startswith(f"none: {reason}") and advice in told
    compiler = value.removeprefix(f"none: {reason}").rpartition("; ")[2]
    imports = not reason.startswith("CuPy can't") and reason != "CuPy is not installed"
    assert compiler == ("no NVRTC" if "NVRTC" in reason else "NVRTC 13.0") if imports else "NVRTC" not in value


USING = """
import sys

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends"):
            self.asked.append(name)

sys.meta_path.insert(0, Watch())
import numpy as np
import fastgrad
from fastgrad import layers
net = layers.Sequential(layers.Linear(3, 4), layers.Activation("tanh")).to("cpu")
optimizer = fastgrad.Adam(net.parameters(), max_norm=1.0)
net.backward(net.forward(np.ones((2, 3), np.float32)))
optimizer.step()
fastgrad.global_norm([p.grad for p in net.parameters()])
fastgrad.health([p.grad for p in net.parameters()])
print(Watch.asked, [name for name in sys.modules if name.startswith("cupy")])
"""


def test_who_stays_on_the_cpu_never_looks_for_cupy():
    """Neither imported nor searched for: a search goes through every folder of the path."""
    done = subprocess.run([sys.executable, "-c", USING], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[] []\n", done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_cupy_itself_without_a_gpu():
    """The CuPy that is installed, its devices hidden from it where there are any."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    code = ASKING + "import fastgrad; print(fastgrad.doctor()['gpu'].value)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == second
    one_sentence(first, "device", "CuPy ", "see what nvidia-smi says")
    assert " is installed but finds no GPU (cudaError" in first
    assert third.startswith("none: CuPy ") and "NVRTC" in third


def test_a_home_that_cannot_be_written(tmp_path):
    """CuPy makes its cache folder when it is imported; without it, it dies of an OSError."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    file = tmp_path / "file"
    file.write_text("")
    environment = {**os.environ, "HOME": str(file), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("CUPY_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", ASKING], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith("device: no GPU can be used: CuPy ") and line.endswith(", or stay on the CPU")
    assert Path(file).read_text() == ""
