"""The headline comparisons, all contestants by turns in this process, as a table in GitHub's markdown.

python bench/compare.py                  print the table
python bench/compare.py --write-readme   and put it between the markers of README.md
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bench_activation
import bench_adam
import bench_attention
import bench_batch_norm
import bench_dropout
import bench_health
import bench_layer_norm
import bench_norm
import machine
import recurrent
from inputs import CELL, GPT2_SMALL, LONG_SEQUENCES, MATRIX, ONE_TENSOR, QUICK, SEQUENCES, TRAINER_SEQUENCE, count
from work import DEEPSPEED, FASTGRAD, LIMIT, NUMPY, OPTAX, TORCH, Work

from fastgrad.profiling.turns import SPIN_DOWN, Times, by_turns

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

GPT2 = f"{len(GPT2_SMALL)} tensors of GPT-2 small ({count(GPT2_SMALL) / 1e6:.0f} M)"
ROWS_BY_COLUMNS = f"{MATRIX[0]} x {MATRIX[1]}"


def headlines() -> dict[str, Callable[[], Work]]:
    """Return what builds each row of the table, by its first cell."""
    rows: dict[str, Callable[[], Work]] = {
        f"Adam, one tensor ({count(ONE_TENSOR) / 1e6:.1f} M)": lambda: bench_adam.adam("one-tensor", False, True),
        f"clip + Adam, {GPT2}": lambda: bench_adam.adam("gpt2-small", True, True),
        f"clip + Adam, norms taken as gradients were produced, {GPT2}": lambda: bench_adam.adam(
            "gpt2-small", True, fed=True
        ),
        "clip + Adam, 200 tensors of 1,000": lambda: bench_adam.adam("200x1000", True, True),
        f"global norm, {GPT2}": lambda: bench_norm.norm("gpt2-small"),
        f"health of each gradient, {GPT2}": lambda: bench_health.health("gpt2-small"),
    }
    for with_bias in (False, True):
        for kind in bench_activation.KINDS:
            label = f"activation backward{' with bias gradient' if with_bias else ''}, {kind}, {ROWS_BY_COLUMNS}"
            rows[label] = lambda kind=kind, with_bias=with_bias: bench_activation.backward(kind, with_bias)
    for kind in bench_dropout.KINDS:
        label = f"activation backward with dropout, {kind}, {bench_dropout.SHAPE[0]} x {bench_dropout.SHAPE[1]}"
        rows[label] = lambda kind=kind: bench_dropout.backward(kind)
    for name, norm in (("LayerNorm", bench_layer_norm), ("BatchNorm", bench_batch_norm)):
        rows[f"{name} forward, {norm.SHAPE[0]} x {norm.SHAPE[1]}"] = norm.forward
        rows[f"{name} backward, {norm.SHAPE[0]} x {norm.SHAPE[1]}"] = norm.backward
    for shape in bench_attention.SHAPES:
        label = f"attention forward + backward, causal, (B, H, T, D) = {shape}"
        rows[label] = lambda shape=shape: bench_attention.attention(*shape)
    for sizes in bench_attention.BLOCKS:
        label = f"transformer block forward + backward, (T, B, E, H) = {sizes}"
        rows[label] = lambda sizes=sizes: bench_attention.block(*sizes)
    for cell in ("lstm", "gru"):
        for sizes in (*SEQUENCES, *LONG_SEQUENCES, TRAINER_SEQUENCE):
            label = f"{cell.upper()} forward + backward, (T, B, I, H) = {sizes}"
            rows[label] = lambda cell=cell, sizes=sizes: recurrent.sequence(cell, *sizes)
        label = f"{cell.upper()} cell forward + backward, B = {CELL[0]}, I = H = {CELL[1]}"
        rows[label] = lambda cell=cell: recurrent.step(cell)
    return rows


@dataclass(frozen=True)
class Row:
    """One line of the table: its name, and what was measured; scale: see `limits.Limit`."""

    name: str
    work: Work
    times: Times
    scale: float

    def cells(self) -> list[str]:
        """Return the cells: times in ms, the share of the limit, ratios of medians, the rate of fastgrad."""
        cells = [self.name]
        cells += [milliseconds(self.times.median(name)) if self.has(name) else "" for name in (NUMPY, FASTGRAD, TORCH)]
        cells.append(f"{self.scale * self.times.ratio(LIMIT, FASTGRAD):.2f}" if self.has(LIMIT) else "")
        cells += [f"{self.times.ratio(name, FASTGRAD):.2f}x" if self.has(name) else "" for name in (NUMPY, TORCH)]
        others = [f"{name} {self.times.ratio(name, FASTGRAD):.2f}x" for name in (OPTAX, DEEPSPEED) if self.has(name)]
        return [*cells, ", ".join(others), self.work.rate(self.times.median(FASTGRAD))]

    def has(self, name: str) -> bool:
        """Return whether the contestant took part."""
        return name in self.times.seconds


HEADINGS = [
    "work", "naive NumPy, ms", "fastgrad, ms", "torch, ms",
    "share of the limit", "NumPy / fastgrad", "torch / fastgrad", "others / fastgrad", "fastgrad",
]  # fmt: skip


def milliseconds(seconds: float) -> str:
    """Return milliseconds with three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: list[Row], threads: int, turns: int) -> str:
    """Return the table with the line that says where its numbers come from."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    source = (
        f"{datetime.date.today().isoformat()}, {machine.describe(threads)}. float32, medians of {turns} turns in one "
        f"process. NumPy's products: {machine.products()}."
    )
    return f"{source}\n\n" + "\n".join(lines) + "\n"


def measure(name: str, build: Callable[[], Work], turns: int, pause: float) -> Row:
    """Build the work, verify that all contestants agree, and time them and the limit by turns."""
    work = build()
    work.verify()
    contestants, scale = dict(work.contestants), 1.0
    if work.limit:
        limit = work.limit()
        limit.contestant.run()
        contestants[LIMIT], scale = limit.contestant, limit.scale
    return Row(name, work, by_turns(contestants, turns=turns, pause=pause), scale)


def around_table(path: Path) -> tuple[str, str]:
    """Return what stands before and behind the table between the markers.

    Raises:
        SystemExit: the file can't be read, or lacks the markers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"{path} can't be read: {error.strerror}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} needs the lines {BEGIN} and {END}, in this order, around the table")
    return f"{before}{BEGIN}\n", f"{END}{after}"


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of every contestant (default: all cores)")
    parser.add_argument(
        "--turns", type=int, default=3 if QUICK else 9, help="turns for each row (default: %(default)s)"
    )
    parser.add_argument("--pause", type=float, default=SPIN_DOWN, help="seconds of sleep ahead of each contestant")
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--write-readme", nargs="?", type=Path, const=README, metavar="FILE", help="default: README.md")
    arguments = parser.parse_args()
    if arguments.turns < 1 or arguments.pause < 0:
        parser.error("--turns must be at least 1, and --pause at least 0")
    try:
        machine.set_threads(arguments.threads)
    except ValueError as error:
        parser.error(f"--threads: {error}")
    if arguments.write_readme:
        if arguments.only or QUICK:
            parser.error("--write-readme writes the whole table at full size: not with --only or FASTGRAD_BENCH_QUICK")
        around_table(arguments.write_readme)  # what is wrong with the file shows before minutes of measuring
    chosen = {name: build for name, build in headlines().items() if arguments.only in name}
    if not chosen:
        parser.error(f"--only: no row contains {arguments.only!r}")
    rows = []
    for name, build in chosen.items():
        print(name, file=sys.stderr, flush=True)
        row = measure(name, build, arguments.turns, arguments.pause)
        rows.append(Row(name, without_arrays(row.work), row.times, row.scale))
        gc.collect()
    table = markdown(rows, arguments.threads, arguments.turns)
    print(table, end="")
    if arguments.write_readme:
        before, after = around_table(arguments.write_readme)
        arguments.write_readme.write_text(before + table + after, encoding="utf-8")


def without_arrays(work: Work) -> Work:
    """Return the work without its contestants, whose arrays take up to 6 GB."""
    return Work(work.group, work.shape, work.bytes, work.flops, {}, rtol=work.rtol, dtype=work.dtype)


if __name__ == "__main__":
    main()
