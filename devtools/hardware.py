"""The record of what a GPU last said about the CUDA sources, and whether it still speaks of this code.

    python -m devtools.hardware run --out hardware --commit SHA   on a machine with a GPU: test, check, measure, write
    python -m devtools.hardware status                            which source is current, stale, or was never run
    python -m devtools.hardware readme                            put the record's figures into README.md

A run needs Python with CuPy, NumPy, Numba, pytest and, for the comparisons, torch; no network, and under 9 minutes. It
writes hardware/<device>.json. A source is `current` where its text with all headers, without comments and white space,
is the one that ran; `stale` where it has changed; `never run` where no record names it.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "hardware"
README = ROOT / "README.md"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
SCHEMA = 1

# The tests of a source are tests/test_<stem>.py, and these.
TESTS = {
    "column_sums": ("test_activation", "test_linear"),
    "clip": ("test_clip",),
    "matmul": ("test_matmul",),
}


# --- the sources


def stripped(text: str) -> str:
    """Return a source without comments, line numbers and white space: what they change was not measured."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^#line[^\n]*", " ", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def source_keys() -> dict[str, str]:
    """Return for each kernels/<stem>.cu a hash of its text with its headers and of the compiler's options."""
    from fastgrad.kernels import cuda

    return {
        path.stem: hashlib.sha256(
            "\0".join([stripped(cuda.source_text(path.stem)), *cuda.OPTIONS]).encode()
        ).hexdigest()[:16]
        for path in sorted((ROOT / "kernels").glob("*.cu"))
    }


# --- reading a record


class BadRecord(ValueError):
    """A record that can't be trusted; the text says what is wrong with it."""


def read(path: Path) -> dict[str, Any]:
    """Return a record, once it is complete and all of its tests have passed."""
    record = json.loads(path.read_text())
    if record.get("schema") != SCHEMA:
        raise BadRecord(f"{path.name}: expected schema {SCHEMA}, got {record.get('schema')!r}")
    for key in ("date", "commit", "device", "versions", "ceilings", "kernels", "tests", "sanitizer", "rows"):
        if key not in record:
            raise BadRecord(f"{path.name}: {key} is missing")
    if record["dirty"]:
        raise BadRecord(f"{path.name}: written from a tree with changes that are in no commit")
    if record["tests"]["failed"]:
        raise BadRecord(f"{path.name}: {record['tests']['failed']} tests failed on {record['device']['name']}")
    for stem, kernel in record["kernels"].items():
        if kernel["failed"]:
            raise BadRecord(f"{path.name}: {kernel['failed']} of {kernel['cases']} cases of {stem}.cu failed")
    for tool, result in record["sanitizer"].items():
        if result not in ("clean", "not available"):
            raise BadRecord(f"{path.name}: compute-sanitizer {tool}: {result}")
    return record


def records() -> list[dict[str, Any]]:
    """Return all records, the newest last."""
    return sorted(map(read, sorted(FOLDER.glob("*.json"))), key=lambda record: record["date"])


def states(record: dict[str, Any] | None, keys: dict[str, str]) -> dict[str, str]:
    """Return current, stale or never run for each source."""
    found = {}
    for stem, key in keys.items():
        entry = record["kernels"].get(stem) if record else None
        if entry is None or entry["cases"] == 0:
            found[stem] = "never run"
        else:
            found[stem] = "current" if entry["source"] == key else "stale"
    return found


def summary(record: dict[str, Any] | None, keys: dict[str, str]) -> str:
    """Return a line such as "hardware record: 5 current, 1 stale (lstm.cu), 0 never run"."""
    by_state: dict[str, list[str]] = {"current": [], "stale": [], "never run": []}
    for stem, state in states(record, keys).items():
        by_state[state].append(f"{stem}.cu")
    parts = []
    for state, names in by_state.items():
        listed = f" ({', '.join(names)})" if names and state != "current" else ""
        parts.append(f"{len(names)} {state}{listed}")
    return "hardware record: " + ", ".join(parts)


