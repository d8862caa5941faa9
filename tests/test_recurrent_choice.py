"""Which way an LSTM or GRU goes on a GPU: where the choice comes from, and how it is measured. Times are made up."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from fastgrad.kernels import cache, cuda, gru_gpu, lstm_gpu, recurrent_choice, recurrent_gpu

import fastgrad
from fastgrad import _doctor
from fastgrad.profiling import recurrent_ways
from fastgrad.profiling.recurrent_ways import Grid, Point, crossover

ESTIMATE = recurrent_choice.ESTIMATE
SMALL = Grid(hidden=(8, 16), largest_batch=8, steps=2, inputs=3)
CELLS = {"lstm": 4, "gru": 3}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has chosen nothing yet, of a user without a cache."""
    monkeypatch.setenv("FASTGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(recurrent_choice, "_choices", {})
    monkeypatch.setattr(recurrent_gpu, "_method", "auto")


@pytest.fixture
def emulated(emulated_gpu):
    """The emulated device."""
    return cuda.device_of(emulated_gpu.empty(1, np.float32))


class H200:
    """What a plan asks of a device."""

    name = "H200 of a test"
    multiprocessors = 132
    shared_memory = 227 << 10
    block_limit = 1024


def new_process():
    recurrent_choice._choices.clear()


def document(on, limits, **changes):
    """Return a measurement of these kernels: limits by cell, as pairs of hidden size and limit."""
    return {
        "schema": recurrent_choice.SCHEMA,
        "device": {"name": on.name, "multiprocessors": on.multiprocessors},
        "date": "2026-11-22",
        "driver": "1.2",
        "versions": {},
        "sources": recurrent_choice.sources_key(),
        "limits": limits,
        **changes,
    }


def write(device, text):
    path = Path(os.environ["FASTGRAD_CACHE_DIR"]) / "recurrent" / f"{recurrent_choice.file_stem(device.name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


ALWAYS = {cell: [[8, 1e9]] for cell in CELLS}
NEVER = {cell: [[8, 0.0]] for cell in CELLS}

# --- the decision


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        # Half-way between two sizes that lie at the same distance from 1.
        ([-1.0, -0.5, 0.5, 1.0], 2000 * math.sqrt(2)),
        ([-1.0, -0.1, 0.3, 1.0], 2000 * 2**0.25),
        ([-1.0, -1.0, 0.0, 1.0], 4000),
        ([-1.0, 0.2, -1.0, -1.0, 1.0, 1.0], 8000 * math.sqrt(2)),  # one that noise has turned round
        ([-1.0, 1.0, 1.0, -0.2, 1.0], 1000 * math.sqrt(2)),
        ([0.3, 0.5, 0.9], 0.0),
        ([-0.1], ESTIMATE),
        ([0.1], 0.0),
        ([0.0, 0.0], ESTIMATE),
        ([-1.0] * 12, 1000 * 2**11),  # further than the estimate goes
        ([-1.0] * 3, ESTIMATE),
        ([-1.0, -1.0, 7.0, 7.0], 2000 * 2 ** (1 / 8)),
    ],
    ids=str,
)
def test_crossover(ratios, expected):
    points = [(1000 * 2**k, ratio) for k, ratio in enumerate(ratios)]
    assert crossover(points) == crossover(points[::-1]) == pytest.approx(expected)


def test_no_other_point_costs_less():
    rng = np.random.default_rng(1)
    for n in range(1, 9):
        ratios = rng.normal(size=(50, n)) + np.linspace(-1, 1, n)
        works = np.geomspace(1e3, 1e6, n)
        for row in ratios:
            limit = crossover(list(zip(works, row, strict=True)))
            costs = [row[:k].sum() for k in range(n + 1)]
            assert row[works <= limit].sum() == pytest.approx(min(costs))


