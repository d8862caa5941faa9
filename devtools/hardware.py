"""The record of what a GPU last said about the CUDA sources, and whether it still speaks of this code.

    python -m devtools.hardware run --out hardware --commit SHA   on a machine with a GPU: test, check, measure, write
    python -m devtools.hardware status                            which source is current, stale, or was never run
    python -m devtools.hardware readme                            put the record's figures into README.md
    python -m devtools.hardware package                           put what it says of LSTM and GRU into kernels/

A run needs Python with CuPy, what fastgrad itself depends on, pytest and, for the comparisons, torch; no network, and
under 9 minutes: at most 90 s for compiling, 270 for the tests with the sanitizers beside them, 40 for the two ways of
LSTM and GRU (15 by calculation, see fastgrad/profiling/recurrent_ways.py), and what is left, 110 or more, for the
benchmarks. `run --rehearse` goes the same way without a GPU, by a few cases; `run --rehearse --whole` by
all test files, which are collected, all operations and all rows of the benchmarks. It
writes hardware/<device>.json, anew after each part, and logs.txt beside it. A test file is a process of its own: what a
test leaves behind that crashes, hangs or breaks the GPU's context is no other test's trouble.

A source is `current` where its text with all headers, without comments and white space, is the one that ran; `stale`
where it has changed; `never run` where no record names it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import functools
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
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
    "embedding": ("test_linear", "test_layers"),
    "matmul": ("test_matmul",),
    "recurrent": ("test_lstm", "test_gru"),
    "lstm_persistent": ("test_lstm", "test_between_steps", "test_on_a_gpu"),
    "gru_persistent": ("test_gru", "test_between_steps", "test_on_a_gpu"),
    "gru_reset_before": ("test_gru",),
    "lstm": ("test_lstm", "test_on_a_gpu"),
    "gru": ("test_gru", "test_on_a_gpu"),
    "loss": ("test_mse", "test_cross_entropy"),
    "delay": ("test_device_clock",),
}
SANITIZERS = ("memcheck", "racecheck")


# --- the sources


def source_keys() -> dict[str, str]:
    """Return for each kernels/<stem>.cu a hash of its text with its headers and of the compiler's options."""
    from fastgrad.kernels import cuda

    return {path.stem: cuda.source_key(path.stem) for path in sorted((ROOT / "kernels").glob("*.cu"))}


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
    if record.get("trouble"):
        raise BadRecord(f"{path.name}: not complete: {', '.join(record['trouble'])} broke off")
    if not record["ceilings"]:
        raise BadRecord(f"{path.name}: not complete: nothing was measured")
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


# --- the part of a record that the package carries


def packaged() -> dict[Path, str]:
    """Return the files of kernels/ that say which way an LSTM or GRU goes, of the newest record of each device."""
    from fastgrad.kernels import recurrent_choice

    found = {}
    for record in records():
        measured = record.get("recurrent")
        if measured:
            path = ROOT / "kernels" / recurrent_choice.packaged_path(measured["device"]["name"]).name
            # What was decided, not each size: those are in the record.
            found[path] = json.dumps({k: v for k, v in measured.items() if k != "points"}, indent=1) + "\n"
    return found


def write_packaged() -> bool:
    """Write these files, delete what no record speaks of, and say whether that changed any."""
    wanted = packaged()
    there = {path: path.read_text() for path in (ROOT / "kernels").glob("recurrent_*.json")}
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return there != wanted


# --- running

# pytest -v says when a test begins and when it ends. One that says nothing for STALL seconds hangs, most likely in a
# kernel.
STALL = 60.0
PROCESSES = 6
ATTEMPTS = 8  # at a test file: as many of its tests may crash or hang, and the others are run