def readme_text(record: dict[str, Any] | None) -> str:
    """Return what README.md says between its markers."""
    if record is None:
        return (
            "No run on a GPU is on record yet: the CUDA sources are compiled for sm_75 to sm_100 and executed on the\n"
            "CPU under a checker in every test run, and no figure of theirs is known."
        )
    device, versions, limits = record["device"], record["versions"], record["ceilings"]
    lines = [
        f"{record['date']}, {device['name']}, driver {device['driver']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; commit {record['commit'][:10]}. {record['tests']['passed']} tests passed there. float32, medians by "
        f"turns in one process. The limits of that run: {limits['copy_GBps']:.0f} GB/s for the device's own copy, "
        f"{limits['product_TFLOPs']:.1f} TFLOP/s for its float32 product; a call takes {limits['call_us']:.1f} us.",
        "",
        "| work | fastgrad, ms | share of the limit | others / fastgrad |",
        "|---|---:|---:|---|",
    ]
    for row in record["rows"]:
        own = row["milliseconds"].get("fastgrad")
        if own is None:
            continue
        others = ", ".join(
            f"{name} {ms / own:.2f}x" for name, ms in row["milliseconds"].items() if not name.startswith("fastgrad")
        )
        lines.append(f"| {row['name']} | {own:.3g} | {row['limit'] / own:.2f} | {others} |")
    changed = [f"{stem}.cu" for stem, state in states(record, source_keys()).items() if state != "current"]
    if changed:
        lines += ["", f"Measured on an older version of {', '.join(changed)}."]
    return "\n".join(lines)


