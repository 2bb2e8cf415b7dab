"""The index of the images, from folders or from a table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from cnnlab import tree
from cnnlab.data.packed import Codes
from cnnlab.data.samples import SPLITS, Paths, Sample, SampleIndex, SampleTable, code_of
from cnnlab.errors import InputError, nearest
from cnnlab.image_files import (
    ImageError,
    LeftOut,
    check_name,
    image_paths,
    is_image,
    list_images,
    listed,
    local_copy,
    loose_images,
    subfolders,
)
from cnnlab.yaml_text import dump_yaml

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names of the splits' folders, in lower case."""


def list_folder(root: Path, class_names: Sequence[str] | None = None) -> SampleIndex:
    """List ROOT/SPLIT/CLASS/**/image, or ROOT/CLASS/**/image with no split decided.

    Args:
        root: The folder. It has split folders if it holds a folder train: see split_folders.
        class_names: The classes in order; the folders' names in alphabetical order if None.

    Raises:
        InputError: If there is no such folder or no class in it, if a class is empty in training, if training
            does not have a class of another split, or if it is not clear whether a folder is a split or a class.
    """
    if not tree.is_dir(root):
        raise InputError(f"there is no folder {root}: name the one that holds your images with --data.root")
    found, notes = split_folders(root, class_names or (), nested=True)
    places = found or {"": root}
    first = next(iter(places.values()))
    if found and "train" not in found and class_names is None:
        raise InputError(f"{root} has no folder train, only {', '.join(path.name for path in found.values())}: add it")
    names = list(class_names) if class_names is not None else subfolders(first)
    if not subfolders(first):
        loose = len(list_images(first))
        raise InputError(
            f"{first} has no folders, expected one for each class with its images inside"
            + (f" ({loose} images lie in it directly; or give a table of paths and labels: data.csv)" if loose else "")
        )
    folders: list[tuple[str, str, Path]] = []
    for split, place in places.items():
        tree.check_one_reading(place)
        present = subfolders(place)
        if strange := sorted(set(present) - set(names)):
            raise InputError(
                f"{place / strange[0]}: there is no class {strange[0]!r}, {nearest(strange[0], names)} (the "
                f"classes are those of {'the checkpoint or data.class_names' if class_names is not None else first})"
            )
        folders += [(split, name, place / name) for name in present]
        if loose_ones := loose_images(place):
            named = listed(map(_name, loose_ones))
            notes.append(f"{len(loose_ones)} images in {place} are in no class's folder, and left out: {named}")
    table, left_out = _list_classes(root, folders)
    notes += [f"{root}: {left_out}"] if left_out else []
    return SampleIndex(table, names, notes)


def _list_classes(root: Path, folders: Sequence[tuple[str, str, Path]]) -> tuple[SampleTable, LeftOut]:
    """The images of folders, each with its split and class; folders are listed in threads, since disks may be far away.

    Raises:
        InputError: If a folder for training has no images.
    """

    def list_one(folder: tuple[str, str, Path]) -> tuple[list[str], LeftOut]:
        others = LeftOut()
        return image_paths(folder[2], others), others

    files, counts, left_out = [], [], LeftOut()
    with ThreadPoolExecutor() as pool:
        for (split, _, place), (paths, others) in zip(folders, pool.map(list_one, folders), strict=True):
            left_out.include(others)
            if not paths and split in ("", "train"):
                said = f" ({left_out})" if left_out else ""
                raise InputError(f"{place} has no images: remove the folder, or put images into it{said}")
            files.append(Paths.of(str(root), paths))
            counts.append(len(paths))
    numbers = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    splits = np.array([code_of(split) for split, _, _ in folders], np.uint8)[numbers]
    return SampleTable(Paths.joined(files), splits, Codes([(name,) for _, name, _ in folders], numbers)), left_out


