"""The command line, `fastgrad train`, `lab`, `warmup`, `profile`, `tune`, `doctor`: options and help, not the work.

Whatever a person got wrong is one line on stderr and exit status 2. Kernels, matplotlib and the like are imported only
by the command that needs them, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastgrad._cli_lab import Commands, add_commands
from fastgrad._cli_tune import add_tune

__all__ = ["app", "main"]

app = typer.Typer(
    name="fastgrad",
    cls=Commands,
    help="Fast training kernels for NumPy and CuPy arrays, and a character language model trained on them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

MODEL, TRAINING, LENGTH, OUTPUT = "Model", "Training", "How long", "Output"

# One line for each paragraph: typer wraps them to the width of the terminal.
ABOUT = """Train a character language model: an LSTM, GRU or transformer that learns to write like FILE.

Truncated backpropagation through time, clipping by the global norm, Adam. \
The first 95 % of the text are learnt, the last 5 % measure how well, in [bold]bits per character[/bold]: \
about 4.7 when only the frequencies of letters are known, 1.6 after a default run. \
Left behind are a checkpoint (safetensors and JSON) and [bold]curve.png[/bold]; a sample of text is printed.
"""

EXAMPLES = """
[bold]Examples[/bold]

Learn from the text inside Python, in about 90 seconds:

    [cyan]fastgrad train[/cyan]

A larger GRU on a book of your own, ten minutes, its results in runs/book:

    [cyan]fastgrad train book.txt --model gru --hidden 512 --minutes 10 --out runs/book[/cyan]

A transformer:

    [cyan]fastgrad train --model transformer --out runs/transformer[/cyan]

Stop with Ctrl-C, go on later where it stopped, bit for bit:

    [cyan]fastgrad train --resume --out runs/book[/cyan]

Train the finished run for longer, 30 minutes in total:

    [cyan]fastgrad train --resume --out runs/book --minutes 30[/cyan]

A quick look at whether everything works:

    [cyan]fastgrad train --steps 20 --hidden 32 --out /tmp/try[/cyan]

A deep network on images of digits instead of text; its options are in fastgrad train digits --help:

    [cyan]fastgrad train digits[/cyan]
"""


PROFILE_ABOUT = """Measure kernels over sizes on every back end that is here: naive NumPy, the CPU on 1 to all \
threads, a GPU, PyTorch.

All take turns in one process, and the limits of this machine with them: the same bytes moved without arithmetic, \
or a large matrix product. Takes about a minute without names. Let nothing else run meanwhile.
"""

PROFILE_EXAMPLES = """
[bold]Examples[/bold]

What a training step spends its time on:

    [cyan]fastgrad profile[/cyan]

One operation, over more sizes, with a roofline:

    [cyan]fastgrad profile adam_step --sizes 4K,64K,1M,16M --out runs/profile[/cyan]
"""


class Model(StrEnum):
    """Models of text."""

    lstm = "lstm"
    gru = "gru"
    transformer = "transformer"


class Dtype(StrEnum):
    """Floating-point types."""

    float32 = "float32"
    float64 = "float64"


class Backend(StrEnum):
    """Kernels."""

    cpu = "cpu"
    gpu = "gpu"
    reference = "reference"


def _version(wanted: bool) -> None:
    if wanted:
        from fastgrad import __version__

        print(f"fastgrad {__version__}")
        raise typer.Exit


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a finite number above 0.")
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fast training kernels for NumPy and CuPy arrays, and a character language model trained on them."""


def _option(*names: str, panel: str, default: str | None = None, **settings: Any) -> Any:
    """Return a typer option that shows `default`; None inside means "not given": the default, or the checkpoint's."""
    if default is not None:
        settings["show_default"] = default
    return typer.Option(*names, rich_help_panel=panel, **settings)


