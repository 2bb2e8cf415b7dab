"""Objects in the files of other tools: YOLO's labels and COCO's results, from a table of predictions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnlab import rle
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage
from cnnlab.outputs.base import Output
from cnnlab.outputs.boxes import Boxes
from cnnlab.writing import write_atomically

FORMATS = ("csv", "yolo", "coco")


def check_format(name: str, output: Output) -> None:
    """Check that answers can be written in a format.

    Raises:
        InputError: If there is no such format, or if the answers are no objects.
    """
    if name not in FORMATS:
        raise InputError(f"format is {name!r}, expected one of {', '.join(FORMATS)}")
    if name != "csv" and not isinstance(output, Boxes):
        raise InputError(f"format {name} is for objects, and these answers are {output.kind}: leave it out")


def write_objects(
    format: str,
    table: Path,
    output: Output,
    paths: Sequence[str],
    image_ids: Mapping[str, int | str] | None = None,
) -> Path | None:
    """Write the objects of predictions.csv in another format, beside it.

    yolo: labels/NAME.txt for each image, also one without objects: the number of the class and the box, or the outline
    of the mask, in shares of width and height; only the objects whose score reaches the threshold of their class. The
    names of the classes are in labels/classes.txt.

    coco: predictions.json, COCO's results: image_id, category_id, bbox, score, and segmentation, if there are masks.

    Args:
        format: csv, yolo or coco.
        table: The table.
        output: The kind of the answers.
        paths: All images, in the table's order.
        image_ids: COCO's ids of images by their paths; an image's index in the table if it has none.

    Returns:
        The folder or the file; None for csv.

    Raises:
        InputError: If two images would have the same file.
    """
    if format == "csv" or not isinstance(output, Boxes):
        return None
    return _write_yolo(table, output, paths) if format == "yolo" else _write_coco(table, output, image_ids or {})


def _write_yolo(table: Path, output: Boxes, paths: Sequence[str]) -> Path:
    folder = table.parent / "labels"
    common = Path(os.path.commonpath([Path(path).absolute().parent for path in paths])) if paths else Path()
    of: dict[Path, str] = {}
    for path in paths:
        file = folder / Path(path).absolute().relative_to(common).with_suffix(".txt")
        if of.setdefault(file, path) != path:
            raise InputError(f"{path} and {of[file]} would both have the file {file}: give them other names")
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in output.names).encode())
    rows_of = _by_image(table)
    for file, path in of.items():
        size = LazyImage(path).size
        lines = [_yolo_line(row, size) for row in rows_of.get(path, ()) if row["certain"] == "1"]
        write_atomically(file, "".join(f"{line}\n" for line in lines if line).encode())
    return folder


def _yolo_line(row: Mapping[str, str], size: tuple[int, int]) -> str:
    height, width = size
    if "mask" in row:
        ring = rle.outline(rle.crop_of(rle.from_text(row["mask"].encode(), size))) / [width, height]
        numbers = ring.ravel().tolist()
        if not numbers:
            return ""
    else:
        left, top, right, bottom = (float(row[side]) for side in ("x1", "y1", "x2", "y2"))
        numbers = [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
    return " ".join([row["label"], *(f"{number:.7g}" for number in numbers)])


def _write_coco(table: Path, output: Boxes, image_ids: Mapping[str, int | str]) -> Path:
    ids = output.category_ids or list(range(len(output.names)))
    results: list[dict[str, Any]] = []
    for path, rows in _by_image(table).items():
        size = LazyImage(path).size if "mask" in rows[0] else (0, 0)
        for row in rows:
            left, top, right, bottom = (float(row[side]) for side in ("x1", "y1", "x2", "y2"))
            result: dict[str, Any] = {
                "image_id": image_ids.get(path, int(row["index"])),
                "category_id": ids[int(row["label"])],
                "bbox": [left, top, right - left, bottom - top],
                "score": float(row["score"]),
            }
            if "mask" in row:
                result["segmentation"] = {"size": list(size), "counts": row["mask"]}
            results.append(result)
    file = table.with_name("predictions.json")
    lines = ",\n".join(json.dumps(result, allow_nan=False) for result in results)
    write_atomically(file, f"[\n{lines}\n]\n".encode())
    return file


def _by_image(table: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each image that has any, in the table's order."""
    found: dict[str, list[dict[str, str]]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["path"], []).append(row)
    return found
