"""Fixtures: every op test runs on each backend and dtype."""

from __future__ import annotations

import os

import numpy as np
import pytest

import fastgrad

BACKENDS = os.environ.get("FASTGRAD_TEST_BACKENDS", "reference,cpu").split(",")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the test on the kernels of this name."""
    with fastgrad.backend(request.param):
        yield request.param


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
