"""The main job: `fastgrad lab` from the names of its experiments to its last line: files, signals and progress."""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrad import __version__
from fastgrad.lab.page import page, plotly_script
from fastgrad.lab.result import Result
from fastgrad.lab.work import Stopped, Work
from fastgrad.training.checkpoint import claimed, write_atomically
from fastgrad.training.errors import UserError
from fastgrad.training.one_thread import one_thread
from fastgrad.training.progress import duration
from fastgrad.training.run import Stop, prepare_folder

__all__ = ["EXPERIMENTS", "PAGE", "Options", "laboratory", "listing"]

# Module of fastgrad.lab by that name, and what it shows.
EXPERIMENTS = {
    "depth": "the gradient at every layer of a plain deep network, by depth, activation and initialisation",
    "remedies": "a deep network that cannot learn, with one remedy at a time, and with all",
    "memory": "LSTM, GRU and a plain recurrent cell on tasks with a memory of up to 1,000 steps",
    "explosion": "an exploding run with and without clipping",
    "stacks": "1,000 residual layers and a transformer of 200 blocks, beside the same without skip connections",
}

PAGE = "lab.html"


@dataclass(frozen=True)
class Options:
    """The options of `fastgrad lab`."""

    experiments: Sequence[str] = ()
    out: Path = Path("runs/lab")
    quick: bool = False
    seed: int = 1


def listing() -> str:
    """Return the experiments with what they show, one in a line."""
    width = max(map(len, EXPERIMENTS))
    return "\n".join(f"{name:{width}}  {what}" for name, what in EXPERIMENTS.items())


def laboratory(options: Options) -> int:
    """Run the experiments, write page and figures after each, and return the exit status.

    Raises UserError for an unknown experiment, a folder that can't be written or is in use by another run, and where
    plotly is missing.
    """
    names = list(dict.fromkeys(options.experiments)) or list(EXPERIMENTS)
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise UserError(
            f"there is no experiment {unknown[0]!r}; choose from {', '.join(EXPERIMENTS)} (fastgrad lab --list)"
        )
    # Before anything is computed: a run of minutes must not end without its page.
    script = plotly_script()
    prepare_folder(options.out)
    results: list[Result] = []
    begun = time.monotonic()
    with claimed(options.out), Stop() as stop, one_thread(), _display() as display:
        for position, name in enumerate(names):
            work = Work(options.quick, options.seed, display.show(name), lambda: stop.received is not None)
            start = time.monotonic()
            try:
                result = importlib.import_module(f"fastgrad.lab.{name}").run(work)
            except Stopped:
                break
            results.append(result)
            display.say(f"{name}: done in {duration(time.monotonic() - start)}")
            _write(options, results, names[position + 1 :], script)
    path = options.out / PAGE
    if stop.received is None:
        for result in results:
            print(f"{result.name}: {' '.join(result.sentences)}")
        print(f"page: {path}, with its figures as CSV beside it; {duration(time.monotonic() - begun)} minutes")
        return 0
    missing = names[len(results) :]
    name = "Ctrl-C" if stop.received == signal.SIGINT else signal.Signals(stop.received).name
    done = (
        f"{path} has {', '.join(result.name for result in results)}, and says that {', '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing"
        if results
        else "no experiment was finished, and nothing was written"
    )
    print(f"stopped by {name}; {done}", file=sys.stderr, flush=True)
    return 128 + stop.received


def _write(options: Options, results: Sequence[Result], missing: Sequence[str], script: str) -> None:
    """Write the page and the tables of the results, in place of what an earlier run has left of the same."""
    command = ["fastgrad", "lab", *options.experiments, *(["--quick"] if options.quick else [])]
    heading = f"{shlex.join(command)} --seed {options.seed}, fastgrad {__version__}"
    note = f"This run was not finished: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
    files = {f"{result.name}-{table.name}.csv": table.csv() for result in results for table in result.tables}
    try:
        # Figures of an earlier run in the folder would pass for this one's.
        for name in EXPERIMENTS:
            for stale in options.out.glob(f"{name}-*.csv"):
                if stale.name not in files:
                    stale.unlink()
        for file, text in files.items():
            write_atomically(options.out / file, text.encode())
        write_atomically(options.out / PAGE, page(results, heading, note if missing else "", script).encode())
    except OSError as error:
        raise UserError(f"{options.out} can't be written: {error.strerror}") from None


class _Plain:
    """Progress where there is no terminal: a line for each loop that begins."""

    def show(self, name: str) -> Any:
        def show(label: str, done: int, total: int) -> None:
            if done == 0:
                self.say(f"{name}: {label}")

        return show

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Terminal:
    """Progress on a terminal: a bar for the loop that runs, a line for each experiment that is done."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None
        self._drawn = 0.0

    def show(self, name: str) -> Any:
        if self._task is None:
            self._task = self._progress.add_task(name, total=None)

        def show(label: str, done: int, total: int) -> None:
            now = time.monotonic()
            if done == 0:
                self._progress.reset(self._task, total=total, description=f"{name}: {label}")
            # A refresh takes milliseconds, a step sometimes less than one.
            if done in (0, total) or now - self._drawn > 0.1:
                self._progress.update(self._task, completed=done, refresh=True)
                self._drawn = now

        return show

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)


@contextmanager
def _display() -> Iterator[Any]:
    """Progress goes to stderr, so that stdout holds the findings alone."""
    if not sys.stderr.isatty():
        yield _Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # rich's own refresh thread would take time from the kernels.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        yield _Terminal(progress)