def test_between_two_sizes_the_limit_is_a_straight_line():
    choice = recurrent_choice.Choice("measured", {4: ((64, 256), (1000.0, 4000.0)), 3: ((), ())})
    expected = {4: 1000, 64: 1000, 160: 2500, 256: 4000, 1024: 4000}
    assert {hidden: choice.limit(4, hidden) for hidden in expected} == expected
    assert choice.limit(3, 64) == ESTIMATE  # nothing was measured of a GRU
    assert recurrent_choice.Choice("estimated").limit(4, 64) == ESTIMATE


@pytest.mark.parametrize("cell", CELLS)
def test_the_grid_has_one_batch_for_each_work_around_the_estimate(cell):
    for hidden in Grid().hidden:
        found = list(recurrent_ways.sizes(H200, cell, hidden, 4096))
        batches, works = zip(*found, strict=True)
        assert list(works) == sorted(set(works)) and list(batches) == sorted(set(batches))
        for batch, work in found:
            plan = recurrent_gpu.best_plan(H200, CELLS[cell], batch, hidden)
            assert recurrent_gpu.work(plan, CELLS[cell], hidden) == work <= 4 * ESTIMATE
            twice = recurrent_gpu.best_plan(H200, CELLS[cell], 2 * batch, hidden)
            assert twice is None or recurrent_gpu.work(twice, CELLS[cell], hidden) > work
        assert min(batches) <= 8 and (max(batches) == 4096 or works[-1] >= 2 * ESTIMATE)
        assert all(b <= 8 * a for a, b in itertools.pairwise(batches))
    assert list(recurrent_ways.sizes(H200, cell, 1028, 4096)) == []


def test_the_largest_batch_of_a_limit():
    for cell, hidden, limit in (("lstm", 1024, 1 << 20), ("gru", 100, 1 << 18), ("lstm", 64, 1e9), ("gru", 8, 0.0)):
        batch = recurrent_ways.largest_batch(H200, cell, hidden, limit)

        def within(batch, gates=CELLS[cell], hidden=hidden, limit=limit):
            plan = recurrent_gpu.best_plan(H200, gates, batch, hidden)
            return plan is not None and recurrent_gpu.work(plan, gates, hidden) <= limit

        assert (batch == 0 or within(batch)) and not within(batch + 1)
    assert recurrent_ways.largest_batch(H200, "lstm", 1024, 1 << 20) == 32


# --- measuring


class Invented:
    """A clock whose times are a function of way, cell, batch and hidden size."""

    def __init__(self, seconds):
        self.seconds, self.order = seconds, []

    def queued(self, run, calls):
        batch, hidden = run.dy.shape[1:]
        self.order.append((run.cell, hidden, batch, run.way))
        return self.seconds(run.way, run.cell, batch, hidden)


def falls_behind(way, cell, batch, hidden):
    """The persistent way up to a batch of 4 for an LSTM, never for a GRU."""
    if way == "stepwise":
        return 1e-3
    return 2e-3 if cell == "gru" or batch > 4 else 0.5e-3


@pytest.fixture
def fine(monkeypatch):
    """An estimate so small that some sizes lie around it."""
    monkeypatch.setattr(recurrent_choice, "ESTIMATE", 1 << 9)


def test_what_is_measured_and_decided(emulated, fine):
    clock = Invented(falls_behind)
    found = recurrent_ways.measure(emulated, clock, SMALL)
    assert {(p.cell, p.hidden) for p in found.points} == set(itertools.product(CELLS, SMALL.hidden))
    for point in found.points:
        assert point.failed == "" and point.stepwise == 1e-3
        assert point.persistent == falls_behind("persistent", point.cell, point.batch, point.hidden)
        assert found.way(point) == ("persistent" if point.persistent < point.stepwise else "stepwise")
    assert found.limits["gru"] == {8: 0.0, 16: 0.0} and found.batches["gru"] == {8: 0, 16: 0}
    assert all(4 <= batch < 8 for batch in found.batches["lstm"].values())
    # Both ways of a size take turns.
    size = next(order[:3] for order in clock.order if order[1] == 8)
    ways = [order[3] for order in clock.order if order[:3] == size]
    assert ways.count("stepwise") == ways.count("persistent")
    assert sum(a != b for a, b in itertools.pairwise(ways)) >= recurrent_ways.TURNS
    assert recurrent_gpu.method() == "auto"
    assert "persistent up to a batch of" in str(found) and "none at H = 16" in str(found)
    assert recurrent_choice.usable(json.loads(json.dumps(found.document)), emulated) == {
        CELLS[cell]: (tuple(limits), tuple(limits.values())) for cell, limits in found.limits.items()
    }


