"""The laboratory: its sentences follow from the figures, its parts compute what they claim, its files hold them."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgrad
from fastgrad import testing
from fastgrad.lab import depth, explosion, memory, remedies, stacks, tasks, words
from fastgrad.lab.cell import PlainCell
from fastgrad.lab.page import page
from fastgrad.lab.result import Chart, Result, Table
from fastgrad.lab.run import EXPERIMENTS, PAGE, Options, laboratory
from fastgrad.lab.work import Stopped, Work, means
from fastgrad.layers import Linear
from fastgrad.threads import get_num_threads
from fastgrad.training.checkpoint import claimed
from fastgrad.training.deep import INITS, NORMS, DeepNetwork, Stack
from fastgrad.training.errors import UserError
from fastgrad.training.one_thread import one_thread


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


# What the sentences say.


def overview(*rows: tuple[str, str, float, float]) -> Table:
    """Return the table of `depth` for (activation, initialisation, first, last)."""
    columns = ("activation", "initialisation", "first", "first_over_last")
    return Table("overview", columns, [(kind, start, first, first / last) for kind, start, first, last in rows])


def test_depth_names_what_lives_dies_and_bursts():
    table = overview(
        ("relu", "He normal", 0.2, 0.1), ("sigmoid", "old uniform", 1e-30, 0.1), ("selu", "He normal", 5e4, 1)
    )
    first, second = depth.sentences(table, 100)
    assert first == (
        "Through 100 layers the gradient keeps its size, within a factor of 100, in one of 3 pairs of activation and "
        "initialisation: relu with He normal."
    )
    assert second == (
        "It dies in one, furthest with sigmoid and old uniform, to 10⁻²⁹ of what the last layer sees; it bursts in "
        "one, furthest with selu and He normal, to 5 × 10⁴ times."
    )


def test_depth_says_so_where_nothing_lives_or_nothing_dies():
    dead = overview(("relu", "He normal", 0.0, 0.1), ("tanh", "He normal", 1e-9, 1))
    first, second = depth.sentences(dead, 10)
    assert "in none of the 2 pairs" in first
    assert second == "It dies in two, to exactly 0 in one of them; it bursts in none."
    alive = overview(("relu", "He normal", 0.1, 0.1), ("tanh", "He normal", 1, 1))
    first, second = depth.sentences(alive, 10)
    assert "in two of 2 pairs" in first and second == "It dies in none; it bursts in none."


def accuracies(**rows: float) -> Table:
    names = {"none": "no remedy", "skip": "skip connections"}
    rows = {names.get(name, name): value for name, value in rows.items()}
    return Table(
        "accuracy", ("remedy", "test_accuracy", "first", "last"), [(n, v, 3e-20, 1.0) for n, v in rows.items()]
    )


def test_remedies_that_help_half_help_and_do_not():
    first, second = remedies.sentences(accuracies(none=0.33, skip=0.99, BatchNorm=0.7, clipping=0.34, all=1.0), 30)
    assert plain(first) == (
        "Without a remedy the first of 30 layers receives a gradient of 3 × 10⁻²⁰ and the network gets 33.0 % right; "
        "one single change cures it: skip connections (99.0 %); all together reach 100.0 %."
    )
    assert plain(second) == (
        "BatchNorm (70.0 %) helps in part; clipping (34.0 %) does not help this network: it stays near chance."
    )


def test_remedies_the_other_way_round():
    first, second = remedies.sentences(accuracies(none=0.33, skip=0.34, BatchNorm=0.33, clipping=0.98, all=0.4), 30)
    assert "one single change cures it: clipping (98.0 %); all together reach 40.0 %." in plain(first)
    assert plain(second).startswith("Skip connections (34.0 %) and BatchNorm (33.0 %) do not help this network: they")
    first, second = remedies.sentences(accuracies(none=0.33, skip=0.4, clipping=0.34, all=1.0), 30)
    assert "no single change cures it" in first and "skip connections (40.0 %) helps in part" in plain(second.lower())
    first, second = remedies.sentences(accuracies(none=0.33, skip=0.99, clipping=0.98, all=1.0), 30)
    assert "two single changes cure it" in first and second == "No change in this run was without effect."


def memories(reach: dict[str, float], right: dict[str, tuple[float, float]]) -> tuple[Table, Table]:
    by_step = Table(
        "reach", ("cell", "steps_back", "gradient_norm"),
        [row for name, value in reach.items() for row in ((name, 0, 1.0), (name, 1, value))],
    )  # fmt: skip
    rows = [
        (task, name, 1000, share, 700)
        for name, shares in right.items()
        for task, share in zip(("adding", "copying"), shares, strict=True)
    ]
    return by_step, Table("accuracy", ("task", "cell", "length", "test_accuracy", "training_steps"), rows)


def test_memory_ranks_what_arrives_and_names_who_learned():
    tables = memories({"plain cell": 0.0, "LSTM": 1e-5, "GRU": 1e-3}, {"plain cell": (0.2, 0.1), "GRU": (1.0, 0.99)})
    first, second = memory.sentences(*tables, 1000)
    assert first == (
        "What reaches the first of 1,000 steps is, from the most: GRU 10⁻³ and LSTM 10⁻⁵; nothing at all, exactly 0, "
        "reaches it in the plain cell."
    )
    assert plain(second) == (
        "Over 1,000 steps adding is learned by GRU (700 training steps), not by plain cell (20.0 %); copying is "
        "learned by GRU (700 training steps), not by plain cell (10.0 %)."
    )


def test_memory_the_other_way_round():
    tables = memories({"plain cell": 1.0, "GRU": 1e-8}, {"plain cell": (1.0, 0.99), "GRU": (0.3, 0.2)})
    first, second = memory.sentences(*tables, 1000)
    assert "from the most: plain cell 1 and GRU 10⁻⁸." in first and "exactly 0" not in first
    assert "adding is learned by plain cell (700 training steps), not by GRU (30.0 %)" in plain(second)
    _, second = memory.sentences(*memories({"GRU": 1.0}, {"GRU": (0.3, 0.2)}), 1000)
    assert "adding is learned by no cell: GRU (30.0 %); copying is learned by no cell: GRU (20.0 %)." in plain(second)


def explosions(free: tuple[list[float], float], held: tuple[list[float], float]) -> tuple[Table, Table]:
    steps, rows = [], []
    for name, (losses, right) in zip(explosion.RUNS, (free, held), strict=True):
        steps += [(name, step, loss, 10 * loss) for step, loss in enumerate(losses, 1)]
        rows.append((name, right))
    return (
        Table("steps", ("run", "step", "loss", "gradient_norm"), steps),
        Table("accuracy", ("run", "test_accuracy"), rows),
    )


def test_explosion_both_ways():
    first, second = explosion.sentences(*explosions(([2.0, 900.0, math.nan], 0.1), ([2.0, 1.0, 0.5], 1.0)))
    assert first == (
        "Without clipping the norm of the gradient goes up to 9 × 10³, and the loss is no number from step 3 on; "
        "clipped, to 20."
    )
    assert plain(second) == (
        "Clipping saves the run: with it training ends at a loss of 1.17 nats and 100.0 % right answers, without a "
        "loss of no number and 10.0 %."
    )
    _, second = explosion.sentences(*explosions(([2.0], 0.9), ([2.0], 0.5)))
    assert second.startswith("Clipping harms this run")
    _, second = explosion.sentences(*explosions(([2.0], 0.9), ([2.0], 0.91)))
    assert second.startswith("Clipping makes no difference to what this run learns")


@pytest.mark.parametrize(
    ("right", "without", "said"),
    [
        (0.98, 0.33, "skip connections make it learn"),
        (0.33, 0.98, "skip connections keep it from learning"),
        (0.5, 0.52, "skip connections make no difference"),
    ],
)
def test_stacks_both_ways(right, without, said):
    columns = ("network", "variant", "test_accuracy", "first", "last")
    rows = [("9-layer network", stacks.WITH, right, 0.5, 1.0), ("9-layer network", stacks.WITHOUT, without, 1e-20, 1.0)]
    first, second = stacks.sentences(Table("accuracy", columns, rows))
    assert plain(first) == (
        f"The 9-layer network gets {100 * right:.1f} % of the test right with skip connections and "
        f"{100 * without:.1f} % without: {said}."
    )
    assert "is 0.5 with and 10⁻²⁰ without them in the 9-layer network." in second


def test_words():
    assert words.joined([]) == "" and words.joined(["a"]) == "a" and words.joined(["a", "b", "c"], "or") == "a, b or c"
    assert words.count(0, "curve") == "no curves" and words.count(1, "curve") == "one curve"
    assert words.count(1000, "step") == "1,000 steps" and words.count(3) == "three"
    powers = {0: "0", 1.0: "1", 0.034: "0.034", 412.3: "412", 3.2e-15: "3 × 10⁻¹⁵", 9.7e-8: "10⁻⁷", 5e4: "5 × 10⁴"}
    assert {value: words.power(value) for value in powers} == powers
    assert words.power(math.nan) == "not a number" and words.power(math.inf) == "infinite"


# What the parts compute.


def test_plain_cell():
    cell = PlainCell(3, 4, rng=np.random.default_rng(0), dtype=np.float64)
    testing.gradcheck(cell, np.random.default_rng(1).standard_normal((5, 2, 3)))
    cell = PlainCell(3, 6, orthogonal=1.5, rng=np.random.default_rng(0), dtype=np.float64)
    np.testing.assert_allclose(cell.weight_hh.data @ cell.weight_hh.data.T, 2.25 * np.eye(6), atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [False, True])
def test_deep_network_measures_what_arrives(norm, residual):
    rng = np.random.default_rng(0)
    network = DeepNetwork(3, 8, 4, 2, activation="tanh", init="he", norm=norm, residual=residual, rng=rng)
    x = rng.standard_normal((16, 3), dtype=np.float32)
    dlogits = rng.standard_normal(network.forward(x).shape, dtype=np.float32)
    dx = network.backward(dlogits)
    # The same network as a plain Sequential, whose gradients are taken by hand.
    expected, dy = [], dlogits
    network.forward(x)
    for position in reversed(range(len(network.layers))):
        if 1 <= position <= 4:
            expected.insert(0, float(np.linalg.norm(dy)))
        dy = network.layers[position].backward(dy)
    np.testing.assert_allclose(network.arriving, expected, rtol=1e-5)
    np.testing.assert_array_equal(dx, dy)


def test_deep_network_begins_as_asked():
    def weights(init: str) -> np.ndarray:
        rng = np.random.default_rng(3)
        return DeepNetwork(64, 64, 1, 2, activation="relu", init=init, rng=rng).layers[0].weight.data

    deviation = {init: float(weights(init).std() * 8) for init in INITS}
    for init, expected in {"old": 3**-0.5, "xavier": 1, "he": 2**0.5, "lecun": 1, "orthogonal": 1}.items():
        assert deviation[init] == pytest.approx(expected, rel=0.05), init


def test_stack_without_anything_before():
    rng = np.random.default_rng(0)
    stack = Stack([], [Linear(3, 3, rng=rng), Linear(3, 3, rng=rng)], [])
    dy = np.ones_like(stack.forward(np.ones((2, 3), np.float32)))
    stack.backward(dy)
    assert stack.arriving[1] == pytest.approx(6**0.5) and stack.arriving[0] > 0


def test_tasks():
    rng = np.random.default_rng(0)
    x, total = tasks.adding(11, 50, rng)
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(axis=0), total[:, 0], rtol=1e-6)
    assert (x[:5, :, 1].sum(axis=0) == 1).all() and (x[5:, :, 1].sum(axis=0) == 1).all()
    x, symbol = tasks.copying(7, 50, rng)
    assert (
        (x.argmax(axis=2)[0] == symbol).all() and (x[1:-1, :, tasks.SYMBOLS] == 1).all() and (x[-1, :, -1] == 1).all()
    )
    symbols, answer = tasks.majority(400, 20, rng)
    assert (answer == answer[0]).all()
    assert [np.bincount(column).argmax() for column in symbols.T] == answer[0].tolist()
    points, arm = tasks.spirals(2000, rng)
    angle = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) - np.hypot(*points.T) / 1.7
    assert np.bincount(arm).min() > 500 and points.dtype == np.float32
    near = np.abs((angle - arm / tasks.ARMS + 0.5) % 1 - 0.5) < 0.1
    assert near.mean() > 0.9


def test_long_memory_bias_keeps_the_state():
    for name, gate in (("LSTM, long-memory bias", 1), ("GRU, long-memory bias", 1)):
        cell = memory.make_cell(name, 2, 500, np.random.default_rng(0))
        H = memory.HIDDEN
        total = cell.bias_ih_l0.data + cell.bias_hh_l0.data
        wanted = total[gate * H : (gate + 1) * H]
        assert (wanted > 0).all() and wanted.max() < math.log(500) and wanted.mean() > 4
    assert isinstance(memory.make_cell("plain cell", 2, 500, np.random.default_rng(0)), PlainCell)


def test_work_counts_shows_and_stops():
    shown: list[tuple[str, int, int]] = []
    asked = iter([False, False, True])
    work = Work(seed=3, show=lambda *what: shown.append(what), stopped=lambda: next(asked))
    done = []
    with pytest.raises(Stopped):
        for item in work.loop("words", ["a", "b", "c"]):
            done.append(item)
    assert done == ["a", "b"] and shown == [("words", 0, 3), ("words", 1, 3)]
    assert work.rng(1, 2).random() == Work(seed=3).rng(1, 2).random() != Work(seed=4).rng(1, 2).random()
    assert means([1.0, 3.0, 5.0], 2) == [(2, 2.0), (3, 5.0)]


def test_one_thread_puts_back_what_was_before():
    before = get_num_threads()
    with one_thread():
        assert get_num_threads() == 1
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert get_num_threads() == before


TINY = {
    "depth": lambda work: depth.run(work, (3, 5), ("tanh", "relu")),
    "remedies": lambda work: remedies.run(work, depth=3, steps=4),
    "memory": lambda work: memory.run(work, lengths=(4, 6), steps=3),
    "explosion": lambda work: explosion.run(work, steps=4),
    "stacks": lambda work: stacks.run(work, depth=5, blocks=2, steps=3),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_at_their_smallest(name):
    one, same, other = (TINY[name](Work(seed=seed)) for seed in (1, 1, 2))
    assert one == same and one != other and one.name == name
    assert all(sentence.endswith(".") for sentence in one.sentences) and len(one.sentences) == 2
    tables = {table.name: table for table in one.tables}
    for chart in one.charts:
        assert tables[chart.table.name] is chart.table
        groups = chart.groups()
        assert groups and all(len(xs) == len(ys) > 0 for xs, ys in groups.values())
    for table in one.tables:
        read = list(csv.reader(io.StringIO(table.csv())))
        assert tuple(read[0]) == table.columns and len(read) == len(table.rows) + 1
        for row, values in zip(read[1:], table.rows, strict=True):
            assert [str(value) for value in values] == row


def test_every_experiment_ends_when_asked():
    for run in TINY.values():
        with pytest.raises(Stopped):
            run(Work(stopped=lambda: True))


# The page.


def result(**changes) -> Result:
    table = Table("t", ("curve", "x", "y"), [("a </script>", 1, 1e-40), ("a </script>", 2, 0.0), ("b", 1, math.nan)])
    chart = Chart("c", "Title <1>", table, "x", "y", "curve", "steps", "norm", log_y=True)
    values = {"name": "n", "title": "Why & how?", "sentences": ("One.", "Two."), "method": "<m>"}
    return Result(**{**values, "charts": [chart], "tables": [table], **changes})


def test_page_says_and_holds_what_was_measured():
    text = page([result()], "fastgrad lab --seed 1", "This is missing.", "/* plotly */")
    assert "One. Two." in text and "Why &amp; how?" in text and "Title &lt;1&gt;" in text and "&lt;m&gt;" in text
    assert "This is missing." in text and "fastgrad lab --seed 1" in text and '<a href="n-t.csv">n-t.csv</a>' in text
    assert text.count("</script>") == 2 and "<!--" not in text.replace("<!DOCTYPE", "")
    figures = json.loads(re.search(r"^const figures = (.*);$", text, re.MULTILINE)[1])
    (first, second), remark = figures["n-c"]["data"], "Where a curve ends, the figure is exactly 0"
    assert first["name"] == "a </script>" and first["x"] == [1, 2] and first["y"] == [1e-40, None]
    assert second["y"] == [None] and remark in text and "the figure is infinite or not a number" in text
    assert figures["n-c"]["layout"]["yaxis"]["type"] == "log"
    assert "note" not in page([result()], "x", "", "").split("<body>")[1]


def test_maps_say_what_is_exactly_zero():
    table = Table("t", ("row", "x", "y"), [("r", "a", -math.inf), ("r", "b", -25.3), ("r", "c", 0.2), ("r", "d", 3.4)])
    chart = Chart("c", "T", table, "x", "y", "row", "", "power of ten", kind="map")
    text = page([result(charts=[chart], tables=[table])], "x", "", "")
    (drawn,) = json.loads(re.search(r"^const figures = (.*);$", text, re.MULTILINE)[1])["n-c"]["data"]
    assert drawn["text"] == [["−∞", "−25", "0", "+3"]] and drawn["z"] == [[-10, -10, 0.2, 3.4]]


# The command.


def run(*args, env=None, cwd=None) -> subprocess.CompletedProcess[str]:
    """Run `python -m fastgrad lab` with these arguments."""
    command = [sys.executable, "-m", "fastgrad", "lab", *map(str, args)]
    return subprocess.run(
        command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, encoding="utf-8", timeout=300
    )


def test_command_writes_page_and_figures_the_same_for_a_seed(tmp_path):
    pytest.importorskip("plotly")
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.mkdir()
    (one / "stacks-old.csv").write_text("of an earlier run")
    (one / "notes.csv").write_text("mine")
    for out, seed in ((one, 1), (same, 1), (other, 2)):
        done = run("explosion", "--quick", "--out", out, "--seed", seed)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("explosion: Without clipping") and lines[1].startswith(f"page: {out / PAGE}, ")
        assert "explosion: done in 0:" in done.stderr and "\x1b" not in done.stderr
    files = {"explosion-accuracy.csv", "explosion-steps.csv", PAGE}
    assert {path.name for path in one.iterdir()} == files | {"notes.csv"}
    for name in files:
        assert (one / name).read_bytes() == (same / name).read_bytes(), name
        assert (one / name).read_bytes() != (other / name).read_bytes(), name
    text = (one / PAGE).read_text(encoding="utf-8")
    assert html.escape(lines[0].removeprefix("explosion: ")) not in text  # that was the other seed's
    assert "This run was not finished" not in text and "fastgrad lab explosion --quick --seed 1" in text


def test_two_laboratories_in_one_folder(tmp_path):
    """The second is refused: the page of one would stand beside the figures of the other."""
    pytest.importorskip("plotly")
    with claimed(tmp_path), pytest.raises(UserError, match="is in use by another run of fastgrad"):
        laboratory(Options(("explosion",), tmp_path, quick=True, seed=1))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_page_with_what_is_done(tmp_path):
    pytest.importorskip("plotly")
    command = [
        sys.executable,
        "-m",
        "fastgrad",
        "lab",
        "explosion",
        "memory",
        "stacks",
        "--quick",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    for line in process.stderr:
        if line.startswith("memory: adding"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and output == "" and "Traceback" not in errors
    assert errors.endswith(
        f"stopped by Ctrl-C; {tmp_path / PAGE} has explosion, and says that memory, stacks are missing\n"
    )
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "This run was not finished: memory, stacks are missing." in text and 'id="explosion-loss"' in text
    assert not list(tmp_path.glob("memory-*"))


def test_ctrl_c_before_anything_is_done(tmp_path):
    pytest.importorskip("plotly")
    command = [sys.executable, "-m", "fastgrad", "lab", "memory", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    for line in process.stderr:
        if line.startswith("memory: adding"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("no experiment was finished, and nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def refused(done, *parts: str) -> None:
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("fastgrad: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_what_a_person_gets_wrong(tmp_path):
    pytest.importorskip("plotly")
    refused(run("dept", "--out", tmp_path / "o"), "there is no experiment 'dept'", "depth, remedies, memory")
    assert not (tmp_path / "o").exists()
    (tmp_path / "file").write_text("precious")
    refused(run("depth", "--out", tmp_path / "file"), "a file is in its place")
    refused(run("depth", "--seed", "-1"), "--seed")
    refused(run("--slow"), "--slow")


def test_without_plotly_nothing_is_computed(tmp_path):
    (tmp_path / "plotly").mkdir()
    (tmp_path / "plotly" / "__init__.py").write_text("raise ImportError('no plotly here')")
    done = run("depth", "--out", tmp_path / "o", env={"PYTHONPATH": str(tmp_path)})
    refused(done, "needs plotly, which is not installed", 'pip install "fastgrad[lab]"')
    assert not (tmp_path / "o").exists()


def test_list_names_every_experiment():
    done = run("--list")
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == list(EXPERIMENTS)


def test_help_does_not_import_the_laboratory():
    code = (
        "import sys, fastgrad.cli; print([m for m in sys.modules if m.startswith(('fastgrad.lab', 'numba', 'plotly'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=Path(fastgrad.__file__).parent.parent
    )
    assert done.stdout == "[]\n"
