"""`fastgrad warmup`, `doctor` and `profile`: what this machine has to offer; options and their help, not the work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastgrad._cli_options import Dtype

__all__ = ["add_commands"]

ABOUT_WARMUP = "Compile kernels ahead, or load them from the cache, and say what that took."

ABOUT_DOCTOR = (
    "Say what this machine can do for the kernels, why not more, and what mends it; exit status 1 if it is broken."
)

ABOUT_PROFILE = """Measure kernels over sizes on every back end that is here: naive NumPy, the CPU on 1 to all \
threads, a GPU, PyTorch.

All take turns in one process, and the limits of this machine with them: the same bytes moved without arithmetic, \
or a large matrix product. Takes about a minute without names. Let nothing else run meanwhile.
"""

EXAMPLES_PROFILE = """
[bold]Examples[/bold]

What a training step spends its time on:

    [cyan]fastgrad profile[/cyan]

One operation, over more sizes, with a roofline:

    [cyan]fastgrad profile adam_step --sizes 4K,64K,1M,16M --out runs/profile[/cyan]
"""


def warmup(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Functions (lstm, adam_step, ...), kinds of activation (gelu, ...), layers or optimizers (Adam, ...).",
            show_default="all",
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", metavar="float32|float64", help="Precision of the arrays.")
    ] = Dtype.float32,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            show_default="one per processor, as far as there is work for them",
            help="Compile in at most so many processes. 1 gives the cleanest times.",
        ),
    ] = None,
) -> None:
    """Print the report of `fastgrad.warmup`."""
    import fastgrad

    try:
        report = fastgrad.warmup(*names or (), dtype=dtype.value, processes=processes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print(report)


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure copying and matrix products: about a second.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Print the report of `fastgrad.doctor`; exit status 1 where something is broken."""
    import fastgrad

    report = fastgrad.doctor(measure=measure)
    if as_json:
        import json

        print(json.dumps(report.as_dict(), indent=1))
    else:
        _print_findings(report)
    raise typer.Exit(int(report.broken))


def _print_findings(report: Any) -> None:
    """Print a report of `doctor`, wrapped to the terminal below each other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        mark = Text("BROKEN: ", style="bold red") if finding.broken else Text()
        table.add_row(Text(finding.topic, style="bold"), mark + finding.value)
        if finding.advice:
            table.add_row("", Text(f"-> {finding.advice}", style="red" if finding.broken else "yellow"))
    Console(highlight=False).print(table)


def _sizes(text: str | None) -> list[int] | None:
    """Return the sizes of "4096,64K,4M"."""
    if text is None:
        return None
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*([KMkm]?)\s*", part)
        size = int(match[1]) << {"": 0, "k": 10, "m": 20}[match[2].lower()] if match else 0
        if not 1 <= size <= 1 << 30:
            raise typer.BadParameter(
                f"{part.strip()!r} is no number of elements from 1 to {1 << 30:,}; for instance --sizes 4096,64K,4M"
            )
        found.append(size)
    return found


def profile(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OP",
            help="Functions (adam_step, lstm, ...), kinds of activation (gelu, gelu_backward, ...), or all.",
            show_default="eight of a training step",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="N,N,...",
            callback=_sizes,
            help="Elements of the first array, as 4096 or 64K or 4M.",
            show_default="three that fit a cache or not",
        ),
    ] = None,
    turns: Annotated[
        int, typer.Option("--turns", metavar="N", min=1, help="Times that each is measured, by turns; medians count.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Also write roofline.png, profile.html and profile.json there."),
    ] = None,
) -> None:
    """Print the report of `fastgrad.profiling`."""
    from fastgrad.profiling.command import run

    raise typer.Exit(run(names or (), sizes, turns, as_json, out))  # type: ignore[arg-type]


def add_commands(app: typer.Typer) -> None:
    """Add the three commands."""
    app.command("warmup", help=ABOUT_WARMUP)(warmup)
    app.command("doctor", help=ABOUT_DOCTOR)(doctor)
    app.command("profile", help=ABOUT_PROFILE, epilog=EXAMPLES_PROFILE)(profile)