def test_the_clock_of_the_device(device):
    """Nothing is made up: the kernels run, and both ways compute the same."""
    found = recurrent_ways.measure(cuda.device_of(device.empty(1, np.float32)), grid=Grid((8,), 2, 3, 4))
    assert found.points and all(p.failed == "" and p.stepwise > 0 and p.persistent > 0 for p in found.points)
    assert not found.left_out and found.document["steps"] == 3


def broken_kernel(monkeypatch, error=None):
    """Let the persistent way fail, or compute something else where there is no error."""
    plain = fastgrad.lstm_backward

    def backward(*args):
        found = plain(*args)
        if recurrent_gpu.method() == "persistent":
            if error is not None:
                raise error
            found.dbias_hh[...] = 0
        return found

    monkeypatch.setattr(fastgrad, "lstm_backward", backward)


@pytest.mark.parametrize("error", [RuntimeError("no room for 9 blocks"), None], ids=str)
def test_a_way_that_fails_is_not_taken(emulated, monkeypatch, error):
    broken_kernel(monkeypatch, error)
    found = recurrent_ways.measure(emulated, Invented(lambda way, *_: 1e-3 if way == "stepwise" else 1e-6), SMALL)
    for point in found.points:
        assert (point.persistent is None) == (point.cell == "lstm")
        assert found.way(point) == ("stepwise" if point.cell == "lstm" else "persistent")
    assert found.batches["lstm"] == {8: 0, 16: 0}
    assert ("no room for 9 blocks" if error else "gradient is off by") in str(found)


def test_a_size_that_memory_does_not_suffice_for_says_nothing(emulated, monkeypatch):
    broken_kernel(monkeypatch, MemoryError("so many bytes"))
    found = recurrent_ways.measure(emulated, Invented(lambda way, *_: 1e-3), SMALL)
    assert found.limits["lstm"] == {} and set(found.limits["gru"]) == {8, 16}
    assert "lstm: nothing was measured" in str(found) and "so many bytes" in str(found)
    assert recurrent_choice.usable(found.document, emulated)[4] == ((), ())


def test_no_size_is_begun_without_time(emulated):
    found = recurrent_ways.measure(emulated, Invented(falls_behind), SMALL, seconds=-1.0)
    assert found.points == () and len(found.left_out) == 4 and found.left_out[0] == "lstm, H = 8"
    assert "no time left for lstm, H = 8" in str(found)


def test_what_the_table_says_of_sizes_beyond_the_grid(emulated):
    found = recurrent_ways.measure(emulated, Invented(lambda way, *_: 1e-3 if way == "stepwise" else 1e-6), SMALL)
    largest = max(point.batch for point in found.points)
    assert f"(by estimate from {largest})" in str(found)


def test_ratios():
    assert Point("lstm", 8, 1, 1, 1.0, 2.0).ratio == pytest.approx(math.log(2))
    assert Point("lstm", 8, 1, 1, None, None).ratio is None
    assert Point("lstm", 8, 1, 1, 1.0, None).ratio == recurrent_ways.LOST


# --- where the choice comes from


