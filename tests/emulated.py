"""Tests of CUDA sources run wherever there is g++; where FASTGRAD_TEST_BACKENDS names `emulated`, they must."""

from __future__ import annotations

import os

import pytest

from devtools import cuda_on_cpu

REASON = cuda_on_cpu.why_unavailable()
NAMED = "emulated" in os.environ.get("FASTGRAD_TEST_BACKENDS", "").split(",")

needs_emulated = pytest.mark.skipif(REASON is not None and not NAMED, reason=str(REASON))