def split_folders(
    root: Path, class_names: Sequence[str] = (), nested: bool = False
) -> tuple[dict[str, Path], list[str]]:
    """Find the folders of the splits, in upper or lower case: train, val (valid, validation), test.

    Args:
        root: The folder that they are in.
        class_names: Names that are no splits.
        nested: Whether a split has folders of classes.

    Returns:
        The folders, training first, none if there are no splits; and a note if there are other folders beside them.

    Raises:
        InputError: If two folders are for one split, or if a folder may be a split as well as a class.
    """
    present = [name for name in subfolders(root) if name not in class_names]
    found: dict[str, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        there = [root / name for name in present if name.lower() in names]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1]} both are for {split}: put their images into one")
        if there:
            found[split] = there[0]
    others = [name for name in subfolders(root) if root / name not in found.values()]
    loose = loose_images(root) if found else []
    if not found or not (others or loose):
        return found, []
    if others and ("train" not in found or (nested and not subfolders(found["train"]))):
        unclear = next(iter(found.values()))
        every = dump_yaml(sorted([*others, unclear.name]), one_line=True).replace("'", '"')
        remedy = f"say --data.class_names '{every}'" if nested else "rename it"
        raise InputError(
            f"{unclear} stands beside the folders {listed(others)}: if it is a split, move them into "
            f"{root / 'train'}; if it is none, {remedy}"
        )
    known = ", ".join(path.name for path in found.values())
    images = f"{len(loose)} images ({listed(map(_name, loose))})" if loose else ""
    beside = ", ".join(filter(None, (listed(others), images)))
    return found, [f"{root} has the splits {known}; what is beside them is left out: {beside}"]


def _name(path: Path) -> str:
    return path.name


def unmatched(samples: Sequence[Sample]) -> tuple[list[str], LeftOut, list[Path]]:
    """Compare samples of a table with the folders that their files are in.

    Returns:
        The files that do not exist, masks too; those that are no images; and the images in those folders that belong to
        no sample.
    """
    named: dict[Path, set[str]] = {}
    for sample in samples:
        for path in filter(None, (sample.path, sample.mask)):
            named.setdefault(Path(path).parent, set()).add(Path(path).name)
    missing: list[str] = []
    strange = LeftOut()
    others: list[Path] = []
    for folder, names in named.items():
        there = {path.name: path for path in loose_images(folder)} if tree.is_dir(folder) else {}
        for file in (folder / name for name in sorted(names - there.keys())):
            if not tree.exists(local_copy(file)):
                missing.append(str(file))
            elif not is_image(str(local_copy(file))):
                strange.add(file)
        others += [path for name, path in there.items() if name not in names]
    return missing, strange, others


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


def read_table(table: Path, needed: Sequence[str], root: Path = Path()) -> list[dict[str, str]]:
    """The rows of a CSV file, with paths in their shortest form; no path may be in two of them.

    Args:
        table: The file.
        needed: The columns that it must have.
        root: The folder that relative paths start from.

    Raises:
        InputError: If the file or a required column is missing, if it has no rows, or if a path is in two of them.
    """
    if not tree.is_file(table):
        raise InputError(f"data.csv {table}: there is no such file")
    try:
        reader = csv.DictReader(io.StringIO(tree.read_text(table), newline=""))
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
        row["path"] = os.path.normpath(Path(row["path"]).expanduser())
        first = lines.setdefault(os.path.normpath(root.absolute() / row["path"]), line)
        if first != line:
            raise InputError(f"{table}, lines {first} and {line}: both are of {row['path']}; keep one")
    return rows


def read_samples(table: Path, root: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str], Sample]]:
    """For each row of a CSV file: file and line for errors, the row, and a sample of its path, split and group.

    Relative paths start from ``root``; the columns split and group are optional.

    Raises:
        InputError: See read_table; or if a split is none of train, val and test.
    """
    for line, row in enumerate(read_table(table, needed, root), start=2):
        place = f"{table}, line {line}"
        split = (row.get("split") or "").strip()
        if split not in ("", *SPLITS):
            raise InputError(f"{place}: split is {split!r}, expected train, val, test or nothing")
        group = (row.get("group") or "").strip()
        check_name(row["path"])
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
