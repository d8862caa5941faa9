"""The monitor: behind every step of an optimizer, in front of everybody who wants to know how it goes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastgrad._checks import integer
from fastgrad._optimizer import Optimizer
from fastgrad._step_report import DeviceReport, StepReport, tensor_names
from fastgrad.layers import Layer
from fastgrad.monitor.diagnosis import Diagnosis, Thresholds, Trouble
from fastgrad.monitor.history import COLUMNS, File, History, Look
from fastgrad.monitor.probes import GateProbe, biases_in_front_of_relus, saturated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Looks at steps on a device that are read together: the host runs ahead of the device by so many at most.
READ_TOGETHER = 32


class GradientMonitor:
    """Watch the gradients of an optimizer: keep a history, write it to a file, tell trouble in words.

        with GradientMonitor(optimizer, every=10, path="gradients.parquet", model=model) as monitor:
            for ...:
                ...
                optimizer.step()
        print(monitor.verdict())

    It is told of each step by the optimizer itself and reads what the step has found anyway (`StepReport.health`): a
    look at the 148 tensors of GPT-2 small costs 0.3 ms. Of a step on a device it keeps the report,
    untouched, and reads 32 of them together, or all when somebody asks; only then does it wait for the device.

    What is told, see `Trouble.kind`: a gradient that vanished, exploded, or is not finite, and in which tensor first;
    steps that change a tensor too much (the learning rate is too high); a run in which every step is clipped; and with
    `model`:

    - dead units of a relu: those whose bias, in the layer in front of the relu in a Sequential, got a gradient of
      exactly 0. Such a unit was 0 for every example of the batch; how many of them there are is what the norm pass
      counts in any case. Layers without a bias are not looked at.
    - saturated gates of LSTM and GRU layers: the values of the sigmoids in the last step of a sequence, copied in the
      forward pass of each step that is looked at. Sequences with `lengths` are not looked at, nor is `LayerNormLSTM`.

    `every` counts steps of the optimizer; a step in host memory that was skipped is looked at always. Steps that are
    replayed from a graph call nobody: call `look(report)` with the report of the captured step.

    Args:
        optimizer: whose steps are watched, with `health=True`, its default.
        every: look at each such step.
        path: gets a row for each tensor of each look; a new file, CSV or Parquet by its ending. Parquet needs
            pip install "fastgrad[monitor]". It is complete after `close`, the end of a `with` block, or the process.
        model: the model, for dead units and saturated gates.
        keep: so many looks at most stay in memory, for the pictures; a longer run is kept more coarsely, every second
            look, every fourth. Diagnosis has seen all of them.
        tensorboard: folder for TensorBoard's event files: scalars of each look, and histograms. Needs
            pip install "fastgrad[tensorboard]".
        histograms: write a histogram of each gradient at each such look, which reads all of them once more, and waits
            where they lie on a device; 0: never.
        first_step: number of the next step.
        thresholds: see `Thresholds`, by name: vanishing=1e-6, exploding=100.0, largest=1e3, update_ratio=1/3, dead=0.5,
            saturated=0.95, clipped=100, patience=5.

    Raises:
        TypeError: optimizer or model is none, a threshold is not known, or a number is none.
        ValueError: every, keep, histograms, first_step or a threshold out of range, the optimizer has health=False, the
            path's ending.
        ModuleNotFoundError: what path or tensorboard need is not installed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        every: int = 1,
        path: str | Path | None = None,
        model: Layer | None = None,
        keep: int = 1000,
        tensorboard: str | Path | None = None,
        histograms: int = 0,
        first_step: int = 0,
        **thresholds: float,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one of fastgrad's, got {type(optimizer).__qualname__}")
        if not optimizer.health:
            raise ValueError("optimizer: has health=False, so that its steps find nothing; make it with health=True")
        if model is not None and not isinstance(model, Layer):
            raise TypeError(f"model: expected a layer of fastgrad.layers, got {type(model).__qualname__}")
        limits = Thresholds.checked(thresholds)
        self.every, self.next_step = integer("every", every, 1), integer("first_step", first_step, 0)
        integer("keep", keep, 2)
        integer("histograms", histograms, 0)
        parameters = optimizer._parameters
        self.names = tensor_names(parameters, range(len(parameters)))
        sizes = [parameter.data.size for parameter in parameters]
        relus = [] if model is None else biases_in_front_of_relus(model)
        places = [k for k, parameter in enumerate(parameters) if any(parameter is bias for bias in relus)]
        self._diagnosis = Diagnosis(self.names, sizes, places, limits)
        self._history = History(keep)
        self._file = None if path is None else File(Path(path), self.names, sizes)
        self._board: Any = None
        if tensorboard is not None:
            from fastgrad.monitor.tensorboard import Board

            self._board = Board(Path(tensorboard))
        self._histograms = histograms
        self._looked = 0
        self._where = {name: k for k, name in enumerate(self.names)}
        self._unread: list[tuple[int, StepReport, Any]] = []
        self._gates = None if model is None else GateProbe(model, lambda: self.next_step % self.every == 0)
        self._optimizer = optimizer
        optimizer.watchers.append(self._watch)

    # --- steps

    def _watch(self, report: StepReport, grads: list[Any]) -> None:
        due = self.next_step % self.every == 0
        if due or (not isinstance(report, DeviceReport) and report.skipped):
            self.look(report)
            if self._board is not None and self._histograms and (self._looked - 1) % self._histograms == 0:
                self._board.histograms(self.next_step, self.names, grads)
        self.next_step += 1

    def look(self, report: StepReport) -> None:
        """Take the report of the step `next_step`; the optimizer's own steps come by themselves."""
        self._looked += 1
        gates = [] if self._gates is None else self._gates.take()
        self._unread.append((self.next_step, report, gates))
        if not isinstance(report, DeviceReport) or len(self._unread) >= READ_TOGETHER:
            self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for step, report, gates in unread:
            look = Look(step, report.grad_norm, report.clip_coefficient, report.skipped, self._values(report))
            self._diagnosis.take(look, saturated(gates))
            self._history.add(look)
            if self._file is not None:
                self._file.add(look)
            if self._board is not None:
                self._board.scalars(look, self.names)

    def _values(self, report: StepReport) -> np.ndarray:
        found = report.health
        if found is None:  # the optimizer's health was turned off, or no gradient took part
            return np.full((len(COLUMNS), len(self.names)), np.nan)
        values = np.array([getattr(found, name) for name in COLUMNS], np.float64)
        if found.names == self.names:
            return values
        every = np.full((len(COLUMNS), len(self.names)), np.nan)
        every[:, [self._where[name] for name in found.names]] = values
        return every

    # --- what it says

    @property
    def history(self) -> History:
        """Return the looks that are kept; waits for a device."""
        self._read()
        return self._history

    def troubles(self) -> list[Trouble]:
        """Return what is wrong, or was, the gravest first; waits for a device."""
        self._read()
        return self._diagnosis.troubles()

    def verdict(self) -> str:
        """Return one or two sentences on the run; waits for a device."""
        self._read()
        return self._diagnosis.verdict()

    @property
    def healthy(self) -> bool:
        """Return whether nothing was wrong so far; waits for a device."""
        return not self.troubles()

    def plot(self, path: str | Path | None = None, column: str = "norm") -> Figure:
        """Draw layer x step as a heat map; return the figure, written to `path` (PNG, SVG, PDF) where there is one.

        column: "norm", drawn as the root mean square of the entries, "update_ratio", "max_abs", or "zero" and
            "subnormal", as a share of the entries. A colour is a power of ten, but for the shares.

        Raises:
            ValueError: another column, or nothing to draw yet.
        """
        from fastgrad.monitor.picture import heat_map

        self._read()
        figure = heat_map(self._history, self.names, self._diagnosis.sizes, column)
        if path is not None:
            figure.savefig(path)
        return figure

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing else: verdict, troubles, pictures, a table of the last look.

        Raises FileNotFoundError where its folder does not exist.
        """
        from fastgrad.monitor.page import write

        if not Path(path).parent.is_dir():
            raise FileNotFoundError(f"path: expected a file in a folder that exists, got {str(path)!r}")
        self._read()
        return write(Path(path), self._history, self._diagnosis)

    # --- its end

    def flush(self) -> None:
        """Read what is left on a device and bring files up to date; Parquet files are whole after `close`."""
        self._read()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.flush()

    def close(self) -> None:
        """Stop watching and end the files; what was seen can still be asked for."""
        if self._watch in self._optimizer.watchers:
            self._optimizer.watchers.remove(self._watch)
        if self._gates is not None:
            self._gates.stop()
        self._read()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        self._file = self._board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
