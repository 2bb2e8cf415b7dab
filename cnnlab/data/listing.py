"""The index of the images, from folders or from a table."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageError, list_images

SPLITS = ("train", "val", "test")
_SPLIT_LIKE_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Sample:
    """An image file and its targets, split and group."""

    path: str
    labels: tuple[str, ...] = ()
    """The names of its classes: one, or any number with multi-label data."""
    split: str = ""
    """train, val or test; "" if it has not been decided."""
    group: str = ""
    """Samples of a group (a patient, a scene) stay in one split."""
    mask: str = ""
    """The file of its mask, if it has one."""
    values: tuple[float, ...] = ()
    """Its values, if it has any."""
    stratum: str = ""
    """Samples of a stratum, or with the same labels, are spread evenly over the folds."""
    name: str = ""
    """Its path below the root, with "/": a run knows it by this name, wherever the root lies."""


@dataclass
class SampleIndex:
    """Samples, and the names of the classes in order."""

    samples: list[Sample]
    class_names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files were left out because they are not images, by file extension."""
    of: dict[str, list[Sample]] = field(init=False)
    """The samples by split."""

    def __post_init__(self) -> None:
        self.of = {split: [sample for sample in self.samples if sample.split == split] for split in SPLITS}


def list_folder(root: Path, class_names: Sequence[str] | None = None) -> SampleIndex:
    """List ROOT/SPLIT/CLASS/**/image, or ROOT/CLASS/**/image with no split decided.

    Args:
        root: The folder. It has split folders if it holds a folder train (val may be called valid or validation).
        class_names: The classes in order; the folders' names in alphabetical order if None.

    Raises:
        InputError: If there is no such folder or no class in it, if a class is empty in training, or if training
            does not have a class of another split.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: name the one that holds your images with --data.root")
    places = split_folders(root, class_names or ()) or {"": root}
    first = next(iter(places.values()))
    present = _subfolders(first)
    names = list(class_names) if class_names is not None else present
    if class_names is None and present and all(name.lower() in _SPLIT_LIKE_NAMES for name in present):
        raise InputError(f"{first} has the folders {', '.join(present)}: call them train, val and test")
    if not present:
        loose = len(list_images(first))
        raise InputError(
            f"{first} has no folders, expected one for each class with its images inside"
            + (f" ({loose} images lie in it directly; or give a table of paths and labels: data.csv)" if loose else "")
        )
    samples: list[Sample] = []
    left_out: Counter[str] = Counter()
    for split, place in places.items():
        present = _subfolders(place)
        if strange := sorted(set(present) - set(names)):
            raise InputError(
                f"{place / strange[0]}: there is no class {strange[0]!r}, {nearest(strange[0], names)} (the "
                f"classes are those of {'the checkpoint or data.class_names' if class_names is not None else first})"
            )
        for name in present:
            found = list_images(place / name, left_out)
            if not found and split in ("", "train"):
                raise InputError(f"{place / name} has no images: remove the folder, or put images into it")
            samples += [Sample(str(path), (name,), split) for path in found]
    return SampleIndex(samples, names, left_out)


def split_folders(root: Path, class_names: Sequence[str]) -> dict[str, Path]:
    """The folders of the splits, training first; empty if the folders are classes."""
    found: dict[str, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        there = [root / name for name in names if (root / name).is_dir() and name not in class_names]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1]} both are for {split}: put their images into one")
        if there:
            found[split] = there[0]
    # Without a folder train, a folder called test may be a class, unless the classes are known.
    return found if "train" in found or class_names else {}


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_table(
    table: Path, root: Path, class_names: Sequence[str] | None = None, multi_label: bool = False
) -> SampleIndex:
    """List the images of a CSV file with the columns path (relative to root) and label, and optionally split and group.

    The classes are the labels in alphabetical order, unless they are given. With multi_label, an image has any number
    of labels, separated by ";".

    Raises:
        InputError: If the file or a column is missing, or if a row has no label, an unknown label or split.
    """
    samples = []
    for place, row, sample in read_samples(table, root, ("path", "label")):
        text = (row["label"] or "").strip()
        labels = tuple(part.strip() for part in text.split(";") if part.strip()) if multi_label else (text,)
        if not multi_label and not text:
            raise InputError(f"{place}: {row['path']} has no label")
        samples.append(replace(sample, labels=labels))
    present = sorted({label for sample in samples for label in sample.labels})
    names = list(class_names) if class_names is not None else present
    if strange := sorted(set(present) - set(names)):
        raise InputError(f"{table}: there is no class {strange[0]!r}: {nearest(strange[0], names)}")
    return SampleIndex(samples, names)


def read_table(table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, with paths in their shortest form; no path may be in two of them.

    Raises:
        InputError: If the file or a required column is missing, if it has no rows, or if a path is in two of them.
    """
    if not table.is_file():
        raise InputError(f"data.csv {table}: there is no such file")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    for name in needed:
        if name not in columns:
            raise InputError(f"{table} has no column {name!r}, only {', '.join(map(repr, columns))}")
    if not rows:
        raise InputError(f"{table} has no rows")
    lines: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        if not (row["path"] or "").strip():
            raise InputError(f"{table}, line {line}: the path is empty")
        row["path"] = os.path.normpath(row["path"])
        first = lines.setdefault(row["path"], line)
        if first != line:
            raise InputError(f"{table}, lines {first} and {line}: both are of {row['path']}; keep one")
    return rows


def read_samples(table: Path, root: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str], Sample]]:
    """For each row of a CSV file: file and line for errors, the row, and a sample of its path, split and group.

    Relative paths start from ``root``; the columns split and group are optional.

    Raises:
        InputError: See read_table; or if a split is none of train, val and test.
    """
    for line, row in enumerate(read_table(table, needed), start=2):
        place = f"{table}, line {line}"
        split = (row.get("split") or "").strip()
        if split not in ("", *SPLITS):
            raise InputError(f"{place}: split is {split!r}, expected train, val, test or nothing")
        group = (row.get("group") or "").strip()
        yield place, row, Sample(str(root / row["path"]), split=split, group=group)


def find_broken(samples: Sequence[Sample], read: Callable[[Sample], None]) -> dict[str, str]:
    """Read all files, in threads, and return the message of each ImageError by the file's path."""

    def message(sample: Sample) -> tuple[str, str] | None:
        try:
            read(sample)
        except ImageError as error:
            return sample.path, str(error)
        return None

    with ThreadPoolExecutor() as pool:
        return dict(found for found in pool.map(message, samples) if found is not None)
