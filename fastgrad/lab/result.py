"""What an experiment hands over: tables of figures, charts that are views of them, and two sentences."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Chart", "Result", "Table"]

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """Rows of figures with a name for every column; written as CSV under the table's name."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def csv(self) -> str:
        """Return the table as CSV: numbers with all their digits, so that a reader gets back what was measured."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def select(self, **where: Any) -> Table:
        """Return the rows whose columns have these values."""
        at = {self.columns.index(column): value for column, value in where.items()}
        rows = [row for row in self.rows if all(row[index] == value for index, value in at.items())]
        return Table(self.name, self.columns, rows)

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, from the first row to the last."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def one(self, column: str, **where: Any) -> Any:
        """Return the only value of a column among the rows that have these values."""
        (value,) = self.select(**where).column(column)
        return value


@dataclass(frozen=True)
class Chart:
    """A view of a table: columns `x` and `y`, one curve (or colour of bars) for each value of the column `curves`.

    kind: "lines", "bars", or "map", a field of coloured cells whose rows are `curves`, whose columns are `x` and whose
        figure is `y`; for a map the figures are powers of ten of a ratio, 0 is good and both ends are bad.
    where: only rows with these values; title: what is seen, with the unit; x_title, y_title: of the axes, with units.
    limit: |y| at which the colours of a map end.
    """

    name: str
    title: str
    table: Table
    x: str
    y: str
    curves: str
    x_title: str
    y_title: str
    where: dict[str, Any] = field(default_factory=dict)
    kind: str = "lines"
    log_y: bool = False
    percent: bool = False
    limit: float = 10.0

    def selected(self) -> Table:
        """Return the rows that are drawn."""
        return self.table.select(**self.where)

    def groups(self) -> dict[str, tuple[list[Any], list[Any]]]:
        """Return x and y of each curve, in the order in which the curves first come up in the table."""
        groups: dict[str, tuple[list[Any], list[Any]]] = {}
        rows = self.selected()
        for name, x, y in zip(rows.column(self.curves), rows.column(self.x), rows.column(self.y), strict=True):
            xs, ys = groups.setdefault(str(name), ([], []))
            xs.append(x)
            ys.append(y)
        return groups


@dataclass(frozen=True)
class Result:
    """A finished experiment.

    title: the question as a headline; sentences: two, that say what one sees; method: how it was measured;
    charts: in the order of the page; tables: all that goes into CSV files, named after the experiment and the table.
    """

    name: str
    title: str
    sentences: tuple[str, str]
    method: str
    charts: Sequence[Chart]
    tables: Sequence[Table]
