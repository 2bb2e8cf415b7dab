"""A run's memory of its images: manifest.csv, and how images are recognized by it."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnlab.data.contents import ContentHashes, file_sizes, hash_bytes, hash_files, is_hash
from cnnlab.data.packed import Codes, Rows, Strings, places_in
from cnnlab.data.samples import SPLITS, SampleTable, code_of
from cnnlab.errors import InputError
from cnnlab.image_files import listed
from cnnlab.writing import open_table

_AT_ONCE = 65_536
"""Rows that are read together."""
_PROBES = 16
"""The number of files whose content is compared before the names of the others are trusted."""
_NO_TARGETS = ("path", "split", "group", "bytes", "sha256", "error", "mask")
_DIFFERENT = ("path", "bytes", "sha256", "mask")
"""The columns in which most rows differ."""


class Manifest:
    """The table of a manifest, packed.

    Args:
        columns: Its columns by name, of equal length; path and split among them.

    Raises:
        ValueError: If a number of bytes is none.
    """

    def __init__(self, columns: Mapping[str, Strings | Codes[str]]) -> None:
        self.columns = dict(columns)
        paths, splits = columns["path"], columns["split"]
        assert isinstance(paths, Strings)
        assert isinstance(splits, Codes)
        self.paths = paths
        self.splits = np.array([code_of(split) for split in splits.values], np.uint8)[splits.numbers]
        """(N,), see SampleTable.splits."""
        sizes = columns.get("bytes")
        self.sizes = (
            np.full(len(paths), -1)
            if sizes is None
            else np.fromiter((int(size) if size else -1 for size in sizes), np.int64, len(paths))
        )
        """(N,), the bytes of each file; -1 where they are not known."""
        hashes = columns.get("sha256")
        self.hashes = hashes if isinstance(hashes, Strings) else Strings.of([""] * len(paths))
        """SHA-256 of each file or its beginning, in hexadecimal; "" where it is not known."""

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def used(self) -> npt.NDArray[np.bool_]:
        """Whether each image was used, not left out with an error, (N,)."""
        errors = self.columns.get("error")
        return np.ones(len(self), bool) if errors is None else np.fromiter((not e for e in errors), bool, len(self))

    def count(self, split: str) -> int:
        """The number of images of a split that were used."""
        return int((self.used & (self.splits == code_of(split))).sum())

    def with_contents(self, hashes: ContentHashes, rows: Rows) -> dict[str, Iterable[str]]:
        """The columns, with what is known now of the files whose content was not known.

        Args:
            hashes: Contents of files.
            rows: The row of each of those files, (F,); -1 for a file that has none.
        """
        places = np.flatnonzero(hashes.known() & (rows >= 0))
        places = places[~self.hashes.filled()[rows[places]]]
        if not len(places):
            return dict(self.columns)
        sizes, texts = ["" if size < 0 else str(size) for size in self.sizes.tolist()], list(self.hashes)
        for place in places.tolist():
            content, row = hashes.content(place), int(rows[place])
            sizes[row], texts[row] = content.bytes, content.sha256[: 2 * hash_bytes(len(self))]
        return {**self.columns, "bytes": sizes, "sha256": texts}


def read_manifest(path: Path) -> Manifest:
    """Read the table of a manifest.

    Raises:
        InputError: If there is no such file, or if it is not a manifest.
    """
    if not path.is_file():
        raise InputError(f"data.splits {path}: there is no such file")
    try:
        with open_table(path) as file:
            reader = csv.reader(file)
            names = next(reader, [])
            parts: dict[str, list[Strings | Codes[str]]] = {name: [] for name in names}
            for some in _parts(reader, names, path):
                for name, texts in zip(names, zip(*some, strict=True), strict=True):
                    parts[name].append(Strings.of(texts) if name in _DIFFERENT else Codes.of(texts))
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"data.splits {path} is not a table: {error}") from error
    return Manifest({name: _joined(name, of_name) for name, of_name in parts.items()})


def _joined(name: str, parts: Iterable[Strings | Codes[str]]) -> Strings | Codes[str]:
    if name in _DIFFERENT:
        return Strings.joined([Strings.of(()), *(part for part in parts if isinstance(part, Strings))])
    return Codes.joined(part for part in parts if isinstance(part, Codes))


def _parts(reader: Iterator[list[str]], names: list[str], path: Path) -> Iterator[list[list[str]]]:
    """The rows of a manifest, many at once.

    Raises:
        InputError: If a row is none of a manifest, or if there are two columns of one name.
    """
    places = {name: place for place, name in enumerate(names)}
    if {"path", "split"} - places.keys() or len(places) < len(names):
        raise InputError(f"data.splits {path} is no manifest: it has the columns {', '.join(names) or 'of nothing'}")
    first, size = 2, places.get("bytes")
    while some := list(islice(reader, _AT_ONCE)):
        for line, row in enumerate(some, start=first):
            if not row:
                continue
            if len(row) != len(names) or not row[places["path"]] or row[places["split"]] not in ("", *SPLITS):
                raise InputError(f"{path}, line {line}: expected a path and a split (train, val, test or nothing)")
            if size is not None and not (row[size].isdecimal() or not row[size]):
                raise InputError(f"{path}, line {line}: {row[size]!r} is no number of bytes")
        first += len(some)
        yield [row for row in some if row]


@dataclass(eq=False)
class Recollection:
    """What a run's manifest says of the images that are there now: N of them."""

    manifest: Manifest
    samples: SampleTable
    """The images that are listed now."""
    there: int
    """The number of those whose files exist."""
    named: npt.NDArray[np.int64]
    """The manifest's row of each image's name, (N,), -1 if it has none."""
    rows: npt.NDArray[np.int64]
    """The manifest's row of each image that was recognized, (N,), -1 for others; a row is of one image at most."""
    moved: npt.NDArray[np.int64]
    """The places of images with the content of one of the run's, under another name."""
    copies: npt.NDArray[np.int64]
    """The places of images with the content of one of the run's that is there too."""
    changed: npt.NDArray[np.int64]
    """The places of images under the name of one of the run's, with other content."""

    @property
    def is_of_the_run(self) -> bool:
        """Whether half of the run's images are there, or nearly all that are there are the run's."""
        found = int((self.rows >= 0).sum())
        return found > 0 and (2 * found >= len(self.manifest) or found >= 0.9 * self.there)

    def gone(self, splits: Iterable[str]) -> list[str]:
        """The names of the run's images of these splits that are not there; those it left out are not counted."""
        found = np.zeros(len(self.manifest), bool)
        found[self.rows[self.rows >= 0]] = True
        wanted = np.isin(self.manifest.splits, [code_of(split) for split in splits])
        return list(self.manifest.paths.take(np.flatnonzero(self.manifest.used & wanted & ~found)))

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """The places of all images: the run's in the manifest's order, then those that it does not have, (N,)."""
        return np.argsort(np.where(self.rows >= 0, self.rows, len(self.manifest)), kind="stable")

    def with_splits(self) -> SampleTable:
        """The images with the splits of the run, in ``order``.

        Images that the run does not know keep a validation or test split of their own, since it was not trained on
        them. Where the images are not the run's, all that it does not know are for testing if they have no split.
        """
        own, trained, none = self.samples.splits, code_of("train"), code_of("")
        splits = np.where(own == none, code_of("" if self.is_of_the_run else "test"), own)
        splits[own == trained] = none
        splits[self.copies] = none
        known = self.rows >= 0
        splits[known] = self.manifest.splits[self.rows[known]]
        return self.samples.with_splits(splits.astype(np.uint8)).take(self.order)

    def new(self) -> list[str]:
        """The names of the images that are not the run's, and that no split of their own keeps."""
        strange = (self.rows < 0) & (self.named < 0)
        unused = self.with_splits().splits == code_of("")
        return self._names(self.order[unused & strange[self.order]])

    def findings(self) -> list[str]:
        """What differs from the time when the run began: images with other content, and those that have moved."""
        found = []
        if len(self.changed):
            names = listed(self._names(self.changed))
            found.append(f"{len(self.changed):,} images are not what they were when the run began: {names}")
        if len(self.moved):
            before = self.manifest.paths.take(self.rows[self.moved])
            pairs = zip(before, self._names(self.moved), strict=True)
            names = listed([f"{own} is {name}" for own, name in pairs])
            found.append(f"{len(self.moved):,} images have moved, and are known by their content: {names}")
        return found

    def _names(self, places: Rows) -> list[str]:
        return list(self.samples.paths.take(places).names())

    def replaced(self, hashes: ContentHashes, places: Rows) -> list[str]:
        """The images whose content is another than the run's, though their size is the same.

        Args:
            hashes: Contents of files, F of them.
            places: The place of each of those files among the samples, (F,).
        """
        rows = self.rows[places]
        known_before = np.append(self.manifest.hashes.filled(), False)[rows]  # The last one is that of row -1.
        files = np.flatnonzero(hashes.known() & known_before & ~np.isin(places, self.changed))
        known = zip(files.tolist(), self.manifest.hashes.take(rows[files]), strict=True)
        other = [int(rows[file]) for file, own in known if not is_hash(hashes.content(file).sha256, own)]
        return list(self.manifest.paths.take(np.array(other, np.int64)))

    def other_targets(self, columns: Mapping[str, Iterable[str]]) -> list[str]:
        """The images whose columns, in ``order``, have other classes or values than in the run."""
        rows = self.rows[self.order]
        known, found = np.flatnonzero(rows >= 0), []
        names = [name for name in columns if name in self.manifest.columns and name not in _NO_TARGETS]
        # The images that the run knows come first.
        before = zip(*(self.manifest.columns[name].take(rows[known]) for name in names), strict=True)
        now = zip(columns["path"], *(columns[name] for name in names), strict=True)
        for own, (path, *targets) in zip(before, now, strict=False):
            pairs = zip(own, targets, strict=True)
            found += [f"{path} ({old}, now {new})" for old, new in pairs if old != new]
        return found


