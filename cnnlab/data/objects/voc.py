"""Pascal VOC: an XML for each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from cnnlab.data.listing import split_folders
from cnnlab.data.objects.label_files import LabelFiles, check_labeled, describe_negatives
from cnnlab.data.objects.places import (
    Files,
    by_split,
    declared_size,
    describe_unlisted,
    find_images,
    read_all,
    read_lines,
    stem_of,
)
from cnnlab.data.objects.reading import ObjectList, Reading
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError
from cnnlab.image_files import LeftOut, listed, subfolders

_IMAGE_FOLDERS = ("jpegimages", "images", "image")
_LABEL_FOLDERS = ("annotations", "annotation", "labels", "xmls")
_FILES_AT_ONCE = 4096
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    """As in the file: the numbers of the first and the last column and row."""
    difficult: bool


def read_voc(root: Path, files: Files) -> Reading:
    """Read a set in Pascal VOC's form.

    Images are in JPEGImages (or images) and XML in Annotations, or beside each other, with or without folders of
    splits. ImageSets/Main/SPLIT.txt decides on splits, if it is there. A box from column 1 to column 1 is one pixel
    wide; if any box begins at 0, numbers count from 0. Objects marked as difficult are crowds: to be ignored.

    Args:
        root: The folder.
        files: The files there are.

    Raises:
        InputError: If there are no images, or no XML of them.
    """
    left_out = LeftOut()
    samples, missing, notes = _list_images(root, files, left_out)
    if not samples:
        raise InputError(f"{root} has no images" + (f" ({left_out})" if left_out else ""))
    labels = LabelFiles(files, ".xml", _IMAGE_FOLDERS, _LABEL_FOLDERS)
    paths = [sample.path for sample in samples]
    found = [labels.find(path) for path in paths]
    notes += [f"{root}: {left_out}"] if left_out else []
    check_labeled([s.split for s in samples], [p is not None for p in found], labels.expected(paths[0]), notes)
    reading = Reading(
        samples,
        [],
        f"Pascal VOC, XML in {listed(labels.folders, most=3)}",
        ObjectList().pack(),
        lambda row, number: f"{found[row]}, object {number}",
        notes=notes,
        names_are_listed=False,
    )
    reading.unusable.update(missing)
    gone = (f"{paths[row]}: there is no such image" for row in missing)
    reading.findings.add("images that do not exist", "correct the list of ImageSets/Main", gone, len(missing))
    _read_annotations(reading, found)
    reading.notes += describe_unlisted(paths, files) if _split_lists(root, files) else labels.describe_others()
    return reading


def _read_annotations(reading: Reading, found: Sequence[str | None]) -> None:
    """Read the XML of all images, None for those without one, into a reading."""
    rows = [row for row, path in enumerate(found) if path is not None]
    objects, names, empty = ObjectList(), [], []
    sizes = np.zeros((len(found), 2), np.int32)
    for start in range(0, len(rows), _FILES_AT_ONCE):
        own = rows[start : start + _FILES_AT_ONCE]
        for row, content in zip(own, read_all([str(found[row]) for row in own]), strict=True):
            try:
                if isinstance(content, OSError):
                    raise ValueError(content.strerror)
                tree = parse_xml(content)
            except (ValueError, expat.ExpatError, LookupError) as error:
                reading.unusable.add(row)
                text = f"{found[row]}: cannot be read as XML ({error})"
                reading.findings.add("XML files that cannot be read", "write it anew", [text])
                continue
            sizes[row] = declared_size(tree.findtext("size/height"), tree.findtext("size/width"))
            elements = tree.findall("object")
            empty += [] if elements else [row]
            for number, element in enumerate(elements, start=1):
                try:
                    one = _read_object(element)
                except ValueError as error:
                    text = f"{found[row]}, object {number}: {error}"
                    reading.findings.add("objects without a name or a box", f"write name and {_SIDES}", [text])
                    continue
                names.append(one.name)
                objects.images.append(row)
                objects.boxes.append(one.box)
                objects.crowd.append(one.difficult)
                objects.sources.append(number)
    reading.names = sorted(set(names))
    numbers = {name: number for number, name in enumerate(reading.names)}
    objects.labels = [numbers[name] for name in names]
    reading.objects, reading.sizes = objects.pack(), sizes
    _count_from_zero(reading)
    if difficult := sum(objects.crowd):
        reading.notes.append(f"{difficult:,} objects are marked as difficult: they are ignored, in metrics too")
    paths = [sample.path for sample in reading.samples]
    absent = [paths[row] for row, path in enumerate(found) if path is None and row not in reading.unusable]
    reading.notes += describe_negatives(paths, absent, [paths[row] for row in empty])


def _count_from_zero(reading: Reading) -> None:
    """Turn the numbers of the first and the last pixel, from 1, into borders; or keep them, if they count from 0."""
    boxes = reading.objects.boxes
    from_zero = int((boxes[:, :2] == 0).any(axis=1).sum())
    if from_zero:
        reading.notes.append(
            f"{from_zero:,} of {len(boxes):,} boxes begin at 0, so coordinates do not count from 1, as Pascal VOC's "
            "do: they are used as they are"
        )
    else:
        boxes[:, :2] -= 1


def parse_xml(content: bytes) -> Element:
    """Parse XML, which may not declare entities: a few lines of them can fill the memory, or name files.

    Raises:
        ValueError: If it declares an entity.
        expat.ExpatError: If it is broken.
    """

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"it declares the entity {name!r}")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    tree: Element = builder.close()
    return tree


def _read_object(element: Element) -> _Object:
    """Read an object.

    Raises:
        ValueError: If something is missing, or no number.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no name")
    texts = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    if None in texts:
        raise ValueError(f"it has no {_SIDES[texts.index(None)]}")
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError as error:
        raise ValueError(f"its box is {texts}") from error
    return _Object(name, (x1, y1, x2, y2), (element.findtext("difficult") or "0").strip() in ("1", "true", "True"))


