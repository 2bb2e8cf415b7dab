"""A CSV file with a row for each object."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnlab import tree
from cnnlab.data.objects.places import Files, declared_size, describe_unlisted, split_of
from cnnlab.data.objects.reading import ObjectList, Reading
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError
from cnnlab.image_files import check_name

_PATH = ("path", "filename", "file_name", "file", "image", "image_path", "image_id")
_CLASS = ("class", "label", "name", "class_name", "category")
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_WITH_SIZE = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
_FORM = "path, x1, y1, x2, y2, class (or xmin, ymin, xmax, ymax; or x, y, w, h), and optionally split and group"


class _Columns(NamedTuple):
    """Where each column is."""

    path: int
    label: int
    box: tuple[int, ...]
    as_sizes: bool
    size: tuple[int, int] | None
    """Of the image's height and width."""
    split: int | None
    group: int | None


def read_csv(table: Path, root: Path, files: Files) -> Reading:
    """Read a table with a row for each object; a row without a box is an image without objects.

    Coordinates are pixels; if none is above 1, they are shares of width and height.

    Args:
        table: The file.
        root: The folder that its paths start from.
        files: The files there are.

    Raises:
        InputError: If the file or a column is missing, or if an image has two splits or groups.
    """
    header, rows = _rows(table)
    columns = _find_columns(table, header)
    reader = _Reader(table, root, columns)
    for line, row in rows:
        reader.read(line, row)
    return reader.reading(files)


class _Reader:
    """Takes in one row after the other."""

    def __init__(self, table: Path, root: Path, columns: _Columns) -> None:
        self._table = table
        self._root = root
        self._columns = columns
        self._row_of: dict[str, int] = {}
        self._samples: list[Sample] = []
        self._sizes: list[tuple[int, int]] = []
        self._objects = ObjectList()
        self._names: list[str] = []
        self._bad: list[tuple[str, str]] = []

    def read(self, line: int, row: Sequence[str]) -> None:
        columns, place = self._columns, f"{self._table}, line {line}"
        if len(row) <= max(columns.path, columns.label, *columns.box):
            raise InputError(f"{place}: it has {len(row)} values, and lacks some: write one for each column")
        image = self._image(place, row)
        texts = [row[column].strip() for column in columns.box]
        name = row[columns.label].strip()
        if not any(texts):
            return
        try:
            a, b, c, d = map(float, texts)
        except ValueError:
            self._bad.append(("rows with a broken box", f"{place}: its box is {', '.join(texts)}"))
            return
        if not name:
            self._bad.append(("rows with a box and no class", f"{place}: it has a box, but no class"))
            return
        self._objects.images.append(image)
        self._objects.boxes.append((a, b, a + c, b + d) if columns.as_sizes else (a, b, c, d))
        self._objects.sources.append(line)
        self._names.append(name)

    def _image(self, place: str, row: Sequence[str]) -> int:
        """The number of the row's image."""
        columns = self._columns
        split, group = (
            row[c].strip() if c is not None and c < len(row) else "" for c in (columns.split, columns.group)
        )
        text = row[columns.path].strip().replace("\\", "/")
        if not text:
            raise InputError(f"{place}: the path is empty")
        known = self._row_of.get(text)
        if known is None:
            path = os.path.normpath(os.path.join(self._root, text))  # noqa: PTH118
            check_name(path)
            if split and split_of(split) is None:
                raise InputError(f"{place}: split is {split!r}, expected train, val, test or nothing")
            known = self._row_of[text] = len(self._samples)
            self._samples.append(Sample(path, split=split_of(split) or "", group=group))
            self._sizes.append(_size(columns, row))
        sample = self._samples[known]
        if (split_of(split) or "") != sample.split or group != sample.group:
            raise InputError(f"{place}: {text} has another split or group than in its first row: give it one")
        return known

    def reading(self, files: Files) -> Reading:
        table, boxes = self._table, np.array(self._objects.boxes, np.float64).reshape(-1, 4)
        names = sorted(set(self._names))
        numbers = {name: number for number, name in enumerate(names)}
        self._objects.labels = [numbers[name] for name in self._names]
        relative = bool(len(boxes)) and bool(boxes[np.isfinite(boxes)].max(initial=0) <= 1)
        samples = self._samples
        unit = ", coordinates as shares of width and height" if relative else ""
        reading = Reading(
            samples,
            names,
            f"CSV, {table}{unit}",
            self._objects.pack(),
            lambda _, line: f"{table}, line {line}",
            names_are_listed=False,
            relative=relative,
            as_sizes=self._columns.as_sizes,
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
        )
        for kind, text in self._bad:
            reading.findings.add(kind, "correct the row, or leave all of its box empty if there is no object", [text])
        gone = [row for row, sample in enumerate(samples) if not files.has(sample.path)]
        reading.unusable.update(gone)
        texts = (f"{table}: there is no {samples[row].path}" for row in gone)
        reading.findings.add("images that do not exist", "correct the table or data.root", texts, len(gone))
        reading.notes += describe_unlisted([sample.path for sample in samples], files)
        return reading


def _rows(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with its line."""
    if not tree.is_file(table):
        raise InputError(f"data.csv {table}: there is no such file")
    try:
        reader = csv.reader(io.StringIO(tree.read_text(table), newline=""))
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{table} is no table: {error}") from error
    if len(rows) < 2:
        raise InputError(f"{table} has no rows, expected the columns {_FORM}")
    header = [name.strip().lower() for name in rows[0][1]]
    if len(header) == 1:
        raise InputError(f"{table} has one column, {header[0]!r}: separate columns by commas ({_FORM})")
    return header, rows[1:]


def _find_columns(table: Path, header: Sequence[str]) -> _Columns:
    places: Mapping[str, int] = {name: place for place, name in reversed(list(enumerate(header)))}
    box = next((names for names in (*_CORNERS, *_WITH_SIZE) if all(name in places for name in names)), None)
    path = next((name for name in _PATH if name in places), None)
    label = next((name for name in _CLASS if name in places), None)
    if path is None or box is None or label is None:
        lacking = "the path" if path is None else "the box" if box is None else "the class"
        raise InputError(f"{table} has no column for {lacking}, only {', '.join(header)}: expected {_FORM}")
    has_size = "width" in places and "height" in places and "width" not in box
    size = (places["height"], places["width"]) if has_size else None
    own = tuple(places[name] for name in box)
    return _Columns(places[path], places[label], own, box in _WITH_SIZE, size, places.get("split"), places.get("group"))


def _size(columns: _Columns, row: Sequence[str]) -> tuple[int, int]:
    """The declared height and width of an image, 0 if the row does not say."""
    if columns.size is None or len(row) <= max(columns.size):
        return 0, 0
    return declared_size(*(row[column] for column in columns.size))
