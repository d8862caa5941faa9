"""The table of what calls take has every function in it. Times are not looked at here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import fastgrad

SCRIPT = Path(__file__).parent.parent / "bench" / "call_overhead.py"
# Settings, tools, and what is not called on arrays of 64 elements.
OTHERS = {
    "backend", "doctor", "get_backend", "get_subnormals", "profile_model", "reorder_gates", "set_backend",
    "set_num_threads", "set_subnormals", "subnormals", "tune_recurrent", "warmup",
}  # fmt: skip


def test_each_function_is_in_the_table(monkeypatch):
    if not SCRIPT.exists():
        pytest.skip("no bench folder")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv("FASTGRAD_BENCH_QUICK", "1")
    spec = importlib.util.spec_from_file_location("call_overhead", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    named = set()
    for name, call in script.calls():
        call()
        assert name not in named
        named.add(name)
    functions = {
        name for name in fastgrad.__all__ if callable(getattr(fastgrad, name)) and name.islower() and name not in OTHERS
    }
    assert functions <= {name.split(",")[0] for name in named}
