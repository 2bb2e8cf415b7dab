"""The index of images with objects, whatever the format of their annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cnnlab import tree
from cnnlab.data.objects.checks import build_table
from cnnlab.data.objects.coco import read_coco
from cnnlab.data.objects.coco_files import find_jsons
from cnnlab.data.objects.csv_table import read_csv
from cnnlab.data.objects.findings import Findings
from cnnlab.data.objects.places import Files, read_sizes, split_of
from cnnlab.data.objects.reading import Reading
from cnnlab.data.objects.table import ObjectTable
from cnnlab.data.objects.voc import read_voc
from cnnlab.data.objects.yolo import read_yolo
from cnnlab.data.objects.yolo_config import find_config
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError, nearest
from cnnlab.image_files import check_name, listed, subfolders

Format = Literal["auto", "yolo", "coco", "voc", "csv"]
FORMATS = ("auto", "yolo", "coco", "voc", "csv")


@dataclass
class ObjectListing:
    """Images with objects."""

    samples: list[Sample]
    """Each with the row of its objects, and the rarest of its classes as its stratum."""
    class_names: list[str]
    """(K,) in order."""
    table: ObjectTable
    notes: list[str]
    """What the user should know, such as what was left out."""
    layout: str
    """The format, and how the files lie."""
    image_ids: dict[str, int | str] | None = None
    """COCO's number of each image, by its path; None for other formats."""
    category_ids: list[int] | None = None
    """COCO's number of each class; None for other formats."""


