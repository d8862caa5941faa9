"""The record of runs on a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest

hardware = pytest.importorskip("devtools.hardware", reason="devtools/ is part of a checkout only")


def record(**changes):
    keys = hardware.source_keys()
    return {
        "schema": hardware.SCHEMA,
        "date": "2026-11-21",
        "commit": "0123456789abcdef",
        "dirty": False,
        "device": {"name": "A GPU", "driver": "1.2", "compute": "9.0", "multiprocessors": 132},
        "versions": {"python": "3.12", "cupy": "14.2"},
        "ceilings": {"copy_GBps": 4000.0, "product_TFLOPs": 50.0, "call_us": 9.0},
        "kernels": {stem: {"source": key, "cases": 3, "failed": 0} for stem, key in keys.items()},
        "tests": {"passed": 3, "failed": 0, "skipped": 0, "exit": 0},
        "sanitizer": {"memcheck": "clean", "racecheck": "not available"},
        "rows": [
            {"name": "Adam", "bytes": 1, "flops": 0, "limit": 0.5, "milliseconds": {"fastgrad": 1.0, "torch": 1.5}},
            {"name": "nobody", "bytes": 1, "flops": 0, "limit": 0.5, "milliseconds": {}},
        ],
        "left_out": [],
        **changes,
    }


def test_what_is_committed_is_sound_and_the_readme_says_the_same(capsys):
    found = hardware.records()  # raises on bad data
    newest = found[-1] if found else None
    with capsys.disabled():
        print(f"\n{hardware.summary(newest, hardware.source_keys())}")
    text = hardware.README.read_text()
    assert text.split(hardware.BEGIN)[1].split(hardware.END)[0].strip("\n") == hardware.readme_text(newest), (
        "README.md disagrees with the record; run `python -m devtools.hardware readme`"
    )


def test_states():
    keys = hardware.source_keys()
    assert {"activation", "column_sums"} <= set(keys)
    assert set(hardware.states(None, keys).values()) == {"never run"}
    whole = record()
    assert set(hardware.states(whole, keys).values()) == {"current"}
    states = hardware.states(whole, {**keys, "activation": "changed", "new": "key"})
    assert states["activation"] == "stale" and states["new"] == "never run" and states["column_sums"] == "current"
    whole["kernels"]["activation"]["cases"] = 0
    assert hardware.states(whole, keys)["activation"] == "never run"
    assert "1 never run (activation.cu)" in hardware.summary(whole, keys)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 0}, "expected schema"),
        ({"dirty": True}, "no commit"),
        ({"tests": {"passed": 3, "failed": 1, "skipped": 0}}, "1 tests failed on A GPU"),
        ({"kernels": {"adam": {"source": "", "cases": 3, "failed": 2}}}, "2 of 3 cases of adam.cu failed"),
        ({"sanitizer": {"memcheck": "exit 9: ERROR SUMMARY: 1 error"}}, "compute-sanitizer memcheck: exit 9"),
    ],
)
def test_bad_records_are_refused(tmp_path, change, complaint):
    path = tmp_path / "a-gpu.json"
    path.write_text(json.dumps(record(**change)))
    with pytest.raises(hardware.BadRecord, match=complaint):
        hardware.read(path)


def test_missing_parts_are_refused(tmp_path):
    whole = record()
    del whole["ceilings"]
    (tmp_path / "a-gpu.json").write_text(json.dumps(whole))
    with pytest.raises(hardware.BadRecord, match="ceilings is missing"):
        hardware.read(tmp_path / "a-gpu.json")


def test_comments_and_white_space_leave_a_source_current():
    from fastgrad.kernels import cuda

    text = '// why\nint  f(int x) { /* a\n b */ return x; }\n#line 3 "common.cuh"\n'
    assert cuda.stripped(text) == "int f(int x) { return x; }"
    assert cuda.stripped(text.replace("return x", "return -x")) != cuda.stripped(text)


def test_table():
    text = hardware.readme_text(record())
    assert "| Adam | 1 | 0.50 | torch 1.50x |" in text
    assert "nobody" not in text and "older version" not in text
    stale = record(kernels={"activation": {"source": "other", "cases": 1, "failed": 0}})
    assert "Measured on an older version of activation.cu" in hardware.readme_text(stale)


def test_a_run_is_rehearsed_from_the_command_line(tmp_path):
    """The whole way of a run, with a few cases and no GPU: tests, benchmarks, the record."""
    from devtools.cuda_on_cpu import why_unavailable

    if why_unavailable():
        pytest.skip(why_unavailable())
    command = [sys.executable, "-m", "devtools.hardware", "run", "--rehearse", "--commit", "0" * 40, "--out", tmp_path]
    done = subprocess.run(command, cwd=hardware.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    written = hardware.read(tmp_path / "rehearsal.json")
    assert written["tests"]["passed"] >= 8 and written["kernels"]["activation"]["cases"] >= 8
    assert written["rows"][0]["milliseconds"]["fastgrad"] > 0
    assert {point["cell"] for point in written["recurrent"]["points"]} == {"lstm", "gru"}
    assert [size for size, _ in written["recurrent"]["limits"]["lstm"]] == [8]


def test_what_the_package_carries_is_what_the_records_say():
    there = {path: path.read_text() for path in (hardware.ROOT / "kernels").glob("recurrent_*.json")}
    assert there == hardware.packaged(), (
        "kernels/ disagrees with the records; run `python -m devtools.hardware package`"
    )


def test_the_newest_record_of_each_device_is_packaged(tmp_path, monkeypatch):
    from fastgrad.kernels import recurrent_choice

    def measured(name, limit):
        device = {"name": name, "multiprocessors": 132}
        return {
            "schema": recurrent_choice.SCHEMA,
            "device": device,
            "date": "2026-11-21",
            "driver": "1.2",
            "sources": recurrent_choice.sources_key(),
            "limits": {"lstm": [[64, limit]], "gru": []},
            "points": [{"cell": "lstm"}],
        }

    for folder in ("hardware", "kernels"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    monkeypatch.setattr(hardware, "FOLDER", tmp_path / "hardware")
    (tmp_path / "kernels" / "recurrent_gone.json").write_text("{}")
    records = {
        "old": record(recurrent=measured("GPU 1", 1.0), date="2026-01-01"),
        "new": record(recurrent=measured("GPU 1", 2.0), date="2026-02-01"),
        "other": record(recurrent=measured("GPU 2", 3.0)),
        "unmeasured": record(recurrent={}),
        "before": record(),
    }
    for name, one in records.items():
        (tmp_path / "hardware" / f"{name}.json").write_text(json.dumps(one))
    assert hardware.write_packaged() and not hardware.write_packaged()
    found = sorted((tmp_path / "kernels").iterdir())
    assert [path.name for path in found] == ["recurrent_gpu-1.json", "recurrent_gpu-2.json"]

    class Device:
        name, multiprocessors = "GPU 1", 132

    monkeypatch.setattr(recurrent_choice.cuda, "FOLDER", tmp_path / "kernels")
    path, raw = recurrent_choice._packaged(Device)
    assert path == found[0] and "points" not in json.loads(raw)
    assert recurrent_choice.usable(json.loads(raw), Device)[4] == ((64,), (2.0,))


def test_a_test_that_crashes_or_hangs_costs_no_other(tmp_path, monkeypatch):
    """What comes after it in its file is run in a new process; its results and the trouble are kept."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "backends.py"):
        shutil.copy(hardware.ROOT / "tests" / name, tmp_path / "tests")
    file = tmp_path / "tests" / "test_some.py"
    lines = ["import os, time, pytest", "def test_good(): pass", "def test_crash(): os.abort()"]
    lines += ["@pytest.mark.parametrize('x', ['a b', 'c'])", "def test_bad(x): assert x == 'c'"]
    lines += ["def test_hang(): time.sleep(1000)", "def test_skipped(): pytest.skip('why')", "def test_last(): pass"]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(hardware, "STALL", 6.0)
    run = hardware.Run(tmp_path / "out", 5, False)
    run.root = tmp_path
    run.environment["FASTGRAD_TEST_BACKENDS"] = "reference"
    run.environment["FASTGRAD_TEST_DEVICES_ONLY"] = ""
    found = run.test_file(file, time.monotonic() + 200)
    assert {name.partition("::")[2]: result for name, result in found["results"].items()} == {
        "test_good": "passed",
        "test_crash": "failed",
        "test_bad[a b]": "failed",
        "test_bad[c]": "passed",
        "test_hang": "failed",
        "test_skipped": "skipped",
        "test_last": "passed",
    }
    assert [text.partition("::")[2] for text in found["trouble"]] == ["test_crash: exit -6", "test_hang: hung"]
    run.write_logs()
    assert "Fatal Python error: Aborted" in (tmp_path / "out" / "logs.txt").read_text()