def test_a_measurement_is_kept_and_read_again(emulated, fine):
    found = recurrent_ways.kept(recurrent_ways.measure(emulated, Invented(falls_behind), SMALL))
    assert found.path == Path(os.environ["FASTGRAD_CACHE_DIR"]) / "recurrent" / "emulated-gpu.json"
    assert os.listdir(found.path.parent) == [found.path.name]
    assert str(found).endswith(f"kept in {found.path}, for processes that begin from now on")
    choice = recurrent_choice.choice(emulated)
    assert choice.origin == "measured" and choice.path == found.path and choice.passed_over == ()
    for cell, limits in found.limits.items():
        assert {hidden: choice.limit(CELLS[cell], hidden) for hidden in limits} == limits
    assert choice.measurement["date"] == found.date and len(choice.measurement["points"]) == len(found.points)


class Launched:
    """Records which kernels of a launcher run."""

    def __init__(self, monkeypatch, cell="lstm"):
        self.ways = []
        module = {"lstm": lstm_gpu, "gru": gru_gpu}[cell]
        for name in ("_FORWARD", "_PERSISTENT_FORWARD", "_BACKWARD", "_PERSISTENT_BACKWARD"):
            kernel = getattr(module, name)

            def recorded(*args, kernel=kernel, way="persistent" if "PERSISTENT" in name else "stepwise", **kwargs):
                self.ways.append(way)
                return kernel(*args, **kwargs)

            monkeypatch.setattr(module, name, recorded)
        self.cell = cell

    def way(self, device, hidden=8, batch=1):
        """Return the way of a forward and a backward pass."""
        self.ways.clear()
        grid = Grid(steps=2, inputs=3)
        recurrent_ways._call(device.xp, grid, self.cell, hidden, batch)()
        (found,) = set(self.ways)
        assert len(self.ways) == (2 if found == "persistent" else 4)
        return found


@pytest.fixture
def packaged(monkeypatch, tmp_path):
    """What writes a measurement where the package would have it."""
    path = tmp_path / "packaged.json"
    monkeypatch.setattr(recurrent_choice, "packaged_path", lambda name: path)
    return lambda found: path.write_text(json.dumps(found))


@pytest.mark.parametrize("cell", CELLS)
def test_the_switch_the_users_own_the_packaged_the_estimate(emulated, monkeypatch, packaged, cell):
    launched = Launched(monkeypatch, cell)
    assert launched.way(emulated) == "persistent" and recurrent_choice.choice(emulated).origin == "estimated"
    packaged(document(emulated, NEVER))
    assert launched.way(emulated) == "persistent", "a process keeps its choice"
    new_process()
    assert launched.way(emulated) == "stepwise" and recurrent_choice.choice(emulated).origin == "packaged"
    write(emulated, document(emulated, ALWAYS))
    assert launched.way(emulated) == "stepwise", "a process keeps its choice"
    new_process()
    assert launched.way(emulated) == "persistent" and recurrent_choice.choice(emulated).origin == "measured"
    recurrent_gpu.set_method("stepwise")
    assert launched.way(emulated) == "stepwise"
    new_process()
    write(emulated, document(emulated, NEVER))
    with recurrent_gpu.using("persistent"):
        assert launched.way(emulated) == "persistent"
    assert recurrent_choice._choices == {}, "the switch asks nobody"
    recurrent_gpu.set_method("auto")
    assert launched.way(emulated) == "stepwise"


def test_each_cell_and_size_goes_by_its_own_limit(emulated, monkeypatch):
    lstm, gru = Launched(monkeypatch, "lstm"), Launched(monkeypatch, "gru")
    limits = {"lstm": [[8, 300.0], [16, 0.0]], "gru": [[8, 0.0], [16, 1e9]]}
    write(emulated, document(emulated, limits))
    # On 3 multiprocessors: 2 blocks of 4 units, 1 of 8 for each of 3 groups, and that with 2 sequences.
    assert [recurrent_gpu.work(recurrent_gpu.best_plan(emulated, 4, b, 8), 4, 8) for b in (1, 3, 4)] == [128, 256, 512]
    assert [lstm.way(emulated, 8, batch) for batch in (1, 3, 4)] == ["persistent", "persistent", "stepwise"]
    assert [lstm.way(emulated, 16), gru.way(emulated, 8), gru.way(emulated, 16)] == ["stepwise"] * 2 + ["persistent"]
    assert lstm.way(emulated, 12) == "stepwise"  # a limit of 150 for 192