def recognize(samples: SampleTable, manifest: Manifest, by_name: bool) -> Recollection:
    """Recognize a run's images by their names, and by their content where names do not tell.

    Args:
        samples: The images that are listed.
        manifest: What the run remembers.
        by_name: Whether an image of another content is still the run's if its name is. If false, the images may be
            others that happen to have the same names.
    """
    named = places_in(manifest.paths, samples.paths.names())
    sizes = file_sizes(samples.paths)
    there = sizes >= 0  # A table may name files that are gone.
    before = manifest.sizes[named] if len(manifest) else np.full(len(samples), -1)
    alike = np.flatnonzero(there & (named >= 0) & ((before < 0) | (before == sizes)))
    same = _of_same_content(samples, alike, manifest, named)
    rows = np.full(len(samples), -1)
    rows[same] = named[same]
    moved, copies = _find_by_content(samples, np.flatnonzero(there & (rows < 0)), sizes, manifest, rows)
    taken = np.zeros(len(manifest) + 1, bool)  # The last one is that of images without a name.
    taken[rows] = True
    taken[-1] = False
    others = there & (rows < 0) & (named >= 0) & ~taken[named]
    others[copies] = False
    changed = np.flatnonzero(others)
    if by_name:
        rows[changed] = named[changed]
    return Recollection(manifest, samples, int(there.sum()), named, rows, moved, copies, changed)


