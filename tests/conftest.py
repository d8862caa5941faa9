"""Fixtures: every op test runs on each backend and dtype."""

from __future__ import annotations

import functools
import os

import backends
import numpy as np
import pytest

import fastgrad

OUTCOME = pytest.StashKey[str]()  # of a test's own part, for fixtures that look back at it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[OUTCOME] = report.outcome
    return report


def pytest_generate_tests(metafunc):
    """Run what asks for `backend` on each one chosen (see backends.py); `cpu_backend` leaves the devices out."""
    names = backends.chosen()
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, indirect=True)
    if "cpu_backend" in metafunc.fixturenames:
        metafunc.parametrize("cpu_backend", [n for n in names if n not in backends.DEVICES], indirect=True)
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [n for n in names if n in backends.DEVICES], indirect=True)
    if "trainer_backend" in metafunc.fixturenames:
        # Hundreds of steps of a trainer take too long under the checker; test_train.py has cases of its own for it.
        metafunc.parametrize("trainer_backend", [n for n in names if n != "emulated"])
    if "on_device" in metafunc.fixturenames:
        metafunc.parametrize("on_device", [n for n in names if n in backends.DEVICES], indirect=True)


def pytest_collection_modifyitems(items):
    """Leave what devtools.hardware asks for: what runs on a device, and of that what comes after a test."""
    if os.environ.get("FASTGRAD_TEST_DEVICES_ONLY"):
        items[:] = [item for item in items if runs_on_a_device(item)]
    names = [item.nodeid for item in items]
    last = os.environ.get("FASTGRAD_TEST_AFTER")
    if last in names:
        del items[: names.index(last) + 1]


def runs_on_a_device(item):
    """Say whether a test runs on the device that was chosen; a module that imports the emulation runs on that."""
    fixtures = ("backend", "device", "on_device", "trainer_backend")
    params = (getattr(item, "callspec", None) and item.callspec.params) or {}
    chosen = [params.get(name) for name in fixtures]
    return "emulated" in chosen or ("gpu" in chosen and not hasattr(item.module, "emulated"))


_failed = False


def _note(*words):
    """Write down what happens for devtools.hardware, which reads it also where this process crashes."""
    path = os.environ.get("FASTGRAD_TEST_PROGRESS")
    if path:
        with open(path, "a") as file:
            file.write("\t".join(" ".join(word.split()) for word in words) + "\n")


def pytest_runtest_logstart(nodeid):
    _note("begun", nodeid)


def pytest_runtest_logreport(report):
    global _failed
    _failed = _failed or report.failed
    if report.when == "call" or not report.passed:
        _note(report.outcome, report.nodeid)


def pytest_runtest_logfinish(nodeid):
    """End the run where a test has left the GPU unusable, which all that come after it would be blamed for."""
    global _failed
    if _failed and "gpu" in backends.chosen():
        trouble = backends.trouble_of_the_gpu()
        if trouble:
            _note("lost", nodeid, trouble)
            pytest.exit(f"the GPU can't be used any more after {nodeid}: {trouble}", returncode=3)
    _failed = False
    _note("ended", nodeid)


@pytest.fixture
def backend(request, monkeypatch):
    """Run the test on the kernels of this name; on a device, with the public functions called on device arrays."""
    if request.param in backends.DEVICES:
        backends.stand_in(monkeypatch, request.param)
        backends.divert(monkeypatch, request.param, request.module)
        backends.reached.clear()
        yield request.param
        if request.node.stash.get(OUTCOME, "") == "passed":
            assert backends.reached, f"this case of {request.param!r} never came to the device"
        return
    with fastgrad.backend(request.param):
        yield request.param


@pytest.fixture
def cpu_backend(request):
    """Run the test on the kernels of this name: a test of what device arrays don't have, such as read-only ones."""
    with fastgrad.backend(request.param):
        yield request.param


@pytest.fixture
def on_device(request):
    """Return what makes a public function run on device arrays, to set beside a result of the CPU."""
    return functools.partial(backends.on_device, request.param)


@pytest.fixture
def device(request, monkeypatch):
    """Return the array module of a device, taken for the GPU by layers and the trainer."""
    backends.stand_in(monkeypatch, request.param)
    return backends.module(request.param)


@pytest.fixture
def emulated_gpu(monkeypatch):
    """Return the array module of the emulated device, which is taken for the GPU, also where there is a real one."""
    backends.stand_in(monkeypatch, "emulated")
    return backends.module("emulated")


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    """The dtype of every array of the test."""
    return request.param


@pytest.fixture
def thread_counts():
    """Numbers of threads to compare; the process's own is restored afterwards."""
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    yield range(1, numba.config.NUMBA_NUM_THREADS + 1)
    fastgrad.set_num_threads(before)