class Run:
    """One run on a device: everything it learns, and the seconds it has left."""

    def __init__(self, out: Path, minutes: float, rehearse: bool, whole: bool = False) -> None:
        self.out, self.rehearse, self.whole, self.root = out, rehearse, whole, ROOT
        self.logs = Path(tempfile.mkdtemp(prefix="fastgrad-logs-"))
        self.deadline = time.monotonic() + 60 * minutes
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "FASTGRAD_TEST_BACKENDS": "emulated" if rehearse else "gpu",
            "FASTGRAD_TEST_DEVICES_ONLY": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def write_logs(self) -> None:
        """Put all logs into one file, the latest last: few files come back from a machine that is lent."""
        logs = sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        parts = [f"===== {path.stem}\n{path.read_text(errors='replace')[-400_000:]}" for path in logs]
        (self.out / "logs.txt").write_text("\n".join(parts)[-12_000_000:])

    def left(self, most: float) -> float:
        """Return at most so many seconds, less where the run has fewer."""
        return max(1.0, min(most, self.deadline - time.monotonic()))

    def command(
        self, log: str, *command: str, seconds: float, stall: float = math.inf, extra: dict[str, str] | None = None
    ) -> int:
        """Run a command from the root of the tree, its output in a log; 124 where it takes too long.

        stall : seconds without output after which it hangs
        """
        start = time.monotonic()
        path = self.logs / f"{log}.log"
        with path.open("w") as file:
            # A session of its own: what it has started is ended with it. An orphan would go on to keep the GPU busy.
            process = subprocess.Popen(
                command, cwd=self.root, env={**self.environment, **(extra or {})}, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            end = start + self.left(seconds)
            size, changed = 0, start
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if path.stat().st_size != size:
                        size, changed = path.stat().st_size, now
                    if now > end or now - changed > stall:
                        code = 124
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                        break
        tail = path.read_text(errors="replace").strip().splitlines()[-3:]
        said = [f"-- {log}: {' '.join(command)}", f"{code} after {time.monotonic() - start:.0f} s", *tail]
        print("\n   ".join(said), flush=True)
        return code

    def make_importable(self) -> None:
        """Let this tree be imported as fastgrad where it is not installed: nothing can be fetched or built there.

        An installed fastgrad has the folder kernels/ inside of it. A copy of the tree that has it there is where all
        commands run: what is imported from the working directory comes before PYTHONPATH.
        """
        with contextlib.suppress(ImportError):  # the folder alone does not import without kernels/ inside
            if importlib.util.find_spec("fastgrad.kernels"):
                return
        place = Path(tempfile.mkdtemp(prefix="fastgrad-"))
        for name in ("bench", "devtools", "fastgrad", "kernels", "tests"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in filter(Path.is_file, ROOT.iterdir()):
            shutil.copy(path, place)
        shutil.copytree(ROOT / "kernels", place / "fastgrad" / "kernels")
        self.root = place
        for name in [name for name in sys.modules if name.partition(".")[0] == "fastgrad"]:
            del sys.modules[name]
        sys.path.insert(0, str(place))

    def compile_all(self) -> str:
        """Fill CuPy's cache on the disk with every kernel, by many processes; say what came of it."""
        extra = ["--list"] if self.rehearse else []
        code = self.command("compile", sys.executable, "-m", "devtools.fill_cache", *extra, seconds=90)
        said = [
            line for line in (self.logs / "compile.log").read_text(errors="replace").splitlines() if " modules " in line
        ]
        return " ".join([*said, *([f"exit {code}"] if code else [])])

    def test_file(self, file: Path, until: float) -> dict[str, Any]:
        """Run the tests of a file, each once, whichever of them crash; return the result of each and the trouble."""
        results: dict[str, str] = {}
        trouble: list[str] = []
        after = ""
        start = time.monotonic()
        for attempt in range(ATTEMPTS):
            seconds = until - time.monotonic()
            if seconds < 5:
                trouble.append("no time left")
                break
            log = f"{file.stem}.{attempt}" if attempt else file.stem
            code = self.command(
                log, sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist",
                "--color=no", *(["-k", "relu6 and float32"] if self.rehearse else []), f"tests/{file.name}",
                seconds=seconds, stall=STALL,
                extra={"FASTGRAD_TEST_AFTER": after, "FASTGRAD_TEST_PROGRESS": str(self.logs / f"{log}.progress")},
            )  # fmt: skip
            found, culprit, why = progress(self.logs / f"{log}.progress")
            results.update(found)
            if code in (0, 1, 5):
                break
            if not culprit:
                trouble.append(f"exit {code}, and no test to blame")
                break
            results[culprit] = "failed"
            trouble.append(f"{culprit}: {why or ('hung' if code == 124 else f'exit {code}')}")
            after = culprit
        else:
            trouble.append(f"given up after {ATTEMPTS} crashes")
        return {"results": results, "trouble": trouble, "seconds": round(time.monotonic() - start, 1)}

    def tests(self, seconds: float) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
        """Run the tests on the device, a process for each file; return the totals, and cases and failures by file."""
        files = sorted((ROOT / "tests").glob("test_*.py"), key=lambda path: -path.stat().st_size)
        if self.rehearse:
            files = [ROOT / "tests" / "test_activation.py"]
        if self.whole:
            code = self.command(
                "collect", sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-p",
                "no:xdist", "--color=no", "tests", seconds=120,
            )  # fmt: skip
            if code:
                raise RuntimeError(f"the tests can't be collected: exit {code}")
        until = time.monotonic() + self.left(seconds)
        with concurrent.futures.ThreadPoolExecutor(min(PROCESSES, os.cpu_count() or 1)) as pool:
            ran = dict(zip([f.stem for f in files], pool.map(lambda f: self.test_file(f, until), files), strict=True))
        totals: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
        by_file: dict[str, dict[str, int]] = {}
        for stem, one in ran.items():
            results = list(one["results"].values())
            failed = results.count("failed")
            # What broke off or was not reached has not passed.
            failed += sum(text.startswith(("no time", "exit", "given up")) for text in one["trouble"])
            totals["failed"] += failed
            totals["passed"] += results.count("passed")
            totals["skipped"] += results.count("skipped")
            cases = len(results) - results.count("skipped")
            if cases or failed:
                by_file[stem] = {"cases": cases, "failed": failed}
        names = [name for one in ran.values() for name, result in one["results"].items() if result == "failed"]
        totals["failures"] = sorted(names)[:100]
        totals["trouble"] = {stem: one["trouble"] for stem, one in ran.items() if one["trouble"]}
        totals["seconds"] = {stem: one["seconds"] for stem, one in ran.items()}
        return totals, by_file

    def sanitizer(self, tool: str, seconds: float) -> str:
        """Run each operation once under compute-sanitizer; "clean", or the last line of what it says."""
        place = Path("/usr/local/cuda/bin/compute-sanitizer")
        found = shutil.which("compute-sanitizer") or (str(place) if place.exists() else None)
        if self.whole and tool == SANITIZERS[0]:
            code = self.command(
                tool, sys.executable, "-m", "devtools.every_op", "--emulated", "--only", "float32", seconds=seconds
            )  # fmt: skip
            return "not available" if code == 0 else f"exit {code}"
        if found is None or self.rehearse:
            return "not available"
        # Our kernels only: cuBLAS's and CuPy's take most of the time. And no errors of the API: CuPy asks a device for
        # attributes that it does not have, and minds the answer.
        code = self.command(
            tool, found, "--tool", tool, "--kernel-regex", "kns=fg_", "--report-api-errors", "no", "--print-limit",
            "20", "--error-exitcode", "9", sys.executable, "-m", "devtools.every_op", "--only", "float32",
            seconds=seconds,
        )  # fmt: skip
        text = (self.logs / f"{tool}.log").read_text(errors="replace").strip().splitlines()
        return "clean" if code == 0 else f"exit {code}: {text[-1] if text else ''}"

    def recurrent(self, seconds: float) -> dict[str, Any]:
        """Return what `fastgrad tune` would keep: which way an LSTM or GRU goes faster at which size."""
        path = self.logs / "recurrent.json"
        path.unlink(missing_ok=True)
        seconds = self.left(seconds)
        extra = ["--rehearse"] if self.rehearse else []
        command = [sys.executable, "-m", "devtools.recurrent_ways", str(path), "--seconds", str(seconds / 2), *extra]
        code = self.command("recurrent", *command, seconds=seconds)
        if code:
            raise RuntimeError(f"the two ways of LSTM and GRU can't be measured: exit {code}")
        return json.loads(path.read_text())

    def benchmarks(self, seconds: float) -> dict[str, Any]:
        """Return the ceilings and rows of bench/gpu.py, as far as it came."""
        path = self.logs / "rows.json"
        path.unlink(missing_ok=True)
        seconds = self.left(seconds)
        extra = ["--rehearse", "--turns", "1"] if self.rehearse else []
        extra += ["--only", "activation relu"] if self.rehearse and not self.whole else []
        command = [sys.executable, "bench/gpu.py", "--json", str(path), "--seconds", str(round(seconds - 30)), *extra]
        self.command("benchmarks", *command, seconds=seconds)
        if not path.exists():
            return {"ceilings": {}, "rows": [], "left_out": ["all"]}
        return json.loads(path.read_text())


def progress(path: Path) -> tuple[dict[str, str], str | None, str]:
    """Return the result of each test in what tests/conftest.py wrote, the test that broke the run off, and why.

    A failure beats what else is said of a test.
    """
    found: dict[str, str] = {}
    last, why = None, ""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        what, name, *more = line.split("\t")
        if what in ("passed", "failed", "skipped"):
            if found.get(name) != "failed":
                found[name] = what
        else:
            last, why = (None if what == "ended" else name), " ".join(more)
    return found, last, why


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
        import numba

        versions["numba"] = numba.__version__
    except ImportError as error:  # of a NumPy that it does not know
        versions["numba"] = f"none ({error})"
    try:
        import torch

        versions["torch"] = torch.__version__
        versions["cudnn"] = str(torch.backends.cudnn.version())
    except ImportError:
        pass
    asked = ""
    with contextlib.suppress(OSError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return {
        "name": properties["name"].decode(),
        "compute": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "driver": asked or str(runtime.driverGetVersion()),
    }, versions


def run(out: Path, commit: str, dirty: bool, minutes: float, rehearse: bool, whole: bool = False) -> Path:
    """Test, check and measure on this machine's GPU, and write the record; return its path.

    The record is written anew after each part. A part that fails leaves its trouble in it, and the others go on.
    """
    this = Run(out, minutes, rehearse, whole)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "device": {"name": "unknown", "driver": "unknown", "compute": "0", "multiprocessors": 0},
        "versions": {},
        "tests": {"passed": 0, "failed": 0, "skipped": 0},
        "sanitizer": {},
        "kernels": {},
        "recurrent": {},
        "ceilings": {},
        "rows": [],
        "left_out": [],
        "trouble": {},
    }

    writing = threading.Lock()

    def path() -> Path:
        return out / f"{re.sub('[^a-z0-9]+', '-', record['device']['name'].lower()).strip('-')}.json"

    def part(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            record["trouble"][name] = traceback.format_exc()[-2000:]
            print(record["trouble"][name], flush=True)
        with writing:
            path().write_text(json.dumps(record, indent=1) + "\n")
            this.write_logs()

    def device() -> None:
        record["device"], record["versions"] = _device(rehearse)

    def tests() -> None:
        totals, by_file = this.tests(270)
        record["tests"] = totals
        for stem, key in source_keys().items():
            entries = [by_file[name] for name in TESTS.get(stem, (f"test_{stem}",)) if name in by_file]
            cases, failed = (sum(entry[what] for entry in entries) for what in ("cases", "failed"))
            record["kernels"][stem] = {"source": key, "cases": cases, "failed": failed}

    def sanitizer(tool: str) -> None:
        record["sanitizer"][tool] = this.sanitizer(tool, 270)

    def checks() -> None:
        # The sanitizers beside the tests: neither is timed, and most of both is the host's work.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for tool in SANITIZERS:
                pool.submit(part, tool, functools.partial(sanitizer, tool))
            part("tests", tests)

    this.make_importable()
    part("device", device)
    part("compile", lambda: record.update(compiled=this.compile_all()))
    checks()
    part("recurrent", lambda: record.update(recurrent=this.recurrent(40)))
    part("benchmarks", lambda: record.update(this.benchmarks(240)))
    return path()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="test, check and measure on this machine's GPU")
    running.add_argument("--out", type=Path, default=FOLDER, help="folder of the record and the logs")
    running.add_argument("--commit", default="", help="what is checked out, where git can't be asked")
    running.add_argument("--minutes", type=float, default=9.0)
    running.add_argument("--rehearse", action="store_true", help="without a GPU: a few cases on the CPU")
    running.add_argument("--whole", action="store_true", help="with --rehearse: all that needs no GPU")
    commands.add_parser("status", help="say which source the newest record still speaks of")
    commands.add_parser("readme", help="put the newest record's figures into README.md")
    commands.add_parser("package", help="put what the records say of LSTM and GRU into kernels/")
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
        if arguments.whole and not arguments.rehearse:
            parser.error("--whole: says how much to rehearse; pass --rehearse as well")
        path = run(arguments.out.resolve(), commit, dirty, arguments.minutes, arguments.rehearse, arguments.whole)
        print(path)
        print(summary(json.loads(path.read_text()), source_keys()))
    elif arguments.command == "status":
        found = records()
        print(summary(found[-1] if found else None, source_keys()))
    elif arguments.command == "package":
        print("kernels/ changed" if write_packaged() else "kernels/ is up to date")
    else:
        print("README.md changed" if write_readme() else "README.md is up to date")


if __name__ == "__main__":
    main()
