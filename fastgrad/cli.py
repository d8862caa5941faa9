"""The command line: `fastgrad train`, `lab`, `warmup` and `doctor`. Options and their help are here, not the work.

Whatever a person got wrong is one line on stderr and exit status 2. Kernels, matplotlib and the like are imported only
by the command that needs them, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastgrad._cli_lab import Commands, add_commands

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
ABOUT = """Train a character language model: an LSTM or GRU that learns to write like FILE.

Truncated backpropagation through time with carried state, clipping by the global norm, Adam. \
The first 95 % of the text are learnt, the last 5 % measure how well, in [bold]bits per character[/bold]: \
about 4.7 when only the frequencies of letters are known, 1.6 after a default run. \
Left behind are a checkpoint (safetensors and JSON) and [bold]curve.png[/bold]; a sample of text is printed.
"""

EXAMPLES = """
[bold]Examples[/bold]

Learn from the text inside Python, in about 90 seconds:

    [cyan]fastgrad train[/cyan]

A larger GRU on a book of your own, ten minutes, its results in runs/book:

    [cyan]fastgrad train book.txt --cell gru --hidden 512 --minutes 10 --out runs/book[/cyan]

Stop with Ctrl-C, go on later where it stopped, bit for bit:

    [cyan]fastgrad train --resume --out runs/book[/cyan]

Train the finished run for longer, 30 minutes in total:

    [cyan]fastgrad train --resume --out runs/book --minutes 30[/cyan]

A quick look at whether everything works:

    [cyan]fastgrad train --steps 20 --hidden 32 --out /tmp/try[/cyan]

A deep network on images of digits instead of text; its options are in fastgrad train digits --help:

    [cyan]fastgrad train digits[/cyan]
"""


class Cell(StrEnum):
    """Recurrent cells."""

    lstm = "lstm"
    gru = "gru"


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
    cell: Annotated[
        Cell | None,
        _option("--cell", metavar="lstm|gru", panel=MODEL, default="lstm", help="Recurrent cell: lstm or gru."),
    ] = None,
    hidden: Annotated[
        int | None,
        _option(
            "--hidden",
            metavar="N",
            panel=MODEL,
            default="256",
            min=1,
            help="Units of each recurrent layer. More learn more, and take longer.",
        ),
    ] = None,
    embedding: Annotated[
        int | None,
        _option(
            "--embedding", metavar="N", panel=MODEL, default="64", min=1, help="Numbers that stand for a character."
        ),
    ] = None,
    layers: Annotated[
        int | None,
        _option(
            "--layers", metavar="N", panel=MODEL, default="1", min=1, help="Recurrent layers on top of each other."
        ),
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
            help="Characters that gradients flow back through in a step; the state is carried on from step to step.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        _option(
            "--lr", metavar="X", panel=TRAINING, default="0.003", callback=_positive, help="Learning rate of Adam."
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
) -> None:
    """Turn the options of the command line into `Options` and run them."""
    from fastgrad.training.run import Options
    from fastgrad.training.run import train as run

    given = {
        "cell": cell and cell.value,
        "embedding": embedding,
        "hidden": hidden,
        "layers": layers,
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


@app.command(help="Say what this machine can do for the kernels, and why not more.")
def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure copying and matrix products: about a second.")
    ] = False,
) -> None:
    """Print the report of `fastgrad.doctor`."""
    import fastgrad

    print(fastgrad.doctor(measure=measure))


def main() -> None:
    """Run the command line and exit: 0 done, 1 the loss diverged, 2 a wrong input or option, 130 stopped by Ctrl-C."""
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
