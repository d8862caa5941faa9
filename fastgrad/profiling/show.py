"""The report of `fastgrad profile` as tables for a terminal, as wide as that is."""

from __future__ import annotations

from typing import Any

from fastgrad.profiling.costs import Cost
from fastgrad.profiling.gpu_bench import GPU, GPU_COLD, GPU_COPIES, GPU_LAUNCH, TORCH_GPU
from fastgrad.profiling.measure import NUMPY, TORCH, Profile, Row

WIDE = 120  # columns of a terminal from which on a table shows all that there is


def duration(seconds: float | None) -> str:
    """Return seconds with three digits and a unit, "-" for None."""
    if seconds is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= 0.9995 * factor:
            return f"{_three(seconds / factor)} {unit}"
    return f"{_three(seconds * 1e9)} ns"


def quantity(value: float) -> str:
    """Return bytes or flops as 1.23 k, M, G or T, for a unit to follow."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:.0f} "


def plain(value: float) -> str:
    """Return a mark of an axis: 100 k, 1 M."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def rates(cost: Cost, seconds: float | None) -> tuple[str, str]:
    """Return GB/s and GFLOP/s, "-" where there is nothing to count."""
    if not seconds:
        return "-", "-"
    return (_three(cost.bytes * 1e-9 / seconds), _three(cost.flops * 1e-9 / seconds) if cost.flops else "-")


def percent(share: float | None) -> str:
    """Return a share as "93 %"."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def ratio(one: float | None, other: float | None) -> str:
    """Return how many times as long the one takes."""
    return f"{_three(one / other)}x" if one and other else "-"


def heading(profile: Profile) -> str:
    """Return what the numbers belong to: machine, versions, turns, limits."""
    found = []
    for name, ceiling in profile.ceilings.items():
        what = "CPU" if name == "cpu" else "GPU"
        bandwidth, product = _three(ceiling.bandwidth * 1e-9), _three(ceiling.product * 1e-9)
        found.append(f"{what} {bandwidth} GB/s, {product} GFLOP/s")
    turns = "1 turn" if profile.turns == 1 else f"medians of {profile.turns} turns"
    return (
        f"{profile.machine}. float32, {turns} in one process, {profile.seconds:.0f} s.\n"
        f"limits measured here: {'; '.join(found)}"
    )


def footnotes(profile: Profile) -> list[str]:
    """Return what the columns mean, who failed, and from where on the GPU wins."""
    lines = [
        f"GB/s, GFLOP/s, of limit: of fastgrad on {count(profile.threads, 'thread')}. The limit moves the same bytes "
        "and computes nothing, or takes the flops at the rate of a large product, in turn with the others; above "
        "100 % the machine was not quiet."
    ]
    for op, found in profile.crossovers().items():
        without, copies = _from(found["without"]), _from(found["with"])
        lines.append(f"{op}: the GPU wins {without}; {copies} when the inputs must get there and the results back.")
    if profile.gpu is None:
        lines.append(f"GPU: none: {profile.no_gpu}.")
    lines += [
        f"{row.op}, {row.size:,}: {name} failed: {text}" for row in profile.rows for name, text in row.failed.items()
    ]
    return lines


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _from(size: float | None) -> str:
    return "nowhere in these sizes" if size is None else f"from {_round(size):,} elements on"


def _round(size: float) -> int:
    """Return two digits of an estimate."""
    digits = max(0, len(str(int(size))) - 2)
    return round(int(size), -digits)


def columns(profile: Profile, wide: bool) -> dict[str, Any]:
    """Return of the CPU's table each column's head, and what makes a cell of a row."""
    most = f"cpu {profile.threads}"
    counts = [name for name in dict.fromkeys(n for row in profile.rows for n in row.seconds) if name.startswith("cpu ")]
    if not wide and len(counts) > 2:
        counts = [counts[0], counts[-1]]
    found: dict[str, Any] = {"elements": lambda row: f"{row.size:,}"}
    if wide:
        found["shape"] = lambda row: row.shape
    found["NumPy"] = lambda row: duration(row.seconds.get(NUMPY))
    if any(TORCH in row.seconds for row in profile.rows):
        found["torch"] = lambda row: duration(row.seconds.get(TORCH))
    for name in counts:
        found[count(int(name.split()[1]), "thread")] = lambda row, name=name: duration(row.seconds.get(name))
    if wide:
        found["NumPy/own"] = lambda row: ratio(row.seconds.get(NUMPY), row.seconds.get(most))
        found["torch/own"] = lambda row: ratio(row.seconds.get(TORCH), row.seconds.get(most))
    found["GB/s"] = lambda row: rates(row.cost, row.seconds.get(most))[0]
    found["GFLOP/s"] = lambda row: rates(row.cost, row.seconds.get(most))[1]
    found["of limit"] = lambda row: percent(row.share(most))
    return found


def gpu_columns(profile: Profile, wide: bool) -> dict[str, Any]:
    """Return the same of the GPU's table."""
    found: dict[str, Any] = {
        "elements": lambda row: f"{row.size:,}",
        "run": lambda row: duration(row.seconds.get(GPU)),
        "cold L2": lambda row: duration(row.seconds.get(GPU_COLD)),
        "launch": lambda row: duration(row.seconds.get(GPU_LAUNCH)),
        "copies": lambda row: duration(row.seconds.get(GPU_COPIES)),
    }
    if any(TORCH_GPU in row.seconds for row in profile.rows):
        found["torch"] = lambda row: duration(row.seconds.get(TORCH_GPU))
    if wide:
        found["CPU/GPU"] = lambda row: ratio(row.best_cpu, row.gpu_call)
    found["GB/s"] = lambda row: rates(row.cost, row.seconds.get(GPU_COLD))[0]
    found["GFLOP/s"] = lambda row: rates(row.cost, row.seconds.get(GPU_COLD))[1]
    found["of limit"] = lambda row: percent(row.share(GPU_COLD))
    return found


def print_profile(profile: Profile, console: Any) -> None:
    """Print it on a console of rich."""
    wide = console.width >= WIDE
    console.print(heading(profile), highlight=False, markup=False)
    console.print()
    _print_table(profile, columns(profile, wide), console)
    if profile.gpu is not None:
        console.print()
        console.print(f"{profile.gpu}, rates with a cold L2", style="bold", highlight=False, markup=False)
        _print_table(profile, gpu_columns(profile, wide), console)
    console.print()
    for line in footnotes(profile):
        console.print(line, style="dim", highlight=False, markup=False)


def _print_table(profile: Profile, found: dict[str, Any], console: Any) -> None:
    # The name of an operation has a line of its own: it may be longer than any cell.
    cells = [(row.op, [make(row) for make in found.values()]) for row in profile.rows]
    widths = [max(len(line[k]) for line in ([*found], *(line for _, line in cells))) for k in range(len(found))]

    def line(values: Any, style: str | None = None) -> None:
        parts = zip(found, values, widths, strict=True)
        text = "  ".join(value.ljust(w) if name == "shape" else value.rjust(w) for name, value, w in parts)
        console.print(text, style=style, highlight=False, markup=False)

    line(found, "dim")
    last = None
    for op, values in cells:
        if op != last:
            console.print(op, style="bold", highlight=False, markup=False)
        last = op
        line(values)


def rows_of(profile: Profile, op: str) -> list[Row]:
    """Return the rows of an operation."""
    return [row for row in profile.rows if row.op == op]