@pytest.fixture
def other_kernels(monkeypatch, tmp_path):
    """A copy of kernels/ to change, taken for the kernels that run."""
    shutil.copytree(cuda.FOLDER, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))

    def forget():
        cuda._file.cache_clear()
        recurrent_choice.sources_key.cache_clear()

    def change(name, old, new, last=False):
        path = tmp_path / "kernels" / name
        before, found, behind = (str.rpartition if last else str.partition)(path.read_text(), old)
        assert found
        path.write_text(before + new + behind)
        forget()

    monkeypatch.setattr(cuda, "FOLDER", tmp_path / "kernels")
    forget()
    yield change
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("lstm_persistent.cu", "if (s > 0)", "if (s > 1)"),
        ("gru.cu", "reverse);\n}", "reverse);\n\n}"),
        ("persistent.cuh", "ROW_LANES = 4", "ROW_LANES = 8"),
        ("recurrent_gpu.py", "PASS = 32", "PASS = 16"),
        ("lstm_gpu.py", "plan is not None", "plan is None"),
    ],
)
def test_a_measurement_of_other_kernels_is_not_used(emulated, other_kernels, recwarn, name, old, new):
    path = write(emulated, document(emulated, ALWAYS))
    assert recurrent_choice.choice(emulated).origin == "measured"
    new_process()
    other_kernels(name, old, new)
    choice = recurrent_choice.choice(emulated)
    same = old.split() == new.split()  # white space alone
    assert choice.origin == ("measured" if same else "estimated")
    if not same:
        assert choice.passed_over == (f"{path}: measured on 2026-11-22 with other kernels than these",)
    assert not recwarn.list, "it has done nothing wrong"


SOURCES = ["gru.cu", "gru_persistent.cu", "lstm.cu", "lstm_persistent.cu", "persistent.cuh", "common.cuh"]
LAUNCHERS = ["cublas.py", "gru_gpu.py", "lstm_gpu.py", "matmul_gpu.py", "recurrent_gpu.py"]


def test_all_that_the_two_ways_are_made_of_counts(other_kernels):
    seen = {recurrent_choice.sources_key()}
    for name in SOURCES + LAUNCHERS:
        other_kernels(name, "\n", "\nint x;\n" if name in SOURCES else "\nx = 1\n", last=True)
        seen.add(recurrent_choice.sources_key())
    assert len(seen) == 1 + len(SOURCES + LAUNCHERS)
    other_kernels("adam.cu", "\n", "\nint x;\n", last=True)
    assert recurrent_choice.sources_key() in seen


def test_comments_make_no_other_kernels(other_kernels):
    key = recurrent_choice.sources_key()
    other_kernels("recurrent_gpu.py", "PASS = 32", "PASS = 32  # a comment\n\n")
    other_kernels("recurrent_gpu.py", '"""What the', '"""This is what the')
    other_kernels("lstm_persistent.cu", "// ", "// Well: ")
    assert recurrent_choice.sources_key() == key
    other_kernels("lstm_gpu.py", "    device = ", "  device = ")  # white space is code in Python
    assert recurrent_choice.sources_key() != key


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema": 0}, "written by another version of fastgrad"),
        ({"device": {"name": "emulated GPU", "multiprocessors": 132}}, "'multiprocessors': 132}, this is"),
        ({"device": {"name": "Emulated-GPU", "multiprocessors": 3}}, "Emulated-GPU"),
    ],
)
def test_a_measurement_of_something_else_is_not_used(emulated, packaged, recwarn, changes, why):
    write(emulated, document(emulated, ALWAYS, **changes))
    packaged(document(emulated, NEVER))
    choice = recurrent_choice.choice(emulated)
    assert choice.origin == "packaged" and choice.limit(4, 8) == 0.0
    assert len(choice.passed_over) == 1 and why in choice.passed_over[0] and not recwarn.list


