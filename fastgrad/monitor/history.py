"""What a monitor remembers of a run, in bounded memory, and the file that gets all of it."""

from __future__ import annotations

import contextlib
import csv
import weakref
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

COLUMNS = ("norm", "max_abs", "nan", "inf", "zero", "subnormal", "update_ratio")
NORM, MAX_ABS, NAN, INF, ZERO, SUBNORMAL, RATIO = range(len(COLUMNS))

# Looks that a file gets at a time: a row group of Parquet should not be small.
ROWS_TOGETHER = 64


class Look:
    """One look at a step: what a report says, on the host.

    step: number of the step, from 0.
    values (7, n) float64: COLUMNS of every parameter of the optimizer; NaN where it took no part.
    """

    __slots__ = ("clip_coefficient", "grad_norm", "skipped", "step", "values")

    def __init__(self, step: int, grad_norm: float, clip_coefficient: float, skipped: bool, values: np.ndarray) -> None:
        self.step, self.grad_norm, self.clip_coefficient, self.skipped = step, grad_norm, clip_coefficient, skipped
        self.values = values


class History:
    """The looks of a run: all of them until `keep` are there, then every second one, and so on.

    At no time more than `keep` are kept, spread evenly over the run: 1000 looks at 148 tensors take 8 MB.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.looks = keep, list[Look]()
        self._each, self._seen = 1, 0

    def add(self, look: Look) -> None:
        """Remember a look, or not, where the run is long."""
        if self._seen % self._each == 0:
            if len(self.looks) == self.keep:
                self.looks = self.looks[::2]
                self._each *= 2
            if self._seen % self._each == 0:
                self.looks.append(look)
        self._seen += 1

    def steps(self) -> np.ndarray:
        """Return the numbers of the steps, int64 (looks,)."""
        return np.array([look.step for look in self.looks], np.int64)

    def column(self, name: str) -> np.ndarray:
        """Return one of COLUMNS of every look, float64 (looks, n)."""
        row = COLUMNS.index(name)
        return np.array([look.values[row] for look in self.looks]).reshape(len(self.looks), -1)

    def numbers(self, name: str) -> np.ndarray:
        """Return grad_norm, clip_coefficient or skipped of every look, float64 (looks,)."""
        return np.array([getattr(look, name) for look in self.looks], np.float64)


class Row(NamedTuple):
    """A line of the file: one tensor in one look."""

    step: int
    tensor: str
    size: int
    norm: float
    max_abs: float
    nan: int
    inf: int
    zero: int
    subnormal: int
    update_ratio: float
    grad_norm: float
    clip_coefficient: float
    skipped: bool


class File:
    """A CSV or Parquet file with a `Row` for each tensor of each look; what took no part has none.

    Rows are written ROWS_TOGETHER looks at a time and by `close`, which the end of the process calls as well.

    Raises:
        ValueError: the path ends in neither .csv nor .parquet.
        ModuleNotFoundError: pyarrow, which Parquet needs, is missing.
    """

    def __init__(self, path: Path, names: tuple[str, ...], sizes: list[int]) -> None:
        writers: dict[str, Any] = {".csv": _CSV, ".parquet": _Parquet}
        if path.suffix not in writers:
            raise ValueError(f"path: expected a name that ends in .csv or .parquet, got {str(path)!r}")
        self._names, self._sizes = names, sizes
        self._writer = writers[path.suffix](path)
        self._pending: list[Row] = []
        self._looks = 0
        self._end = weakref.finalize(self, _finish, self._writer, self._pending)

    def add(self, look: Look) -> None:
        """Take a look's rows."""
        whole = (look.grad_norm, look.clip_coefficient, look.skipped)
        for name, size, values in zip(self._names, self._sizes, look.values.T.tolist(), strict=True):
            counts = values[NAN : SUBNORMAL + 1]
            if not np.isnan(counts[0]):
                nan, inf, zero, subnormal = map(int, counts)
                found = (values[NORM], values[MAX_ABS], nan, inf, zero, subnormal, values[RATIO])
                self._pending.append(Row(look.step, name, size, *found, *whole))
        self._looks += 1
        if self._looks % ROWS_TOGETHER == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            self._writer.write(self._pending)
            self._pending.clear()

    def close(self) -> None:
        """Write what is pending and end the file."""
        self._end()


def _finish(writer: Any, pending: list[Row]) -> None:
    if pending:
        writer.write(pending)
        pending.clear()
    writer.close()


class _CSV:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(Row._fields)

    def write(self, rows: list[Row]) -> None:
        self._rows.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"path: {path.name} needs pyarrow, pip install 'fastgrad[monitor]'; or give a name that ends in .csv"
            ) from error
        kinds = {int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_(), str: pyarrow.string()}
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in get_type_hints(Row).items()])
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: list[Row]) -> None:
        columns = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
        self._writer.write_table(self._table.from_pydict(columns, schema=self._schema))

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # at the end of the process the file may be closed already
            self._writer.close()
