"""YOLO: a label file for each image, with or without a data.yaml."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cnnlab import tree
from cnnlab.data.listing import split_folders
from cnnlab.data.objects.label_files import LabelFiles, check_labeled, describe_negatives
from cnnlab.data.objects.places import Files, by_split, find_images, read_all, read_lines
from cnnlab.data.objects.reading import ObjectList, RawObjects, Reading
from cnnlab.data.objects.yolo_config import Config, Resolver, find_config
from cnnlab.data.objects.yolo_text import LabelText
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError
from cnnlab.image_files import LeftOut, listed, subfolders

_IMAGE_FOLDERS = ("images", "image")
_LABEL_FOLDERS = ("labels", "label")
_NAMES_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "predefined_classes.txt")
_FILES_AT_ONCE = 4096


class _Images(NamedTuple):
    samples: list[Sample]
    missing: list[int]
    """The rows of files that do not exist."""
    layout: str
    notes: list[str]


def read_yolo(root: Path, class_names: Sequence[str] | None, files: Files) -> Reading:
    """Read a set in YOLO's form.

    With a data.yaml in the folder: its splits, each a folder, a list of folders, or a .txt of paths. Without one:
    images/SPLIT, SPLIT/images, or the images themselves, with or without splits. Labels are in the parallel folder
    labels, or beside their images.

    Args:
        root: The folder.
        class_names: The classes in order, where the data name none.
        files: The files there are.

    Raises:
        InputError: If a folder or names are missing, or if no image has labels.
    """
    config = find_config(root)
    left_out = LeftOut()
    with_splits = config if config is not None and config.splits else None
    images = _list_config(with_splits, files, left_out) if with_splits else _list_folders(root, left_out)
    if not images.samples:
        raise InputError(f"{root} has no images" + (f" ({left_out})" if left_out else ""))
    labels = LabelFiles(files, ".txt", _IMAGE_FOLDERS, _LABEL_FOLDERS)
    paths = [sample.path for sample in images.samples]
    found = [labels.find(path) for path in paths]
    notes = images.notes + ([f"{root}: {left_out}"] if left_out else [])
    check_labeled([s.split for s in images.samples], [p is not None for p in found], labels.expected(paths[0]), notes)
    names = (config.names if config else None) or _read_names(root, labels) or list(class_names or ())
    layout = images.layout or f"labels {_where(labels, paths)}"
    reading = Reading(
        images.samples,
        names,
        f"YOLO, {layout}",
        ObjectList().pack(),
        lambda row, line: f"{found[row]}, line {line}",
        relative=True,
        notes=notes,
    )
    reading.unusable.update(images.missing)
    missing = (f"{paths[row]}: there is no such file" for row in images.missing)
    reading.findings.add("images that do not exist", "correct the list of paths", missing, len(images.missing))
    _read_labels(reading, found, config is not None and config.has_keypoints)
    if not names:
        most = int(reading.objects.labels.max(initial=0))
        raise InputError(
            f"{root}: nothing names the classes 0 to {most}: write a data.yaml with names, a classes.txt, or say "
            "--data.class_names '[...]'"
        )
    reading.notes += labels.describe_others()
    return reading


def _read_labels(reading: Reading, found: Sequence[str | None], has_keypoints: bool) -> None:
    """Read the label files of all images, None for those without one, into a reading."""
    text = LabelText(reading.findings, lambda row, line: f"{found[row]}, line {line}", has_keypoints)
    rows = [row for row, path in enumerate(found) if path is not None]
    parts, empty = [], []
    for start in range(0, len(rows), _FILES_AT_ONCE):
        own = rows[start : start + _FILES_AT_ONCE]
        contents = []
        for row, content in zip(own, read_all([str(found[row]) for row in own]), strict=True):
            if isinstance(content, OSError):
                reading.unusable.add(row)
                why = f"{found[row]}: {content.strerror}"
                reading.findings.add("label files that cannot be read", "change its permissions", [why])
            elif not content.strip():
                empty.append(row)
            contents.append(b"" if isinstance(content, OSError) else content)
        parts.append(text.parse(contents, own))
    if parts:
        reading.objects = RawObjects.join(parts)
    paths = [sample.path for sample in reading.samples]
    absent = [paths[row] for row, path in enumerate(found) if path is None and row not in reading.unusable]
    reading.notes += describe_negatives(paths, absent, [paths[row] for row in empty])
    if text.scored:
        reading.notes.append(f"{text.scored:,} lines have a sixth number, a score, which is not used")
    if has_keypoints:
        reading.notes.append("data.yaml has kpt_shape: only the boxes are used, not the keypoints")


def _list_config(config: Config, files: Files, left_out: LeftOut) -> _Images:
    resolver = Resolver(config, files)
    samples: list[Sample] = []
    missing: list[int] = []
    again: list[str] = []
    of: dict[str, str] = {}
    for split in by_split(config.splits):
        for entry in config.splits[split]:
            place = resolver.find(entry)
            if place is None and split == "test":
                resolver.notes.append(f"{config.path}: there is no {entry}, so there is no test split")
                continue
            if place is None:
                raise InputError(f"{config.path}: {split} is {entry}, and there is no such folder or list: correct it")
            paths = find_images(place, left_out) if tree.is_dir(place) else resolver.read_list(place)
            for path in paths:
                if (other := of.get(path, split)) != split:
                    raise InputError(
                        f"{path} is in {other} and in {split} of {config.path}: give each its own, or leave {split} out"
                    )
                if path in of:
                    again.append(path)
                    continue
                of[path] = split
                if not tree.is_dir(place) and not files.has(path):
                    missing.append(len(samples))
                samples.append(Sample(path, split=split))
    if again:
        resolver.notes.append(f"{len(again):,} images are listed twice, and used once: {listed(again, most=3)}")
    return _Images(samples, missing, f"{config.path.name} in {config.path.parent}", resolver.notes)


def _list_folders(root: Path, left_out: LeftOut) -> _Images:
    """Images without a data.yaml."""
    own = [name for name in subfolders(root) if name.lower() in _IMAGE_FOLDERS]
    top = root / own[0] if own else root
    found, notes = split_folders(top)
    samples = []
    for split, folder in (found or {"": top}).items():
        inside = [folder / name for name in subfolders(folder) if name.lower() in _IMAGE_FOLDERS]
        samples += [Sample(path, split=split) for path in find_images(inside[0] if inside else folder, left_out)]
    return _Images(samples, [], "", notes)


def _read_names(root: Path, labels: LabelFiles) -> list[str]:
    """The names in classes.txt or the like, one a line."""
    places = [root / name for name in _NAMES_FILES]
    places += [Path(folder) / "classes.txt" for folder in labels.folders]
    for path in places:
        if tree.is_file(path):
            return read_lines(path)
    return []


def _where(labels: LabelFiles, paths: Sequence[str]) -> str:
    folders = labels.folders
    beside = os.path.dirname(paths[0]) in folders  # noqa: PTH120
    return f"{'beside their images ' if beside else ''}in {listed(folders, most=3)}"
