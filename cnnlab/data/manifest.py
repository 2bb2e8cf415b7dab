"""A run's memory of its images: manifest.csv, and how images are recognized by it."""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from cnnlab.data.listing import SPLITS, Sample
from cnnlab.errors import InputError
from cnnlab.image_files import listed

Row = dict[str, str]

_PROBES = 16
"""The number of files whose content is compared before the names of the others are trusted."""
_NO_TARGETS = ("path", "split", "group", "bytes", "sha256", "error", "mask")


class Content(NamedTuple):
    """What one reading of a file has found."""

    sha256: str = ""
    """In hexadecimal, "" if the file could not be read."""
    bytes: str = ""
    """How many, as text."""


class ContentHashes:
    """The content of each file of a data set, from the bytes that its readers read; reader processes share it.

    Args:
        count: The number of files.
    """

    def __init__(self, count: int) -> None:
        self.table = torch.zeros(count, _SHA256 + _COUNT + _CRC, dtype=torch.uint8)
        """(N, 44) uint8: SHA-256, number of bytes and CRC-32 of each file; all zero where one has not been read."""
        self.table.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, index: int, content: bytes) -> bool:
        """Note the content of a file that was read, and return whether it is that of the first reading."""
        quick = len(content).to_bytes(_COUNT) + zlib.crc32(content).to_bytes(_CRC)
        first = bytes(self.table[index, _SHA256:].tolist())
        if any(first):
            return first == quick
        self.table[index] = torch.frombuffer(bytearray(hashlib.sha256(content).digest() + quick), dtype=torch.uint8)
        return True

    def known(self) -> dict[int, Content]:
        """The contents of the files that have been read, by index."""
        found = {}
        for index in self.table.any(dim=1).nonzero()[:, 0].tolist():
            row = bytes(self.table[index].tolist())
            count = int.from_bytes(row[_SHA256 : _SHA256 + _COUNT])
            found[index] = Content(row[:_SHA256].hex(), str(count))
        return found


_SHA256, _COUNT, _CRC = 32, 8, 4
"""The bytes of each part of a row."""


def hash_files(paths: Sequence[str]) -> list[Content]:
    """The content of each file; empty for one that cannot be read."""

    def of(path: str) -> Content:
        try:
            with Path(path).open("rb") as file:
                return Content(hashlib.file_digest(file, "sha256").hexdigest(), str(file.tell()))
        except OSError:
            return Content()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(of, paths))


