"""A run's memory of its images: manifest.csv, and how images are recognized by it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cnnlab import tree
from cnnlab.data.samples import SPLITS, Sample, SampleTable, code_of
from cnnlab.errors import InputError
from cnnlab.image_files import listed
from cnnlab.writing import open_table

Row = dict[str, str]

MANY = 100_000
"""Of more images, the manifest is compressed, and has only the beginnings of hashes."""
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
    """The content of each of many files, from the bytes that are read; reader processes share it.

    Args:
        count: The number of files, N.
    """

    def __init__(self, count: int) -> None:
        self.table = torch.zeros(count, _SHA256 + _COUNT + _CRC, dtype=torch.uint8)
        """(N, 44) uint8: SHA-256, number of bytes and CRC-32 of each file; all zero where one has not been read."""
        self.table.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, row: int, content: bytes) -> bool:
        """Note the content of a file that was read, and return whether it is that of the first reading."""
        quick = len(content).to_bytes(_COUNT) + zlib.crc32(content).to_bytes(_CRC)
        first = self.table[row].numpy().tobytes()
        if any(first[-_CRC:]):
            return first[_SHA256:] == quick
        if any(first):  # Read for its hash.
            return first[:_SHA256] == hashlib.sha256(content).digest()
        self._put(row, hashlib.sha256(content).digest() + quick)
        return True

    def read(self, paths: Sequence[str], rows: Sequence[int]) -> None:
        """Read files, in threads, and note their contents; those that cannot be read stay unknown.

        Args:
            paths: The files.
            rows: The row of each.
        """

        def read_one(path: str, row: int) -> None:
            if (content := _content_of(path)).sha256:
                self._put(row, bytes.fromhex(content.sha256) + int(content.bytes).to_bytes(_COUNT) + bytes(_CRC))

        with ThreadPoolExecutor() as pool:
            deque(pool.map(read_one, paths, rows), maxlen=0)

    def _put(self, row: int, entry: bytes) -> None:
        self.table[row] = torch.frombuffer(bytearray(entry), dtype=torch.uint8)

    def known(self) -> npt.NDArray[np.bool_]:
        """Whether each file has been read, (N,)."""
        found: npt.NDArray[np.bool_] = self.table.any(dim=1).numpy()
        return found

    def content(self, row: int) -> Content:
        """The content of a file; empty if it has not been read."""
        entry = self.table[row].numpy().tobytes()
        if not any(entry):
            return Content()
        return Content(entry[:_SHA256].hex(), str(int.from_bytes(entry[_SHA256 : _SHA256 + _COUNT])))

    def columns(self) -> tuple[list[str], Iterator[str]]:
        """The number of bytes and the SHA-256 of each file as text, "" if it has not been read.

        Of many files it is the hash's beginning, which tells them apart as well.
        """
        known, entries = self.known().tolist(), self.table.numpy()
        counts = np.ascontiguousarray(entries[:, _SHA256 : _SHA256 + _COUNT]).view(">u8")[:, 0].tolist()
        kept = _kept(len(known))
        hashes = (entries[row, :kept].tobytes().hex() if read else "" for row, read in enumerate(known))
        return [str(count) if read else "" for count, read in zip(counts, known, strict=True)], hashes

    def equal(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Those of these rows that have the same content as another one of them, as groups, the first row's first."""
        entries = np.ascontiguousarray(self.table.numpy()[rows, :_SHA256]).view(f"V{_SHA256}")[:, 0]
        # Most differ in their first bytes, which are compared far faster.
        quick = entries.view(np.uint64).reshape(len(rows), -1)[:, 0] if len(rows) else np.zeros(0, np.uint64)
        order = np.argsort(quick, kind="stable")
        same = quick[order][1:] == quick[order][:-1]
        groups: dict[bytes, list[int]] = {}
        for place in np.flatnonzero(np.append(same, False) | np.insert(same, 0, False)):
            groups.setdefault(entries[order[place]].tobytes(), []).append(int(order[place]))
        found = [rows[sorted(group)] for group in groups.values() if len(group) > 1]
        return sorted(found, key=lambda group: int(group[0]))


class ContentNotes(NamedTuple):
    """The contents of some of many files, which take what is read of them."""

    hashes: ContentHashes
    """Those of all files."""
    rows: npt.NDArray[np.int32]
    """The row of each of the files, (N,)."""

    def note(self, index: int, content: bytes) -> bool:
        """See ContentHashes.note."""
        return self.hashes.note(int(self.rows[index]), content)


_SHA256, _COUNT, _CRC = 32, 8, 4
"""The bytes of each part of a row."""
_SHORT = 12
"""The bytes of a hash in the manifest of many images: two of a million are equal once in 10^17 times."""


def _kept(count: int) -> int:
    """The bytes of each hash in the manifest of so many images."""
    return _SHA256 if count <= MANY else _SHORT


def hash_files(paths: Sequence[str]) -> list[Content]:
    """The content of each file; empty for one that cannot be read."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_content_of, paths))


def _content_of(path: str) -> Content:
    try:
        with tree.open(path) as file:
            return Content(hashlib.file_digest(file, "sha256").hexdigest(), str(file.seek(0, os.SEEK_END)))
    except (OSError, InputError):
        return Content()


def is_hash(sha256: str, known: str) -> bool:
    """Whether a hash is the known one, of which there may be only the beginning, or nothing."""
    return bool(sha256) and sha256.startswith(known)


def file_size(path: str) -> str:
    """The bytes of a file as text, "" if it is missing."""
    try:
        return str(tree.size(path))
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
        with open_table(path) as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
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

    def with_splits(self, samples: SampleTable) -> SampleTable:
        """The samples with the splits of the run, in the manifest's order, then those that it does not have.

        Images that the run does not know keep a validation or test split of their own, since it was not trained on
        them. Where the images are not the run's, all that it does not know are for testing if they have no split.
        """
        unknown = "" if self.is_of_the_run else "test"
        copies = {sample.path for sample in self.copies}
        order = {id(row): place for place, row in enumerate(self.rows)}
        splits, known, others = samples.splits.copy(), [], []
        for place, path in enumerate(samples.paths):
            if row := self.of.get(path):
                known.append((order[id(row)], place))
                splits[place] = code_of(row["split"])
            else:
                others.append(place)
                if path in copies or splits[place] == code_of("train"):
                    splits[place] = code_of("")
                elif splits[place] == code_of(""):
                    splits[place] = code_of(unknown)
        return samples.with_splits(splits).take(np.array([*(place for _, place in sorted(known)), *others], np.int64))

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
        return [row["path"] for path, row in known if not is_hash(contents[path].sha256, row.get("sha256", ""))]

    def columns(self, contents: Mapping[str, Content]) -> dict[str, Iterable[str]]:
        """The columns of the manifest, with the contents, by path, of those that had none."""
        digits = 2 * _kept(len(self.rows))
        learned = {
            id(row): contents[path]._replace(sha256=contents[path].sha256[:digits])
            for path, row in self.of.items()
            if path in contents
        }
        rows = [
            {**row, **(learned[id(row)]._asdict() if id(row) in learned and not row.get("sha256") else {})}
            for row in self.rows
        ]
        return {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}

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
    pairs = zip(samples, hash_files([sample.path for sample in samples]), strict=True)
    return [sample for sample, content in pairs if not is_hash(content.sha256, named[sample.name]["sha256"])]


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
        return is_hash(content, row["sha256"])
    return Path(row["path"]).name == Path(sample.name).name  # Its content was not read; name and size are the same.
