"""`fastgrad profile`: what is measured, computed from it and shown; no test here is about how long anything takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from fastgrad import _gpu
from fastgrad.profiling import gpu_bench, limits, measure, ops, plot, show
from fastgrad.profiling.costs import Cost
from fastgrad.profiling.measure import Ceilings, Profile, Row, crossover

NAMES = ["gelu_backward", "adam_step", "linear"]


@pytest.fixture
def small(monkeypatch):
    """Limits that are measured in no time."""
    monkeypatch.setattr(limits, "PRODUCT", 32)
    monkeypatch.setattr(limits.of_products, "__defaults__", (32, None))
    monkeypatch.setattr(measure, "BANDWIDTH_SIZE", 1 << 10)
    monkeypatch.setattr(measure, "SPIN_DOWN", 0.0)
    monkeypatch.setattr(measure, "SHORT_PAUSE", 0.0)
    monkeypatch.setattr(measure, "SECONDS_PER_TURN", 1e-4)
    monkeypatch.setattr(gpu_bench, "MOVED", 1 << 10)
    monkeypatch.setattr(gpu_bench, "PRODUCT", 16)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(_gpu, "gpu_status", lambda: _gpu.GPUStatus(None, "there is none", "buy one"))


@pytest.mark.usefixtures("small", "no_gpu")
def test_every_back_end_of_the_cpu_is_measured():
    from fastgrad.threads import get_num_threads

    before, said = get_num_threads(), []
    profile = measure.measure(ops.chosen(NAMES), [256, 64], turns=1, say=said.append)
    assert [(row.op, row.size) for row in profile.rows] == [(name, size) for name in NAMES for size in (64, 256)]
    assert len(said) == 1 + len(profile.rows) and get_num_threads() == before
    names = {"numpy", *(f"cpu {n}" for n in measure.thread_counts())}
    for row in profile.rows:
        assert row.failed == {}
        assert names <= set(row.seconds) <= names | {"torch"}
        assert all(seconds > 0 for seconds in row.seconds.values()) and row.limits["cpu"] > 0
    assert profile.gpu is None and profile.no_gpu == "there is none; buy one" and profile.crossovers() == {}
    assert json.loads(json.dumps(profile.as_dict()))["rows"][0]["backends"]["numpy"]["seconds"] > 0


@pytest.mark.usefixtures("small")
def test_a_gpu_is_measured_cold_and_warm_launch_and_copies_apart(emulated_gpu):
    profile = measure.measure(ops.chosen([*NAMES, "layer_norm_backward", "lstm"]), [1100], turns=1)
    assert profile.gpu == "emulated GPU" and set(profile.ceilings) == {"cpu", "gpu"}
    for row in profile.rows:
        assert row.failed == {}
        assert {"gpu", "gpu cold", "gpu launch", "gpu copies"} <= set(row.seconds) and set(row.limits) == {"cpu", "gpu"}
    assert set(profile.crossovers()) == {*NAMES, "layer_norm_backward", "lstm"}
    text = shown(profile, 80)
    assert "emulated GPU, rates with a cold L2" in text and "adam_step: the " in text


@pytest.mark.usefixtures("small", "no_gpu")
def test_who_fails_costs_no_other(monkeypatch):
    pytest.importorskip("torch")

    def broken(case, device):
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(measure, "on_torch", broken)
    profile = measure.measure(ops.chosen(["gelu_backward"]), [64], turns=1)
    (row,) = profile.rows
    assert row.failed == {"torch": "RuntimeError: no such thing"} and "cpu 1" in row.seconds
    assert "gelu_backward, 64: torch failed: RuntimeError: no such thing" in shown(profile, 80)


def test_crossover():
    # One takes n, the other 100 + n / 10: they meet at 111.
    points = [(n, 100 + n / 10, float(n)) for n in (10, 50, 100, 1000)]
    found = crossover(points)
    assert found is not None and 100 < found < 130
    assert crossover([(10, 1.0, 2.0), (100, 1.0, 2.0)]) == 10
    assert crossover([(10, 1.0, 2.0), (100, 3.0, 2.0)]) is None  # in the end it loses
    assert crossover([]) is None
    # It wins at 10, loses at 100 and wins for good behind that.
    found = crossover([(10, 1.0, 2.0), (100, 3.0, 2.0), (1000, 1.0, 2.0)])
    assert found is not None and 100 < found < 1000


def made_up(gpu: bool, threads: int = 2) -> Profile:
    rows = []
    for op, flops in (("binary_cross_entropy_with_logits", 0), ("lstm", 10**6)):
        for size in (4096, 4_194_304):
            seconds = {"numpy": 1e-5 * size, "torch": 2e-9 * size, "cpu 1": 3e-9 * size}
            counts = [n for n in (2, 4, 8, 16, 32, 64) if n <= threads]
            seconds |= {f"cpu {n}": 3e-9 * size / n for n in counts}
            found = {"cpu": 1e-9 * size}
            if gpu:
                seconds |= {"gpu": 1e-5, "gpu cold": 2e-5, "gpu launch": 5e-6, "gpu copies": 1e-9 * size}
                found["gpu"] = 5e-6
            rows.append(Row(op, size, f"{size:,}", Cost(12 * size, flops * size), seconds, found))
    ceilings = {"cpu": Ceilings(5e10, 2e11)} | ({"gpu": Ceilings(4e12, 5e13)} if gpu else {})
    return Profile("A machine", threads, 3, ceilings, rows, "A GPU" if gpu else None, "" if gpu else "none; none", 12.0)


def shown(profile: Profile, width: int) -> str:
    console = Console(width=width, file=None, record=True, quiet=False, force_terminal=False)
    with console.capture() as capture:
        show.print_profile(profile, console)
    return capture.get()


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal(width, gpu, threads):
    text = shown(made_up(gpu, threads), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    # The columns of a table stand below each other: no line was broken.
    rows = [line for line in lines if re.match(r" *(4,096|4,194,304) ", line)]
    assert len(rows) == (8 if gpu else 4) and len({len(row) for row in rows[:4]}) == 1
    head = next(line for line in lines if "elements" in line)
    assert len(head) == len(rows[0])
    assert ("shape" in head) == (width == 200)
    assert ("the GPU wins from" in text) == gpu and ("GPU: none: none; none." in text) == (not gpu)


def test_numbers():
    assert [show.duration(s) for s in (1.5, 0.0123456, 9.996e-5, 3e-7, None)] == [
        "1.50 s", "12.3 ms", "100 us", "300 ns", "-",
    ]  # fmt: skip
    assert show.percent(0.934) == "93 %" and show.percent(None) == "-"
    assert show.quantity(1.5e9) == "1.50 G" and show.quantity(12) == "12 "
    row = made_up(True).rows[0]
    assert row.share("cpu 2") == pytest.approx(2 / 3) and row.share("gpu cold") == pytest.approx(0.25)
    assert row.gpu_call == 1e-5 and row.best_cpu == pytest.approx(1.5e-9 * 4096)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_picture_and_the_page(tmp_path, gpu):
    profile = made_up(gpu)
    png, page = plot.save(profile, tmp_path / "out")
    assert png.read_bytes().startswith(b"\x89PNG") and page.name == "profile.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 1 and "lstm" in text and ("A GPU, rates with a cold L2" in text) == gpu
    # Nothing is fetched: no script, no address but the names of XML's languages.
    assert "<script" not in text and not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", text)
    from html.parser import HTMLParser

    class Balanced(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag in ("table", "tr", "td", "th", "div", "figure", "svg", "g"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag in ("table", "tr", "td", "th", "div", "figure", "svg", "g"):
                assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(text)
    assert parser.open == []


# --- the command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastgrad", "profile", *arguments], capture_output=True, text=True, timeout=300
    )


def test_json_and_files(tmp_path):
    done = command("gelu_backward", "--sizes", "64,1K", "--turns", "1", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["size"] for row in found["rows"]] == [64, 1024] and found["turns"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"roofline.png", "profile.html", "profile.json"}
    assert json.loads((tmp_path / "out" / "profile.json").read_text()) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lstn",), "unknown operation 'lstn': did you mean lstm?"),
        (
            ("lstm", "--sizes", "4x"),
            "'4x' is no number of elements from 1 to 1,073,741,824; for instance --sizes",
        ),
        (("lstm", "--sizes", "0"), "'0' is no number of elements"),
        (("lstm", "--turns", "0"), "--turns"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert message in done.stderr
