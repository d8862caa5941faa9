"""What importing costs, and that it loads nothing optional."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastgrad


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return result.stdout.strip()


def test_importing_loads_numpy_alone():
    heavy = ["cupy", "torch", "numba", "llvmlite", "scipy", "matplotlib", "typer", "rich", "safetensors"]
    loaded = python(f"import sys, fastgrad; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]"


def test_the_reference_needs_no_numba():
    code = (
        "import sys; sys.modules['numba'] = None; import numpy, fastgrad\n"
        "with fastgrad.backend('reference'): print(fastgrad.activation(numpy.array([-1.0, 2.0]), 'relu'))"
    )
    assert python(code) == "[0. 2.]"


def test_every_public_name_is_there():
    for name in fastgrad.__all__:
        assert getattr(fastgrad, name) is not None, name
    assert set(fastgrad.__all__) <= set(dir(fastgrad))
    with pytest.raises(AttributeError, match="module 'fastgrad' has no attribute 'nothing'"):
        _ = fastgrad.nothing


def test_every_public_function_has_a_docstring():
    undocumented = [name for name in fastgrad.__all__ if not getattr(fastgrad, name).__doc__]
    assert undocumented == []