def list_objects(
    root: Path,
    csv: Path | None = None,
    format: Format = "auto",
    class_names: Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> ObjectListing:
    """List images and their objects.

    Args:
        root: The folder; paths in a table start from it.
        csv: A table with a row for each object: see csv_table.read_csv.
        format: yolo, coco, voc or csv: see their readers; auto finds it from what lies there.
        class_names: The classes in order, by the data's names; all of them, in the data's order, if None. If the data
            name none (YOLO), these are the names.
        on_error: What to do with objects that are wrong, and with images that are missing: raise, or skip. With skip,
            they are left out, and the notes count them.

    Returns:
        The listing. Boxes of zero size and exact repetitions are always left out, with a note.

    Raises:
        InputError: If the format is not clear, if files or names are missing, or if objects are wrong and on_error is
            raise.
    """
    files = Files()
    if not tree.is_dir(root):
        raise InputError(f"there is no folder {root}: name the one that holds images and annotations with --data.root")
    reading = _read(find_format(root, csv, format, files), root, csv, class_names, files)
    for name in reading.names:
        check_name(name)
    if twice := [name for name in reading.names if reading.names.count(name) > 1]:
        raise InputError(f"{root}: two classes are called {twice[0]!r}: give each its own name")
    _find_sizes(reading)
    removed = Findings()
    table = build_table(reading, removed)
    if on_error == "raise":
        reading.findings.check()
    notes = [*reading.notes, *reading.findings.notes(), *removed.notes()]
    kept = [row for row in range(len(reading.samples)) if row not in reading.unusable]
    if not kept:
        raise InputError(f"{root}: none of the {len(reading.samples):,} images can be used: {listed(notes, most=1)}")
    if len(kept) < len(reading.samples):
        table = table.subset(kept)
    names = list(class_names) if class_names is not None else reading.names
    table = _select_classes(table, reading, names, notes)
    if not len(table.labels):
        raise InputError(f"{root} has no objects in any of its {len(kept):,} images: check data.root and data.format")
    samples = _with_strata([reading.samples[row] for row in kept], table, names)
    images, categories = reading.image_ids, reading.category_ids
    return ObjectListing(
        samples,
        names,
        table,
        notes,
        reading.layout,
        None if images is None else {reading.samples[row].path: images[row] for row in kept},
        None if categories is None else [categories[reading.names.index(name)] for name in names],
    )


def _read(chosen: str, root: Path, csv: Path | None, class_names: Sequence[str] | None, files: Files) -> Reading:
    if chosen == "csv":
        if csv is None:
            raise InputError("data.format is csv, and no table is named: say --data.csv FILE")
        return read_csv(csv, root, files)
    if chosen == "yolo":
        return read_yolo(root, class_names, files)
    return read_coco(root, files) if chosen == "coco" else read_voc(root, files)


def find_format(root: Path, csv: Path | None, format: Format, files: Files) -> str:
    """The format of the annotations in a folder: yolo, coco, voc or csv.

    Args:
        root: The folder.
        csv: A table, if one is given.
        format: What the user says.
        files: The files there are.

    Raises:
        InputError: If there are several or none.
    """
    if format not in FORMATS:
        raise InputError(f"data.format is {format!r}: {nearest(format, FORMATS)}")
    if csv is not None and format not in ("auto", "csv"):
        raise InputError(f"data.csv and data.format {format} contradict each other: leave one of them out")
    if csv is not None or format != "auto":
        return "csv" if csv is not None else format
    config = find_config(root)
    places = _label_places(root)
    found: dict[str, str] = {}
    if config is not None:
        found["yolo"] = config.path.name
    elif txt := [folder for folder in places if _has_labels(folder, ".txt", files)]:
        found["yolo"] = f"label files in {txt[0]}"
    if jsons := find_jsons(root, files):
        found["coco"] = str(next(iter(jsons.values())))
    if xml := [folder for folder in places if files.with_ending(str(folder), ".xml")]:
        found["voc"] = f"XML in {xml[0]}"
    if len(found) > 1:
        shown = "; ".join(f"{name}: {what}" for name, what in found.items())
        raise InputError(f"{root} has annotations of several formats ({shown}): say --data.format {' or '.join(found)}")
    if not found:
        tables = [f"{folder / name}" for folder in (root, *places) for name in files.with_ending(str(folder), ".csv")]
        hint = f"; there is {tables[0]}: name it with --data.csv" if tables else ""
        raise InputError(
            f"{root} has no annotations that are known: expected data.yaml or labels/*.txt (YOLO), train.json or "
            f"annotations/*.json (COCO), Annotations/*.xml (Pascal VOC), or a table{hint}"
        )
    return next(iter(found))


def _label_places(root: Path) -> list[Path]:
    """The folders in which label files may be: the folder, and two levels below it."""
    first = [root / name for name in subfolders(root)]
    known = ("images", "image", "labels", "label", "annotations", "annotation", "xmls", "jpegimages")
    wanted = [folder for folder in first if folder.name.lower() in known or split_of(folder.name)]
    second = [folder / name for folder in wanted for name in subfolders(folder)]
    return [root, *wanted, *(folder for folder in second if folder.name.lower() in known or split_of(folder.name))]


def _has_labels(folder: Path, ending: str, files: Files) -> bool:
    """Whether a folder has label files: text with the name of an image, or in a folder of labels."""
    names = files.with_ending(str(folder), ending)
    if {folder.name.lower(), folder.parent.name.lower()} & {"labels", "label"}:
        return bool(names)
    stems = {name.rpartition(".")[0] for name in files.names(str(folder)) if not name.lower().endswith(ending)}
    return any(name.rpartition(".")[0] in stems for name in names)


def _find_sizes(reading: Reading) -> None:
    """Read the sizes of images whose boxes are in pixels, where the data do not say them."""
    if reading.relative:
        return
    if reading.sizes is None:
        reading.sizes = np.zeros((len(reading.samples), 2), np.int32)
    unknown = [row for row in np.flatnonzero((reading.sizes <= 0).any(axis=1)) if row not in reading.unusable]
    if unknown:
        reading.sizes[unknown] = read_sizes([reading.samples[row].path for row in unknown])


def _select_classes(table: ObjectTable, reading: Reading, wanted: Sequence[str], notes: list[str]) -> ObjectTable:
    """Number the classes in the wanted order, and leave out objects of other classes.

    Args:
        table: The table, with the data's own order.
        reading: What was read, with the data's names.
        wanted: Some of them, or all, in order.
        notes: Gets a line about what is left out.

    Raises:
        InputError: If a wanted name is not one of the data, or is named twice.
    """
    known = reading.names
    if list(known) == list(wanted):
        return table
    if len(set(wanted)) < len(wanted):
        raise InputError(f"data.class_names has a name twice: {', '.join(wanted)}")
    strange = [name for name in wanted if name not in known]
    others = [name for name in known if name not in wanted]
    if strange and not reading.names_are_listed and not others:
        notes.append(f"no object is of {listed(strange)}")
        known = [*known, *strange]
    elif strange:
        raise InputError(f"data.class_names: the data have no class {strange[0]!r}: {nearest(strange[0], known)}")
    number = np.full(len(known), -1, np.int32)
    number[[known.index(name) for name in wanted]] = np.arange(len(wanted))
    labels = number[table.labels]
    if others:
        count = int((labels < 0).sum())
        notes.append(f"{count:,} objects are of classes that data.class_names leaves out: {listed(others)}")
    ids = table.category_ids
    ids = None if ids is None else tuple(ids[known.index(name)] for name in wanted)
    return replace(table, labels=labels, category_ids=ids).take(np.flatnonzero(labels >= 0))


def _with_strata(samples: Sequence[Sample], table: ObjectTable, names: Sequence[str]) -> list[Sample]:
    """Give each image its row, and the class of its objects that the fewest images have as its stratum."""
    images = table.images()
    pairs = np.unique(images * len(names) + table.labels)
    owners, labels = pairs // len(names), pairs % len(names)
    spread = np.bincount(labels, minlength=len(names))
    order = np.lexsort((labels, spread[labels], owners))
    first = order[np.diff(owners[order], prepend=-1) > 0]
    strata = dict(zip(owners[first].tolist(), labels[first].tolist(), strict=True))
    return [
        replace(sample, objects=row, stratum=names[strata[row]] if row in strata else "")
        for row, sample in enumerate(samples)
    ]