def _list_images(root: Path, files: Files, left_out: LeftOut) -> tuple[list[Sample], list[int], list[str]]:
    """The images with their splits, the rows of those that do not exist, and notes."""
    own = [name for name in subfolders(root) if name.lower() in _IMAGE_FOLDERS]
    top = root / own[0] if own else root
    lists = _split_lists(root, files)
    if lists:
        return _listed_images(top, lists, left_out)
    found, notes = split_folders(top)
    samples = []
    for split, folder in (found or {"": top}).items():
        inside = [folder / name for name in subfolders(folder) if name.lower() in _IMAGE_FOLDERS]
        samples += [Sample(path, split=split) for path in find_images(inside[0] if inside else folder, left_out)]
    return samples, [], notes


def _split_lists(root: Path, files: Files) -> dict[str, Path]:
    """ImageSets/Main/train.txt, val.txt, test.txt; trainval.txt if one of the first two is missing."""
    folder = root / "ImageSets" / "Main"
    names = files.names(str(folder))
    found = {split: folder / f"{split}.txt" for split in ("train", "val", "test") if f"{split}.txt" in names}
    if "trainval.txt" in names and not {"train", "val"} <= found.keys():
        return {"": folder / "trainval.txt"} | {s: path for s, path in found.items() if s == "test"}
    return found


def _listed_images(top: Path, lists: dict[str, Path], left_out: LeftOut) -> tuple[list[Sample], list[int], list[str]]:
    there = {stem_of(path): path for path in find_images(top, left_out)}
    samples: list[Sample] = []
    missing: list[int] = []
    split_of: dict[str, str] = {}
    for split in by_split(lists):
        for stem in _stems(lists[split]):
            if (other := split_of.get(stem)) is not None:
                raise InputError(f"{stem} is in {lists[other]} and in {lists[split]}: name it once, in one of them")
            split_of[stem] = split
            if stem not in there:
                missing.append(len(samples))
            samples.append(Sample(there.get(stem, os.path.join(top, f"{stem}.jpg")), split=split))  # noqa: PTH118
    return samples, missing, []


def _stems(path: Path) -> Iterator[str]:
    """The names in a list; a second column says whether a class is there, and is not used."""
    for line in read_lines(path):
        yield line.split()[0]
