"""Atomic writing: a file is written completely or not at all; and reading of tables that were not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_COMPRESSION = 3
"""Of tables; more takes far longer, and saves little."""


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file beside the old one, then replace that: a reader sees the old or the new content, never a part.

    Raises:
        OSError: If it cannot be written (a full disk, no permission); the old file is unchanged.
    """
    with written_aside(path) as file:
        file.write(content)


@contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file beside the old one, which replaces that once it is complete and on the disk.

    Raises:
        OSError: See write_atomically.
    """
    path = Path(path)
    aside = _aside(path)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # A full disk does not name the file.
        raise


@contextmanager
def written_row_by_row(path: Path) -> Iterator[TextIO]:
    """Yield a table to write into, which replaces the file once it is complete."""
    aside = _aside(path)
    try:
        # File names may contain bytes that are not text.
        with (
            gzip.open(aside, "wb", compresslevel=_COMPRESSION) if path.suffix == ".gz" else aside.open("wb") as content,
            io.TextIOWrapper(content, encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_unfinished(path: Path) -> None:
    """Remove partial files that killed processes left while they wrote a file."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def to_json(content: Any, indent: int | None = 2) -> str:
    """Return strict JSON: a number that is NaN or infinite is null, since JSON has no such numbers.

    Everything in JSON that cnnlab prints or writes for others is made by it. ``indent`` is the number of spaces a
    level, or None for one line.

    >>> print(to_json({"val/mean_iou": float("nan"), "images": 2}))
    {
      "val/mean_iou": null,
      "images": 2
    }
    """
    return json.dumps(_without_nan(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically: see to_json()."""
    write_atomically(path, f"{to_json(content)}\n".encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table by its columns; no rows if it is missing."""
    return list(csv_rows(path))


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read a table row by row: see read_csv."""
    if not path.is_file():
        return
    with open_table(path) as file:
        # A killed process may leave an incomplete last line in metrics.csv.
        yield from (row for row in csv.DictReader(file) if None not in row.values())


def open_table(path: Path) -> TextIO:
    """Open a table to read, also a compressed one (.gz)."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
    return path.open(newline="", encoding="utf-8")


def write_columns(path: Path, columns: Mapping[str, Iterable[object]]) -> None:
    """Write a table of columns of the same length atomically, compressed if the file's name ends in .gz."""
    with written_row_by_row(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table atomically; its columns are the first row's keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    # File names may contain bytes that are not text.
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))