@app.command(help=ABOUT, epilog=EXAMPLES)
def train(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="Text to learn from, UTF-8. Without it: the language reference inside Python.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Model | None,
        _option(
            "--model",
            "--cell",
            metavar="lstm|gru|transformer",
            panel=MODEL,
            default="lstm",
            help="An LSTM, a GRU, or a transformer of causal blocks. --cell is the older name of this option.",
        ),
    ] = None,
    hidden: Annotated[
        int | None,
        _option(
            "--hidden",
            metavar="N",
            panel=MODEL,
            default="256, or 128 of a transformer",
            min=1,
            help="Units of each layer. More learn more, and take longer.",
        ),
    ] = None,
    embedding: Annotated[
        int | None,
        _option(
            "--embedding",
            metavar="N",
            panel=MODEL,
            default="64",
            min=1,
            help="Numbers that stand for a character; those of a transformer are as many as its units.",
        ),
    ] = None,
    layers: Annotated[
        int | None,
        _option(
            "--layers",
            metavar="N",
            panel=MODEL,
            default="1, or 4 of a transformer",
            min=1,
            help="Recurrent layers, or blocks, on top of each other.",
        ),
    ] = None,
    heads: Annotated[
        int | None,
        _option("--heads", metavar="N", panel=MODEL, default="4", min=1, help="Heads of attention of a transformer."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        _option(
            "--dtype",
            metavar="float32|float64",
            panel=MODEL,
            default="float32",
            help="Precision. float64 is for checks: half as fast.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        _option(
            "--batch",
            metavar="N",
            panel=TRAINING,
            default="32",
            min=1,
            help="Places of the text that are read side by side.",
        ),
    ] = None,
    seq_length: Annotated[
        int | None,
        _option(
            "--seq-length",
            metavar="N",
            panel=TRAINING,
            default="64",
            min=1,
            help="Characters that gradients flow back through in a step. The state of an LSTM or GRU is carried on to "
            "the next; a transformer sees so many characters and no more.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        _option(
            "--lr",
            metavar="X",
            panel=TRAINING,
            default="0.003, or 0.002 of a transformer",
            callback=_positive,
            help="Learning rate of Adam.",
        ),
    ] = None,
    clip: Annotated[
        float | None,
        _option(
            "--clip",
            metavar="X",
            panel=TRAINING,
            default="1.0",
            min=0.0,
            callback=_finite,
            help="Gradients whose global norm is larger are scaled down to it. 0 turns clipping off.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option(
            "--seed",
            metavar="N",
            panel=TRAINING,
            default="1",
            min=0,
            help="The same seed gives the same run, bit for bit.",
        ),
    ] = None,
    backend: Annotated[
        Backend | None,
        _option(
            "--backend",
            metavar="cpu|gpu|reference",
            panel=TRAINING,
            default="cpu",
            help="Kernels: cpu (Numba), gpu (CUDA; needs CuPy and an NVIDIA GPU) or reference (naive NumPy).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        _option(
            "--steps",
            metavar="N",
            panel=LENGTH,
            default="3500, or no limit with --minutes",
            min=1,
            help="Train until this step, resumed steps included.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        _option(
            "--minutes",
            metavar="X",
            panel=LENGTH,
            default="1.25, or no limit with --steps",
            callback=_positive,
            help="Train for this long in total, resumed time included.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        _option(
            "--resume",
            panel=LENGTH,
            help="Go on from the checkpoint in --out, bit for bit. Model, text and plan are the checkpoint's.",
        ),
    ] = False,
    out: Annotated[
        Path,
        _option(
            "--out",
            metavar="FOLDER",
            panel=OUTPUT,
            help="Folder for the checkpoint and curve.png; made where it is missing.",
        ),
    ] = Path("runs/char-lstm"),
    overwrite: Annotated[
        bool, _option("--overwrite", panel=OUTPUT, help="Replace a checkpoint that is in --out already.")
    ] = False,
    save_every: Annotated[
        float,
        _option(
            "--save-every", metavar="SECONDS", panel=OUTPUT, callback=_positive, help="Seconds between two checkpoints."
        ),
    ] = 30.0,
    validate_every: Annotated[
        int,
        _option(
            "--validate-every",
            metavar="STEPS",
            panel=OUTPUT,
            min=1,
            help="Steps between two looks at the validation text.",
        ),
    ] = 100,
    sample_length: Annotated[
        int,
        _option(
            "--sample-length",
            metavar="N",
            panel=OUTPUT,
            min=0,
            max=1_000_000,
            help="Characters of text to write at the end.",
        ),
    ] = 500,
    temperature: Annotated[
        float,
        _option(
            "--temperature",
            metavar="X",
            panel=OUTPUT,
            min=0.0,
            callback=_finite,
            help="Of the sample: 0 takes the likeliest character, 1 draws as the model believes.",
        ),
    ] = 0.8,
    no_compare: Annotated[
        bool, _option("--no-compare", panel=OUTPUT, help="Don't time these kernels against naive NumPy at the end.")
    ] = False,
    profile: Annotated[
        bool,
        _option(
            "--profile",
            panel=OUTPUT,
            help="Time 20 steps layer by layer; print a table and write trace.json, for ui.perfetto.dev.",
        ),
    ] = False,
) -> None:
    """Turn the options of the command line into `Options` and run them."""
    from fastgrad.training.run import Options
    from fastgrad.training.run import train as run

    given = {
        "model": model and model.value,
        "embedding": embedding,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "seq_length": seq_length,
        "batch": batch,
        "lr": lr,
        "clip": clip,
        "seed": seed,
        "dtype": dtype and dtype.value,
    }
    status = run(
        Options(
            source=file,
            out=out,
            resume=resume,
            overwrite=overwrite,
            model={name: value for name, value in given.items() if value is not None},
            steps=steps,
            minutes=minutes,
            backend=backend and backend.value,
            validate_every=validate_every,
            save_every=save_every,
            sample_length=sample_length,
            temperature=temperature,
            comparison=not no_compare,
            profile=profile,
        )
    )
    raise typer.Exit(status)


add_commands(app)


@app.command(help="Compile kernels ahead, or load them from the cache, and say what that took.")
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


@app.command(
    help="Say what this machine can do for the kernels, why not more, and what mends it; exit status 1 if it is broken."
)
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


@app.command(help=PROFILE_ABOUT, epilog=PROFILE_EXAMPLES)
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


add_tune(app)


def main() -> None:
    """Run the command line and exit.

    Status: 0 done, 1 the loss diverged or something is broken, 2 a wrong input or option, 130 stopped by Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A sample may hold characters that the terminal's encoding lacks.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped by Ctrl-C; a checkpoint that was there is still whole", 130)
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("there is not enough memory for this model; give smaller sizes", 2)
    except Exception as error:
        # Typer carries its own copy of click in newer versions and imports it in older ones: the class is known by
        # its shape only.
        if hasattr(error, "format_message"):
            message, status = error.format_message(), int(getattr(error, "exit_code", 2))
            # Without a message it has printed the help instead.
            return _fail(message, status) if message else status
        from fastgrad.training.errors import Diverged, UserError

        if isinstance(error, UserError):
            return _fail(str(error), 2)
        if isinstance(error, Diverged):
            return _fail(str(error), 1)
        raise
    return int(status or 0)


def _fail(message: str, status: int) -> int:
    """Print `message` as one line on stderr and return `status`."""
    print(f"fastgrad: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
