"""`fastgrad profile`: from its options to its output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastgrad.profiling import ops
from fastgrad.training.errors import UserError


def run(names: Sequence[str], sizes: Sequence[int] | None, turns: int, as_json: bool, out: Path | None) -> int:
    """Measure, print, and write where asked; return the exit status.

    Raises UserError for an unknown operation, and for a folder that can't be written.
    """
    try:
        chosen = ops.chosen(names)
    except ValueError as error:
        raise UserError(str(error)) from None
    if out is not None:
        from fastgrad.training.run import prepare_folder

        prepare_folder(out)  # before a minute is spent on what could not be written
    from fastgrad.profiling.measure import measure
    from fastgrad.profiling.show import print_profile

    with Status() as status:
        profile = measure(chosen, sizes, turns, status.say)
    text = json.dumps(profile.as_dict(), indent=1)
    if as_json:
        print(text)
    else:
        from rich.console import Console

        print_profile(profile, Console())
    if out is not None:
        from fastgrad.profiling.plot import save
        from fastgrad.training.checkpoint import write_atomically

        try:
            written = [*save(profile, out), out / "profile.json"]
            write_atomically(written[-1], text.encode())
        except OSError as error:
            raise UserError(f"{out} can't be written: {error.strerror}") from None
        print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return 0 if not any(row.failed for row in profile.rows) else 1


class Status:
    """A line on stderr that says what is measured; it goes away in the end, and is not there without a terminal."""

    def __init__(self) -> None:
        self._width = 0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Status:
        return self

    def say(self, text: str) -> None:
        if self._shown:
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
