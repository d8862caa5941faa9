"""`fastgrad train`: its options and their help; the work is in `fastgrad.training`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastgrad._cli_options import Dtype, finite, option, positive

__all__ = ["add_commands"]

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


class Model(StrEnum):
    """Models of text."""

    lstm = "lstm"
    gru = "gru"
    transformer = "transformer"


class Backend(StrEnum):
    """Kernels."""

    cpu = "cpu"
    gpu = "gpu"
    reference = "reference"


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
        option(
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
        option(
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
        option(
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
        option(
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
        option("--heads", metavar="N", panel=MODEL, default="4", min=1, help="Heads of attention of a transformer."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        option(
            "--dtype",
            metavar="float32|float64",
            panel=MODEL,
            default="float32",
            help="Precision. float64 is for checks: half as fast.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        option(
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
        option(
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
        option(
            "--lr",
            metavar="X",
            panel=TRAINING,
            default="0.003, or 0.002 of a transformer",
            callback=positive,
            help="Learning rate of Adam.",
        ),
    ] = None,
    clip: Annotated[
        float | None,
        option(
            "--clip",
            metavar="X",
            panel=TRAINING,
            default="1.0",
            min=0.0,
            callback=finite,
            help="Gradients whose global norm is larger are scaled down to it. 0 turns clipping off.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        option(
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
        option(
            "--backend",
            metavar="cpu|gpu|reference",
            panel=TRAINING,
            default="cpu",
            help="Kernels: cpu (Numba), gpu (CUDA; needs CuPy and an NVIDIA GPU) or reference (naive NumPy).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        option(
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
        option(
            "--minutes",
            metavar="X",
            panel=LENGTH,
            default="1.25, or no limit with --steps",
            callback=positive,
            help="Train for this long in total, resumed time included.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        option(
            "--resume",
            panel=LENGTH,
            help="Go on from the checkpoint in --out, bit for bit. Model, text and plan are the checkpoint's.",
        ),
    ] = False,
    out: Annotated[
        Path,
        option(
            "--out",
            metavar="FOLDER",
            panel=OUTPUT,
            help="Folder for the checkpoint and curve.png; made where it is missing.",
        ),
    ] = Path("runs/char-lstm"),
    overwrite: Annotated[
        bool, option("--overwrite", panel=OUTPUT, help="Replace a checkpoint that is in --out already.")
    ] = False,
    save_every: Annotated[
        float,
        option(
            "--save-every", metavar="SECONDS", panel=OUTPUT, callback=positive, help="Seconds between two checkpoints."
        ),
    ] = 30.0,
    validate_every: Annotated[
        int,
        option(
            "--validate-every",
            metavar="STEPS",
            panel=OUTPUT,
            min=1,
            help="Steps between two looks at the validation text.",
        ),
    ] = 100,
    sample_length: Annotated[
        int,
        option(
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
        option(
            "--temperature",
            metavar="X",
            panel=OUTPUT,
            min=0.0,
            callback=finite,
            help="Of the sample: 0 takes the likeliest character, 1 draws as the model believes.",
        ),
    ] = 0.8,
    no_compare: Annotated[
        bool, option("--no-compare", panel=OUTPUT, help="Don't time these kernels against naive NumPy at the end.")
    ] = False,
    profile: Annotated[
        bool,
        option(
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


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", help=ABOUT, epilog=EXAMPLES)(train)
