"""The command line: what its commands have in common; each has its options in a module `_cli_...` of its own.

Whatever a person got wrong is one line on stderr and exit status 2. Kernels, matplotlib and the like are imported only
by the command that needs them, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from fastgrad import _cli_lab, _cli_machine, _cli_train, _cli_tune
from fastgrad._cli_options import Interrupted

__all__ = ["app", "main"]

app = typer.Typer(
    name="fastgrad",
    cls=_cli_lab.Commands,
    help="Fast training kernels for NumPy and CuPy arrays, and a character language model trained on them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from fastgrad import __version__

        print(f"fastgrad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fast training kernels for NumPy and CuPy arrays, and a character language model trained on them."""


for _commands in (_cli_train, _cli_lab, _cli_machine, _cli_tune):  # the order in the help
    _commands.add_commands(app)


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
    except (KeyboardInterrupt, typer.Abort, Interrupted):
        return _fail("stopped by Ctrl-C; files that were there before are still whole", 130)
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