def write_readme() -> bool:
    """Put the newest record's figures between the markers of README.md; say whether that changed it."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    found = records()
    new = f"{before}{BEGIN}\n{readme_text(found[-1] if found else None)}\n{END}{after}"
    README.write_text(new)
    return new != text


# --- running


class Run:
    """One run on a device: everything it learns, and the seconds it has left."""

    def __init__(self, out: Path, minutes: float, rehearse: bool) -> None:
        self.out, self.rehearse = out, rehearse
        self.deadline = time.monotonic() + 60 * minutes
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "FASTGRAD_TEST_BACKENDS": "emulated" if rehearse else "gpu"}

    def left(self, most: float) -> float:
        """Return at most so many seconds, less where the run has fewer."""
        return max(1.0, min(most, self.deadline - time.monotonic()))

    def command(self, log: str, *command: str, seconds: float) -> int:
        """Run a command from the root of the tree, its output in a file of `out`; 124 where it takes too long."""
        print(f"-- {log}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        with (self.out / f"{log}.log").open("w") as file:
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=self.environment, stdout=file, stderr=subprocess.STDOUT,
                    timeout=self.left(seconds),
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = 124
        tail = (self.out / f"{log}.log").read_text().strip().splitlines()[-3:]
        print(f"   {code} after {time.monotonic() - start:.0f} s", *tail, sep="\n   ", flush=True)
        return code

    def make_importable(self) -> None:
        """Let this tree be imported as fastgrad where it is not installed: nothing can be fetched or built there."""
        found = importlib.util.find_spec("fastgrad")
        if found is not None and found.origin and Path(found.origin).resolve().is_relative_to(ROOT / "fastgrad"):
            return
        place = Path(tempfile.mkdtemp(prefix="fastgrad-"))
        shutil.copytree(ROOT / "fastgrad", place / "fastgrad")
        shutil.copytree(ROOT / "kernels", place / "fastgrad" / "kernels")
        self.environment["PYTHONPATH"] = os.pathsep.join([str(place), self.environment.get("PYTHONPATH", "")])
        sys.path.insert(0, str(place))

    def tests(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Run the tests on the device; return the totals, and cases and failures by test file."""
        report = self.out / "tests.xml"
        workers = ["-n", str(min(6, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
        chosen = ["tests/test_activation.py", "-k", "relu6 and float32"] if self.rehearse else ["tests"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, f"--junitxml={report}"]
        code = self.command("tests", *command, *chosen, seconds=240)
        totals = {"passed": 0, "failed": 0, "skipped": 0, "exit": code}
        by_file: dict[str, dict[str, int]] = {}
        if report.exists():
            for case in ElementTree.parse(report).getroot().iter("testcase"):
                kinds = {child.tag for child in case}
                result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
                totals[result] += 1
                file = case.get("classname", "").split(".")
                stem = next((part for part in file if part.startswith("test_")), "other")
                on_device = "[" in case.get("name", "") and ("gpu" in case.get("name", "") or self.rehearse)
                if on_device and result != "skipped":
                    entry = by_file.setdefault(stem, {"cases": 0, "failed": 0})
                    entry["cases"] += 1
                    entry["failed"] += result == "failed"
        if code not in (0, 1):
            totals["failed"] += 1  # a run that broke off has not passed
        return totals, by_file

    def sanitizer(self) -> dict[str, str]:
        """Run each operation once under compute-sanitizer; "clean", or the last line of what it says."""
        found = shutil.which("compute-sanitizer") or next(
            (p for p in ("/usr/local/cuda/bin/compute-sanitizer",) if Path(p).exists()), None
        )
        results = {}
        for tool in ("memcheck", "racecheck"):
            if found is None or self.rehearse:
                results[tool] = "not available"
                continue
            code = self.command(
                tool, found, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "devtools.every_op",
                seconds=75,
            )  # fmt: skip
            text = (self.out / f"{tool}.log").read_text().strip().splitlines()
            results[tool] = "clean" if code == 0 else f"exit {code}: {text[-1] if text else ''}"
        return results

    def benchmarks(self) -> dict[str, Any]:
        """Return the ceilings and rows of bench/gpu.py."""
        path = self.out / "rows.log"
        path.unlink(missing_ok=True)
        seconds = self.left(200)
        extra = ["--rehearse", "--turns", "1", "--only", "activation relu"] if self.rehearse else []
        command = [sys.executable, "bench/gpu.py", "--json", str(path), "--seconds", str(round(seconds - 30)), *extra]
        self.command("benchmarks", *command, seconds=seconds)
        if not path.exists():
            return {"ceilings": {}, "rows": [], "left_out": ["all"]}
        return json.loads(path.read_text())


def _device(rehearse: bool) -> tuple[dict[str, Any], dict[str, str]]:
    import numpy

    versions = {"python": platform.python_version(), "numpy": numpy.__version__}
    if rehearse:
        return {"name": "rehearsal", "driver": "none", "compute": "0", "multiprocessors": 0}, versions
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    versions["cupy"] = cupy.__version__
    versions["nvrtc"] = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    try:
        import torch

        versions["torch"] = torch.__version__
        versions["cudnn"] = str(torch.backends.cudnn.version())
    except ImportError:
        pass
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "name": properties["name"].decode(),
        "compute": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "driver": asked.stdout.strip() or str(runtime.driverGetVersion()),
    }, versions


def run(out: Path, commit: str, dirty: bool, minutes: float, rehearse: bool) -> Path:
    """Test, check and measure on this machine's GPU, and write the record; return its path."""
    this = Run(out, minutes, rehearse)
    this.make_importable()
    device, versions = _device(rehearse)
    totals, by_file = this.tests()
    sanitizer = this.sanitizer()
    measured = this.benchmarks()
    kernels = {}
    for stem, key in source_keys().items():
        entries = [by_file[name] for name in TESTS.get(stem, (f"test_{stem}",)) if name in by_file]
        kernels[stem] = {
            "source": key,
            "cases": sum(e["cases"] for e in entries),
            "failed": sum(e["failed"] for e in entries),
        }
    record = {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "versions": versions,
        "tests": totals,
        "sanitizer": sanitizer,
        "kernels": kernels,
        **measured,
    }
    path = out / f"{re.sub('[^a-z0-9]+', '-', device['name'].lower()).strip('-')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="test, check and measure on this machine's GPU")
    running.add_argument("--out", type=Path, default=FOLDER, help="folder of the record and the logs")
    running.add_argument("--commit", default="", help="what is checked out, where git can't be asked")
    running.add_argument("--minutes", type=float, default=9.0)
    running.add_argument("--rehearse", action="store_true", help="without a GPU: a few cases on the CPU")
    commands.add_parser("status", help="say which source the newest record still speaks of")
    commands.add_parser("readme", help="put the newest record's figures into README.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        commit, dirty = arguments.commit, False
        if not commit:
            commit = subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip()
            changes = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
            dirty = bool(changes.strip())
        if not commit:
            parser.error("--commit: git does not say what is checked out; pass it")
        path = run(arguments.out.resolve(), commit, dirty, arguments.minutes, arguments.rehearse)
        print(path)
        print(summary(json.loads(path.read_text()), source_keys()))
    elif arguments.command == "status":
        found = records()
        print(summary(found[-1] if found else None, source_keys()))
    else:
        print("README.md changed" if write_readme() else "README.md is up to date")


if __name__ == "__main__":
    main()