BROKEN = {
    "empty": "",
    "half of it": '{"schema": 1, "device": {"na',
    "a list": "[]",
    "a number": "3",
    "nested": "[" * 100_000,
    "no text": "\x00\x01",
    "no limits": {"limits": {}},
    "limits that are text": {"limits": {"lstm": "all", "gru": []}},
    "a limit that is text": {"limits": {"lstm": [[8, "much"]], "gru": []}},
    "a limit that is no number": {"limits": {"lstm": [[8, math.nan]], "gru": []}},
    "an infinite limit": {"limits": {"lstm": [[8, math.inf]], "gru": []}},
    "a negative limit": {"limits": {"lstm": [[8, -1.0]], "gru": []}},
    "sizes out of order": {"limits": {"lstm": [[16, 1.0], [8, 1.0]], "gru": []}},
    "a size twice": {"limits": {"lstm": [[8, 1.0], [8, 2.0]], "gru": []}},
    "three in a pair": {"limits": {"lstm": [[8, 1.0, 2.0]], "gru": []}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_warning_and_the_estimate(emulated, monkeypatch, name):
    text = BROKEN[name]
    write(emulated, text if isinstance(text, str) else document(emulated, **text))
    launched = Launched(monkeypatch)
    with pytest.warns(UserWarning, match="LSTM and GRU on emulated GPU can't be read") as caught:
        assert launched.way(emulated) == "persistent"
        assert launched.way(emulated) == "persistent"
    assert len(caught) == 1 and "fastgrad tune" in str(caught[0].message)
    assert recurrent_choice.choice(emulated).origin == "estimated"


@pytest.mark.parametrize("what", ["a folder", "written by others"])
def test_a_file_that_can_not_be_trusted_or_read(emulated, packaged, what):
    path = write(emulated, document(emulated, ALWAYS))
    if what == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.chmod(0o666)
    packaged(document(emulated, NEVER))
    with pytest.warns(UserWarning, match="can't be read"):
        assert recurrent_choice.choice(emulated).origin == "packaged"


def test_no_cache_at_all(emulated, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTGRAD_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recurrent_choice.choice(emulated).origin == "estimated"
    found = recurrent_ways.kept(recurrent_ways.measure(emulated, Invented(falls_behind), SMALL))
    assert found.path is None and "set FASTGRAD_CACHE_DIR to a folder that can be written" in found.trouble
    assert str(found).endswith(found.trouble)


def test_a_write_that_fails_leaves_what_was_there(emulated, monkeypatch):
    path = write(emulated, document(emulated, ALWAYS))
    found = recurrent_ways.measure(emulated, Invented(falls_behind), SMALL)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        found = recurrent_ways.kept(found)
    assert found.path is None and f"{path} can't be written: No space left on device; set" in found.trouble
    assert json.loads(path.read_text())["limits"] == ALWAYS
    assert recurrent_choice.choice(emulated).origin == "measured"


def test_folders_are_looked_at_in_their_order(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_roots", lambda: [tmp_path / "one", tmp_path / "two"])
    assert cache.read_beside("recurrent", "x.json") is None
    for name in ("two", "one"):
        (tmp_path / name / "recurrent").mkdir(parents=True)
        (tmp_path / name / "recurrent" / "x.json").write_text(name)
        assert cache.read_beside("recurrent", "x.json") == (tmp_path / name / "recurrent/x.json", name.encode())


def test_what_the_package_has_is_in_the_wheel():
    project = Path(recurrent_choice.__file__).parent.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("no checkout")
    patterns = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["fastgrad.kernels"]
    path = recurrent_choice.packaged_path("NVIDIA H200 (a name)")
    assert path.name == "recurrent_nvidia-h200-a-name.json" and path.parent == cuda.FOLDER
    assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def test_the_switch_of_the_environment():
    code = "from fastgrad.kernels import recurrent_gpu; print(recurrent_gpu.method())"
    environment = {**os.environ, "FASTGRAD_RECURRENT": "stepwise"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "stepwise\n", done.stderr


# --- the function, the command, the doctor


@pytest.fixture
def quick(monkeypatch):
    """Let the function and the command measure little, with a clock that makes times up."""
    measure = recurrent_ways.measure

    def little(device, **more):
        return measure(device, Invented(falls_behind), SMALL, **more)

    monkeypatch.setattr(recurrent_ways, "measure", little)


def test_tune_recurrent_counts_from_the_next_process_on(emulated, fine, quick, monkeypatch):
    launched = Launched(monkeypatch, "gru")
    found = fastgrad.tune_recurrent()
    assert found.path.exists() and found.device == "emulated GPU"
    assert launched.way(emulated) == "persistent"  # a work of 96, below the estimate
    new_process()
    assert launched.way(emulated) == "stepwise"


def command(monkeypatch, capfd, *arguments):
    """Return exit status, stdout and stderr of the command line, in this process."""
    from fastgrad import cli

    monkeypatch.setattr(sys, "argv", ["fastgrad", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (ended.value.code, *capfd.readouterr())


@pytest.mark.parametrize("width", [80, 120])
def test_the_command(emulated, fine, quick, monkeypatch, capfd, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = command(monkeypatch, capfd, "tune")
    assert status == 0 and err == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["lstm", "8", "1", "1.00", "ms", "500", "us", "2.00x", "persistent"] in lines
    assert ["gru", "16", "1", "1.00", "ms", "2.00", "ms", "0.50x", "stepwise"] in lines
    assert "emulated-gpu.json" in out.replace("\n", "")
    assert max(map(len, out.splitlines())) <= width


def test_the_command_says_what_failed_and_what_could_not_be_kept(emulated, quick, monkeypatch, capfd, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTGRAD_CACHE_DIR", str(tmp_path / "file"))
    broken_kernel(monkeypatch, RuntimeError("[red]no room"))
    status, out, err = command(monkeypatch, capfd, "tune")
    assert status == 2 and "[red]no room" in out and "can't be kept" not in out
    assert err.startswith("fastgrad: the measurement can't be kept") and err.count("\n") == 1


def test_the_doctor_says_where_the_choice_comes_from(emulated, packaged, recwarn):
    finding = _doctor.recurrent()
    assert finding.value == "by size, from an estimate" and finding.advice.startswith("fastgrad tune measures it")
    packaged(document(emulated, NEVER))
    new_process()
    finding = _doctor.recurrent()
    assert finding.value == "by size, measured elsewhere on such a GPU, on 2026-11-22 with driver 1.2"
    assert finding.advice.startswith("fastgrad tune measures it")
    path = write(emulated, document(emulated, NEVER, sources="old"))
    new_process()
    finding = _doctor.recurrent()
    assert finding.value.startswith("by size, measured elsewhere")
    assert finding.advice.startswith(f"{path}: measured on 2026-11-22 with other kernels than these: fastgrad tune")
    write(emulated, document(emulated, NEVER))
    new_process()
    assert _doctor.recurrent() == _doctor.Finding(
        "recurrent", f"by size, measured here on 2026-11-22 with driver 1.2: {path}"
    )
    with recurrent_gpu.using("stepwise"):
        assert _doctor.recurrent().value == "stepwise, as FASTGRAD_RECURRENT or set_method says"
    assert not recwarn.list
