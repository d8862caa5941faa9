"""The command `fastgrad tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fastgrad.profiling.recurrent_ways import RecurrentTuning

__all__ = ["add_commands"]

ABOUT = """Measure on your GPU which way through its steps an LSTM or GRU goes faster, and choose by that from now on.

One kernel for all steps (persistent) against a product and a kernel for each (stepwise), forward and backward, by \
turns, for sizes up to 1024 units. Half a minute by calculation; let nothing else run meanwhile. The result is kept \
in the folder of compiled kernels. It counts for programs that start after it, whose last digits it changes: the two \
ways round differently. [cyan]fastgrad doctor[/cyan] says where the choice comes from.
"""


def tune() -> None:
    """Print what `fastgrad.tune_recurrent` finds, and where it is kept."""
    from fastgrad.profiling.command import Status
    from fastgrad.profiling.recurrent_ways import tuned
    from fastgrad.training.errors import UserError

    with Status() as status:
        try:
            found = tuned("tune", status.say)
        except RuntimeError as error:
            raise UserError(str(error)) from None
    print_tuning(found)
    if found.path is None:
        raise UserError(found.trouble)


def print_tuning(found: RecurrentTuning) -> None:
    """Print each size that was measured with the way that is taken there, and then what was decided."""
    from rich.console import Console
    from rich.table import Table

    from fastgrad.profiling.show import duration

    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.title = "seconds of forward + backward, T = " + str(found.document["steps"])
    for name in ("cell", "H", "B", "stepwise", "persistent", "stepwise/persistent", "taken"):
        table.add_column(name, justify="left" if name in ("cell", "taken") else "right", no_wrap=True)
    last: Any = None
    for point in found.points:
        if last not in (None, (point.cell, point.hidden)):
            table.add_section()
        last = point.cell, point.hidden
        ratio = f"{point.stepwise / point.persistent:.2f}x" if point.stepwise and point.persistent else "-"
        times = duration(point.stepwise), duration(point.persistent)
        taken = found.way(point) if point.hidden in found.limits[point.cell] else "-"
        table.add_row(point.cell, str(point.hidden), str(point.batch), *times, ratio, taken)
    console = Console(highlight=False)
    console.print(table)
    console.print()
    # What could not be kept is said on stderr.
    console.print(*(line for line in str(found).splitlines() if line != found.trouble), sep="\n", markup=False)


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", help=ABOUT)(tune)