def _of_same_content(samples: SampleTable, places: Rows, manifest: Manifest, named: Rows) -> Rows:
    """Those that have the content of their row; if some do, as far as was compared, all are trusted."""
    hashed = places[manifest.hashes.filled()[named[places]]]

    def differing(looked: Rows) -> list[int]:
        contents = hash_files(list(samples.paths.take(looked)))
        known = manifest.hashes.take(named[looked])
        triples = zip(looked.tolist(), contents, known, strict=True)
        return [place for place, content, own in triples if not is_hash(content.sha256, own)]

    if differing(hashed[:: max(1, len(hashed) // _PROBES)]):
        return places[~np.isin(places, differing(hashed))]
    return places


def _find_by_content(
    samples: SampleTable, places: Rows, sizes: Rows, manifest: Manifest, rows: Rows
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Recognize moved and renamed images, whose rows are filled in, and copies.

    Args:
        samples: All images.
        places: Those that were not recognized by their names.
        sizes: The bytes of all images.
        manifest: What the run remembers.
        rows: The manifest's row of each image, -1 for those that were not recognized.

    Returns:
        The places of the moved ones, and those of copies.
    """
    places = places[np.isin(sizes[places], manifest.sizes)]
    of_size: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(manifest.sizes, sizes[places])).tolist():
        of_size.setdefault(int(manifest.sizes[row]), []).append(row)
    taken, moved, copies = set(rows[rows >= 0].tolist()), [], []
    paths = list(samples.paths.take(places))
    for place, path, content in zip(places.tolist(), paths, hash_files(paths), strict=True):
        same = [row for row in of_size[int(sizes[place])] if _is_same_file(path, content.sha256, manifest, row)]
        free = [row for row in same if row not in taken]
        if free:
            rows[place] = free[0]
            taken.add(free[0])
            moved.append(place)
        elif same:
            copies.append(place)
    return np.array(moved, np.int64), np.array(copies, np.int64)


def _is_same_file(path: str, content: str, manifest: Manifest, row: int) -> bool:
    if known := manifest.hashes[row]:
        return is_hash(content, known)
    return Path(manifest.paths[row]).name == Path(path).name  # Its content was not read; name and size are the same.
