"""`fastgrad lab` and `fastgrad train digits`: options and their help; the work is elsewhere.

`digits` as the first argument of `train` chooses the images, always: a text file of that name is `./digits`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastgrad._cli_options import Interrupted, finite, positive

__all__ = ["Commands", "add_commands"]

NETWORK, TRAINING, OUTPUT = "Network", "Training", "Output"

ABOUT_LAB = """Show vanishing and exploding gradients, and what each remedy does about them, on real networks.

Writes one page, [bold]lab.html[/bold], whose charts answer to the mouse and need no network, and the figures as CSV \
beside it. A full run takes minutes on two cores; Ctrl-C leaves a page with the experiments that are done.
"""

EXAMPLES_LAB = """
[bold]Examples[/bold]

Everything, at full size:

    [cyan]fastgrad lab[/cyan]

A first look at two experiments:

    [cyan]fastgrad lab depth remedies --quick[/cyan]
"""

ABOUT_DIGITS = """Train a deep network on images: the 1,797 digits of 8 x 8 pixels that scikit-learn carries.

With the defaults 30 layers get more than 97 % of the 360 test images right. Turn the remedies off to see why they are \
there. Left behind are the weights ([bold]model.safetensors[/bold], torch's names) and [bold]curve.png[/bold].
"""

EXAMPLES_DIGITS = """
[bold]Examples[/bold]

Thirty layers that learn:

    [cyan]fastgrad train digits[/cyan]

The same depth without any remedy, which does not:

    [cyan]fastgrad train digits --activation sigmoid --init old --norm none --no-residual[/cyan]

A text file that is called digits:

    [cyan]fastgrad train ./digits[/cyan]
"""


class Commands(TyperGroup):
    """The commands, of which `train digits` is one of two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command and its arguments."""
        if args[:2] == ["train", "digits"]:
            name, command, _ = super().resolve_command(ctx, ["train-digits"])
            # What the usage line of its help shows.
            return "train digits" if name else name, command, args[2:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class Init(StrEnum):
    """Initialisations."""

    old = "old"
    xavier = "xavier"
    he = "he"
    lecun = "lecun"
    orthogonal = "orthogonal"


class Norm(StrEnum):
    """Normalisations."""

    none = "none"
    batch = "batch"
    layer = "layer"


def _no_resume(wanted: bool) -> bool:
    if wanted:
        raise typer.BadParameter(
            "a run on digits takes some ten seconds and can't be resumed; begin anew, with more --epochs or --minutes."
        )
    return wanted


def lab(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT", help="What to run, see --list.", show_default="all"),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the experiments and exit.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller networks and fewer steps: everything in under a minute.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the page and the figures.")] = Path(
        "runs/lab"
    ),
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same figures.")] = 1,
) -> None:
    """Turn the options into `Options` of the laboratory and run it."""
    from fastgrad.lab.run import Options, laboratory, listing

    if list_them:
        print(listing())
        return
    raise typer.Exit(laboratory(Options(tuple(experiments or ()), out, quick, seed)))


def digits(
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, max=10_000, help="Layers.", rich_help_panel=NETWORK)
    ] = 30,
    width: Annotated[
        int,
        typer.Option("--width", metavar="N", min=1, max=100_000, help="Units of a layer.", rich_help_panel=NETWORK),
    ] = 128,
    activation: Annotated[
        str,
        typer.Option("--activation", metavar="NAME", help="relu, sigmoid, tanh, gelu, ...", rich_help_panel=NETWORK),
    ] = "relu",
    init: Annotated[
        Init,
        typer.Option(
            "--init",
            metavar="old|xavier|he|lecun|orthogonal",
            help="First weights; old is uniform within 1/sqrt(inputs).",
            rich_help_panel=NETWORK,
        ),
    ] = Init.he,
    norm: Annotated[
        Norm,
        typer.Option(
            "--norm", metavar="none|batch|layer", help="Normalisation in each layer.", rich_help_panel=NETWORK
        ),
    ] = Norm.batch,
    residual: Annotated[
        bool,
        typer.Option("--residual/--no-residual", help="A skip connection past each layer.", rich_help_panel=NETWORK),
    ] = True,
    lr: Annotated[
        float,
        typer.Option(
            "--lr",
            metavar="X",
            callback=positive,
            help="Learning rate of Adam at its highest.",
            rich_help_panel=TRAINING,
        ),
    ] = 1e-3,
    max_norm: Annotated[
        float,
        typer.Option(
            "--max-norm",
            metavar="X",
            min=0.0,
            callback=finite,
            rich_help_panel=TRAINING,
            help="Gradients whose global norm is larger are scaled down to it. 0 turns clipping off.",
        ),
    ] = 1.0,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            metavar="N",
            min=1,
            show_default="40, or as many as fit with --minutes",
            help="Times that each image is learned from.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="X",
            callback=positive,
            show_default="no limit",
            rich_help_panel=TRAINING,
            help="End training after so long, whatever is left of the epochs.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, help="Of weights, order and test images.", rich_help_panel=TRAINING),
    ] = 1,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder for curve and weights.", rich_help_panel=OUTPUT),
    ] = Path("runs/digits"),
    resume: Annotated[bool, typer.Option("--resume", hidden=True, callback=_no_resume)] = False,
) -> None:
    """Turn the options into `Options` of the digits and train."""
    from fastgrad.training.digits import Options, train

    raise typer.Exit(
        train(
            Options(
                depth=depth, width=width, activation=activation, init=init.value, norm=norm.value, residual=residual,
                lr=lr, max_norm=max_norm, epochs=epochs, minutes=minutes, seed=seed, out=out,
            )
        )
    )  # fmt: skip


def add_commands(app: typer.Typer) -> None:
    """Add both commands; `train digits` is hidden, since the list of commands names words, not pairs."""
    app.command("lab", help=ABOUT_LAB, epilog=EXAMPLES_LAB)(lab)
    app.command("train-digits", help=ABOUT_DIGITS, epilog=EXAMPLES_DIGITS, hidden=True)(digits)