def test_a_part_that_breaks_off_leaves_a_record(tmp_path, monkeypatch):
    def broken(self, *args):
        raise OSError("no such thing")

    monkeypatch.setattr(hardware.Run, "tests", broken)
    monkeypatch.setattr(hardware.Run, "benchmarks", broken)
    path = hardware.run(tmp_path, "0" * 40, False, 1.0, True)
    written = json.loads(path.read_text())
    assert set(written["trouble"]) == {"tests", "benchmarks"} and "no such thing" in written["trouble"]["tests"]
    with pytest.raises(hardware.BadRecord, match="not complete: tests, benchmarks broke off"):
        hardware.read(path)


# Nothing in what follows may be found by way of an installation, as on a machine that is lent.
UNINSTALLED = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__ + getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if "site-packages" not in p or "__editable__" not in p]
from pathlib import Path
from devtools import hardware
try:
    import fastgrad.kernels
except ImportError as error:
    print("not importable:", error)
for name in [name for name in sys.modules if name.startswith("fastgrad")]:
    del sys.modules[name]
run = hardware.Run(Path(sys.argv[1]), 1.0, True)
run.make_importable()
from fastgrad.kernels import cuda
print(run.root == Path(cuda.__file__).parent.parent.parent, run.root != hardware.ROOT)
"""


def test_a_tree_that_is_not_installed_is_made_importable(tmp_path):
    command = [sys.executable, "-c", UNINSTALLED, tmp_path]
    done = subprocess.run(command, cwd=hardware.ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    if not said[0].startswith("not importable"):
        pytest.skip("fastgrad is installed in a way that can't be hidden")
    assert said[1] == "True True"


def test_every_kernel_in_every_variant_is_compiled_ahead():
    """Those named, and no variant that a plan of the persistent kernels comes to is left out."""
    from fastgrad.kernels import cuda, recurrent_gpu

    from devtools import fill_cache

    names = {name for name, _ in fill_cache.texts()}
    assert {name.split()[0] for name in names} == {kernel.source for kernel in cuda.declared}
    assert len([name for name in names if name.startswith("attention float32")]) == 4

    class H200:
        multiprocessors, shared_memory, block_limit = 132, 227 << 10, 1024

    for cell, gates in (("lstm", 4), ("gru", 3)):
        for batch in (1, 2, 8, 16, 20, 33, 64, 128):
            for hidden in range(4, 1040, 12):
                for units in (8, 6, 4):
                    plan = recurrent_gpu._plan(H200, gates, units, batch, hidden)
                    assert plan is None or f"{cell}_persistent float32 {plan.variant}" in names
