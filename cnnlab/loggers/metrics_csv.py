"""metrics.csv: one table of a run's metrics, which a resumed run continues."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from cnnlab.writing import read_csv, write_atomically


class MetricsCsv(Logger):
    """Writes one row for each step (0 is the first optimizer step) immediately.

    Metrics of the same step share a row; a new metric adds a column.

    Args:
        path: The file; its rows are kept.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns = ["step", "epoch"]
        self._last: dict[str, str] = {}
        self._last_offset = 0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """A run has one version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write the metrics of a step; metrics without a step, such as a test's, are ignored."""
        if step is None:
            return
        new = {name: _text(value) for name, value in metrics.items()}
        new["step"] = str(step)
        if missing := [name for name in new if name not in self._columns]:
            rows = self.read()
            self._columns += sorted(missing)
            self._write(rows)
        same_step = self._last.get("step") == new["step"]
        row = {**self._last, **new} if same_step else new
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            # A merged row is never shorter than the row that it replaces.
            end = file.seek(0, io.SEEK_END)
            if end == 0:
                end = file.write(_line(self._columns, dict(zip(self._columns, self._columns, strict=True))))
            offset = self._last_offset if same_step else end
            file.seek(offset)
            file.write(_line(self._columns, row))
            file.truncate()
        self._last, self._last_offset = row, offset

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop the rows from this step on; a resumed run writes them again."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), self._columns)
        self._write([row for row in self.read() if int(row["step"]) < step])

    def read(self) -> list[dict[str, str]]:
        """Return all rows, by column; "" marks a missing metric."""
        return read_csv(self.path)

    def _write(self, rows: list[dict[str, str]]) -> None:
        lines = [_line(self._columns, dict(zip(self._columns, self._columns, strict=True)))]
        lines += [_line(self._columns, row) for row in rows]
        write_atomically(self.path, b"".join(lines))
        self._last = dict(rows[-1]) if rows else {}
        self._last_offset = sum(map(len, lines[:-1])) if rows else 0


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _line(columns: list[str], row: dict[str, str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(column, "") for column in columns])
    return text.getvalue().encode()