def file_size(path: str) -> str:
    """The bytes of a file as text, "" if it is missing."""
    try:
        return str(Path(path).stat().st_size)
    except OSError:
        return ""


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest.

    Raises:
        InputError: If there is no such file, or if it is not a manifest.
    """
    if not path.is_file():
        raise InputError(f"data.splits {path}: there is no such file")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.splits {path} is not a table: {error}") from error
    for line, row in enumerate(rows, start=2):
        if None in row or not row.get("path") or row.get("split") not in ("", *SPLITS):
            raise InputError(f"{path}, line {line}: expected a path and a split (train, val, test or nothing)")
    return rows


@dataclass
class Recollection:
    """What a run's manifest says of the images that are there now."""

    rows: list[Row]
    """The manifest's rows."""
    there: int
    """The number of images that are there."""
    of: dict[str, Row] = field(default_factory=dict)
    """The row of each image that was recognized, by its path now; a row is of one image at most."""
    moved: list[Sample] = field(default_factory=list)
    """Images with the content of one of the run's, under another name."""
    copies: list[Sample] = field(default_factory=list)
    """Images with the content of one of the run's that is there too."""
    changed: list[Sample] = field(default_factory=list)
    """Images under the name of one of the run's, with other content."""

    @property
    def is_of_the_run(self) -> bool:
        """Whether half of the run's images are there, or nearly all that are there are the run's."""
        return len(self.of) > 0 and (2 * len(self.of) >= len(self.rows) or len(self.of) >= 0.9 * self.there)

    def gone(self, splits: Iterable[str]) -> list[str]:
        """The names of the run's images of these splits that are not there; those it left out are not counted."""
        found, wanted = {id(row) for row in self.of.values()}, set(splits)
        return [row["path"] for row in self.rows if _is_used(row) and row["split"] in wanted and id(row) not in found]

    def count(self, split: str) -> int:
        """The number of images of a split that the run knows."""
        return sum(_is_used(row) and row["split"] == split for row in self.rows)

    def with_splits(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples with the splits of the run, in the manifest's order, then those that it does not have.

        Images that the run does not know keep a validation or test split of their own, since it was not trained on
        them. Where the images are not the run's, all that it does not know are for testing if they have no split.
        """
        unknown = "" if self.is_of_the_run else "test"
        copies = {sample.path for sample in self.copies}
        order = {id(row): place for place, row in enumerate(self.rows)}
        known, others = [], []
        for sample in samples:
            if row := self.of.get(sample.path):
                known.append((order[id(row)], replace(sample, split=row["split"])))
            else:
                left_out = sample.path in copies or sample.split == "train"
                others.append(replace(sample, split="" if left_out else sample.split or unknown))
        return [sample for _, sample in sorted(known, key=lambda pair: pair[0])] + others

    def findings(self) -> list[str]:
        """What differs from the time when the run began: images with other content, and those that have moved."""
        found = []
        if self.changed:
            names = listed([sample.name for sample in self.changed])
            found.append(f"{len(self.changed):,} images are not what they were when the run began: {names}")
        if self.moved:
            names = listed([f"{self.of[sample.path]['path']} is {sample.name}" for sample in self.moved])
            found.append(f"{len(self.moved):,} images have moved, and are known by their content: {names}")
        return found

    def replaced(self, contents: Mapping[str, Content]) -> list[str]:
        """The images whose content, by path, is another than the run's, though their size is the same."""
        said = {sample.path for sample in self.changed}
        known = [(path, row) for path, row in self.of.items() if path in contents and path not in said]
        return [row["path"] for path, row in known if row.get("sha256", "") not in ("", contents[path].sha256)]

    def other_targets(self, rows: Mapping[str, Row]) -> list[str]:
        """The images whose rows, by their paths, have other classes or values than in the run."""
        found = []
        for path, now in rows.items():
            row = self.of.get(path, {})
            names = [name for name in now if name in row and name not in _NO_TARGETS and now[name] != row[name]]
            found += [f"{now['path']} ({row[name]}, now {now[name]})" for name in names]
        return found


def _is_used(row: Row) -> bool:
    return not row.get("error")


def recognize(samples: Sequence[Sample], rows: list[Row], by_name: bool) -> Recollection:
    """Recognize a run's images by their names, and by their content where names do not tell.

    Args:
        samples: The images that are there.
        rows: The manifest's rows.
        by_name: Whether an image of another content is still the run's if its name is. If false, the images may be
            others that happen to have the same names.
    """
    sizes = {sample.path: file_size(sample.path) for sample in samples}
    samples = [sample for sample in samples if sizes[sample.path]]  # A table may name files that are gone.
    found = Recollection(rows, len(samples))
    named = {row["path"]: row for row in rows}
    same = [s for s in samples if s.name in named and named[s.name].get("bytes", "") in ("", sizes[s.path])]
    found.of = {sample.path: named[sample.name] for sample in _of_same_content(same, named)}
    _find_by_content([sample for sample in samples if sample.path not in found.of], sizes, found)
    copies = {sample.path for sample in found.copies}
    taken = {id(row) for row in found.of.values()}
    found.changed = [
        sample
        for sample in samples
        if sample.path not in found.of and sample.path not in copies and id(named.get(sample.name)) not in taken
        if sample.name in named
    ]
    if by_name:
        found.of |= {sample.path: named[sample.name] for sample in found.changed}
    return found


def _of_same_content(samples: list[Sample], named: dict[str, Row]) -> list[Sample]:
    """Those that have the content of their row; if some do, as far as was compared, all are trusted."""
    hashed = [sample for sample in samples if named[sample.name].get("sha256")]
    probes = hashed[:: max(1, len(hashed) // _PROBES)]
    if _differing(probes, named):
        differing = {sample.path for sample in _differing(hashed, named)}
        return [sample for sample in samples if sample.path not in differing]
    return samples


def _differing(samples: list[Sample], named: dict[str, Row]) -> list[Sample]:
    hashes = hash_files([sample.path for sample in samples])
    return [s for s, content in zip(samples, hashes, strict=True) if content.sha256 != named[s.name]["sha256"]]


def _find_by_content(samples: list[Sample], sizes: dict[str, str], found: Recollection) -> None:
    """Recognize moved and renamed images, and copies."""
    of_size: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.get("bytes"):
            of_size.setdefault(row["bytes"], []).append(row)
    taken = {id(row) for row in found.of.values()}
    candidates = [sample for sample in samples if sizes[sample.path] in of_size]
    for sample, content in zip(candidates, hash_files([s.path for s in candidates]), strict=True):
        same = [row for row in of_size[sizes[sample.path]] if _is_same_file(sample, content.sha256, row)]
        free = [row for row in same if id(row) not in taken]
        if free:
            found.of[sample.path] = free[0]
            taken.add(id(free[0]))
            found.moved.append(sample)
        elif same:
            found.copies.append(sample)


def _is_same_file(sample: Sample, content: str, row: Row) -> bool:
    if row.get("sha256"):
        return row["sha256"] == content
    return Path(row["path"]).name == Path(sample.name).name  # Its content was not read; name and size are the same.
