"""COCO: all objects of a split in one JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnlab import rle
from cnnlab.data.objects.coco_files import ImageFinder, find_jsons, read_json
from cnnlab.data.objects.findings import Findings
from cnnlab.data.objects.places import Files, declared_size, describe_unlisted
from cnnlab.data.objects.reading import ObjectList, Reading
from cnnlab.data.objects.shapes import Shape, as_ring
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError, nearest
from cnnlab.image_files import check_name, listed

_BACKGROUND = ("background", "__background__")


class _BadError(ValueError):
    """An annotation is wrong: kind, what, remedy."""


class _Classes(NamedTuple):
    names: list[str]
    ids: tuple[int, ...]
    """Of the first file."""
    of: dict[str, dict[int, int]]
    """For each split, the class of each id."""
    notes: list[str]


def read_coco(root: Path, files: Files) -> Reading:
    """Read a set in COCO's form: see coco_files.find_jsons.

    The classes are the categories in the order of the first file's list; those of other files are matched by name.

    Args:
        root: The folder.
        files: The files there are.

    Raises:
        InputError: If a file is broken, if files have other categories, or if there are no images.
    """
    jsons = find_jsons(root, files)
    if not jsons:
        raise InputError(f"{root} has no COCO file: expected train.json, or annotations/instances_train.json")
    contents = {split: read_json(path) for split, path in jsons.items()}
    classes = _match_classes(jsons, contents)
    reader = _Reader(root, files, classes)
    for split, path in jsons.items():
        reader.read(split, path, contents.pop(split))
    return reader.reading(f"COCO, {listed(jsons.values(), most=3)}")


class _Reader:
    """Takes in one file after the other."""

    def __init__(self, root: Path, files: Files, classes: _Classes) -> None:
        self._root = root
        self._files = files
        self._classes = classes
        self._samples: list[Sample] = []
        self._sizes: list[tuple[int, int]] = []
        self._ids: list[int | str] = []
        self._row_of: dict[str, int] = {}
        self._objects = ObjectList()
        self._own_ids: list[object] = []
        self._paths: list[Path] = []
        self._from: list[int] = []
        self._findings = Findings()
        self._unusable: set[int] = set()
        self._notes = list(classes.notes)
        self._without_area = 0

    def reading(self, layout: str) -> Reading:
        if not self._samples:
            raise InputError(f"{self._paths[0]} lists no images")
        found, place, ids = self._from, self._paths, self._own_ids
        if self._without_area == len(self._objects.areas):
            self._objects.areas = []
        elif self._without_area:
            self._notes.append(f"{self._without_area:,} annotations have no area: that of the box is used")
        return Reading(
            self._samples,
            self._classes.names,
            layout,
            self._objects.pack(),
            lambda row, own: f"{place[found[row]]}, annotation {ids[own]}",
            as_sizes=True,
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            image_ids=tuple(self._ids),
            category_ids=self._classes.ids,
            notes=self._notes + describe_unlisted([sample.path for sample in self._samples], self._files),
            findings=self._findings,
            unusable=self._unusable,
        )

    def read(self, split: str, path: Path, content: dict[str, Any]) -> None:
        self._paths.append(path)
        rows = self._read_images(split, path, content["images"])
        ids = self._classes.of[split]
        known, unknown_class = "annotations of an image that is not listed", "annotations of an unknown category"
        with_objects = set()
        for number, entry in enumerate(content["annotations"]):
            own = entry.get("id", number)
            where = f"{path}, annotation {own}"
            image, category = (_plain(entry.get(key, "missing")) for key in ("image_id", "category_id"))
            if image not in rows:
                self._findings.add(known, "add the image", [f"{where}: its image_id is {image}, and not in images"])
            elif category not in ids:
                remedy = f"the ids are {listed(ids, most=10)}"
                self._findings.add(
                    unknown_class, remedy, [f"{where}: its category_id is {category}, not in categories"]
                )
            elif rows[image] >= 0:
                with_objects.add(image)
                self._read_annotation(entry, rows[image], ids[category], own, where)
        empty = [entry["file_name"] for entry in content["images"] if entry["id"] not in with_objects]
        if empty and len(empty) == len(rows) and split in ("", "train"):
            raise InputError(f"{path} has no annotations of its {len(rows):,} images: give those of training")

    def _read_images(self, split: str, path: Path, entries: list[dict[str, Any]]) -> dict[Any, int]:
        """The row of each image by its id; -1 if it is left out."""
        finder = ImageFinder(self._root, split, path, self._files)
        paths = finder.find([str(entry["file_name"]) for entry in entries])
        rows: dict[Any, int] = {}
        for entry, image in zip(entries, paths, strict=True):
            check_name(image)
            first = self._row_of.setdefault(image, len(self._samples))
            if first < len(self._samples):
                other = self._samples[first].split
                where = f"in {other} and in {split}" if other != split else "twice"
                text = f"{path}: {entry['file_name']} is {where}"
                self._findings.add("images that are listed twice", "list each once, in one split", [text])
                rows[entry["id"]] = -1
                continue
            rows[entry["id"]] = first
            if not self._files.has(image):
                tried = f" (looked for in {listed(finder.folders, most=3)})"
                self._findings.add(
                    "images that do not exist", "correct file_name", [f"{path}: there is no {image}{tried}"]
                )
                self._unusable.add(first)
            self._samples.append(Sample(image, split=split))
            self._from.append(len(self._paths) - 1)
            self._ids.append(entry["id"])
            self._sizes.append(declared_size(entry.get("height"), entry.get("width")))
        return rows

    def _read_annotation(self, entry: dict[str, Any], row: int, label: int, own: object, where: str) -> None:
        try:
            shape, box = _read_shape(entry.get("segmentation"), self._sizes[row])
            box = _read_box(entry["bbox"]) if entry.get("bbox") else box
            if box is None:
                raise _BadError("annotations without a box", "it has neither bbox nor segmentation", "add its bbox")
        except _BadError as error:
            kind, what, remedy = error.args
            self._findings.add(kind, remedy, [f"{where}: {what}"])
            return
        area = entry.get("area")
        if not isinstance(area, (int, float)) or not 0 < area < 1e15:
            area = (box[2] - box[0]) * (box[3] - box[1])
            self._without_area += 1
        objects = self._objects
        objects.images.append(row)
        objects.labels.append(label)
        objects.boxes.append(box)
        objects.crowd.append(str(entry.get("iscrowd", 0)) in ("1", "True"))
        objects.areas.append(float(area))
        objects.shapes.append(shape)
        objects.sources.append(len(self._own_ids))
        self._own_ids.append(own)


def _plain(value: Any) -> Any:
    """A number or a text; whatever else an id may be as text, which is no id."""
    return value if isinstance(value, (int, float, str)) else f"{value}"[:40]


def _read_box(value: Any) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, value)
    except (TypeError, ValueError, OverflowError) as error:
        what = f"its bbox is {str(value)[:60]}"
        raise _BadError("annotations with a broken bbox", what, "write x, y, width, height") from error
    return x, y, x + width, y + height


def _read_shape(value: Any, size: tuple[int, int]) -> tuple[Shape, tuple[float, float, float, float] | None]:
    """The shape in a segmentation, and the box around it; None if there is none.

    Args:
        value: Polygons, or a run-length mask, compressed or plain.
        size: The declared height and width of the image, 0 if it declares none.
    """
    if not value:
        return None, None
    if isinstance(value, dict):
        return _read_runs(value, size)
    try:
        rings = [np.array(ring, np.float64) for ring in value]
    except (TypeError, ValueError, OverflowError) as error:
        raise _BadError("annotations with broken polygons", "its polygon has no numbers", "write x and y") from error
    if odd := [ring for ring in rings if ring.ndim != 1 or ring.size % 2]:
        what = f"its polygon has {odd[0].size} coordinates"
        raise _BadError("polygons with an odd count of coordinates", what, "write x and y of each point in one list")
    points = np.concatenate(rings).reshape(-1, 2)
    if not len(points):
        return None, None
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    return [as_ring(ring) for ring in rings], (float(x1), float(y1), float(x2), float(y2))


def _read_runs(value: dict[str, Any], size: tuple[int, int]) -> tuple[Shape, tuple[float, float, float, float]]:
    kind, remedy = "annotations with a broken mask", "write the size of the image, and counts that fill it"
    try:
        height, width = map(int, value["size"])
        counts = value["counts"]
        own = (height, width)
        mask = rle.from_text(counts, own) if isinstance(counts, str) else rle.from_counts(counts, own)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _BadError(kind, f"its mask cannot be read ({error})", remedy) from error
    if size[0] and size != own:
        what = f"its mask has the size {[height, width]}, its image {list(size)} (height, width)"
        raise _BadError(kind, what, remedy)
    left, top, across, down = rle.bounding_boxes([mask])[0].tolist()
    return rle.to_text(mask), (left, top, left + across, top + down)


def _match_classes(jsons: dict[str, Path], contents: dict[str, dict[str, Any]]) -> _Classes:
    """The classes of all files, by name.

    Raises:
        InputError: If a file has none, one twice, or one that the first file does not have.
    """
    tables: dict[str, dict[int, str]] = {}
    for split, content in contents.items():
        tables[split] = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        names = list(tables[split].values())
        if not names:
            raise InputError(f"{jsons[split]} has no categories: add those of its annotations")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{jsons[split]} has two categories called {twice[0]!r}: give each its own name")
    unused, notes = _unused(contents)
    first = next(iter(jsons))
    by_name = {name: own for own, name in tables[first].items() if name not in unused}
    names = list(by_name)
    of: dict[str, dict[int, int]] = {}
    for split, table in tables.items():
        own = {number: name for number, name in table.items() if name not in unused}
        if strange := [name for name in own.values() if name not in by_name]:
            raise InputError(
                f"{jsons[split]} has the category {strange[0]!r}, and {jsons[first]} has not: "
                f"{nearest(strange[0], names)}"
            )
        if any(by_name[name] != number for number, name in own.items()):
            notes.append(f"{jsons[split]} numbers its categories otherwise than {jsons[first]}: matched by name")
        of[split] = {number: names.index(name) for number, name in own.items()}
    return _Classes(names, tuple(by_name.values()), of, notes)


def _unused(contents: dict[str, dict[str, Any]]) -> tuple[set[str], list[str]]:
    """Categories that are no classes: the background, and one above the others, if no annotation is of them."""
    entries = [entry for content in contents.values() for entry in content["categories"]]
    above = {entry.get("supercategory") for entry in entries}

    def is_above(entry: dict[str, Any]) -> bool:
        return entry["name"] in above and entry.get("supercategory") in (None, "", "none")

    used = {
        name
        for content in contents.values()
        for ids in [{_plain(annotation.get("category_id")) for annotation in content["annotations"]}]
        for name in [entry["name"] for entry in content["categories"] if entry["id"] in ids]
    }
    found = {
        str(entry["name"])
        for entry in entries
        if entry["name"] not in used and (str(entry["name"]).lower() in _BACKGROUND or is_above(entry))
    }
    notes = [f"the category {name!r} is no class of objects, and left out" for name in sorted(found)]
    return (found, notes) if len(found) < len({entry["name"] for entry in entries}) else (set(), [])
