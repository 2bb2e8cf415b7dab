"""Which archives stand for which folders, and which archive a path leads into."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from cnnlab.archives.archive import Archive
from cnnlab.archives.members import ArchiveError
from cnnlab.archives.tar_files import compressed_remedy

PathLike = str | os.PathLike[str]

ENDINGS = (".tar", ".zip")
COMPRESSED = re.compile(r"(.+)\.(?:tar\.(?:gz|bz2|xz|zst|lzma|Z)|tgz|tbz2?|txz)", re.IGNORECASE)
_SHARD = re.compile(r"(.+)[-_](\d{5,})")
_NOTES = frozenset({"", ".txt", ".md", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".names", ".html", ".pdf"})
"""Endings of files that may lie beside shards."""
_MARKS = (".tar", ".zip", ".tgz", ".TAR", ".ZIP")
"""One of these is in the names of a folder if an archive is."""


@dataclass
class Archives:
    """The archives in a folder on a disk."""

    folders: dict[str, str] = field(default_factory=dict)
    """The file's name of each archive that stands for a folder, by the folder's."""
    compressed: dict[str, str] = field(default_factory=dict)
    """The same for archives that cannot be read in place."""
    shards: list[str] = field(default_factory=list)
    """The file names of shards, in order; none if images or folders lie beside them."""
    real: set[str] = field(default_factory=set)
    """The folders that are there."""


_mounts: dict[str, Archive] = {}
"""The archives that were used, by the absolute path of the folder that each stands for."""
_archives: dict[tuple[str, ...], Archive] = {}
_locks: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)
_seen: dict[str, tuple[int, Archives]] = {}
"""The archives of folders, with the time of the folder's last change."""


class Place(NamedTuple):
    """A place in an archive."""

    archive: Archive
    inner: str
    """The path below the archive, with "/"; "" is the archive itself."""

    row: int | None
    """The row of the file at this place, None if there is none."""

    @classmethod
    def of(cls, archive: Archive, inner: str) -> Place:
        """The place of a path below an archive."""
        return cls(archive, inner, archive.index.find(inner))

    @property
    def is_folder(self) -> bool:
        """Whether there is a folder at this place."""
        return self.archive.index.has_folder(self.inner)


def sort_out(folder: str, entries: Iterable[os.DirEntry[str]]) -> Archives:
    """The archives among the entries of a folder on a disk.

    Raises:
        ArchiveError: If there are only shards, but of several names, or if one is missing or there twice.
    """
    found, stems, alone = Archives(), defaultdict[str, list[tuple[int, str]]](list), True
    for entry in sorted(entries, key=attrgetter("name")):
        name, (stem, ending) = entry.name, os.path.splitext(entry.name)
        if name.startswith("."):
            continue
        if entry.is_dir():
            found.real.add(name)
        elif (packed := COMPRESSED.fullmatch(name)) is not None:
            found.compressed[packed[1]] = name
        elif ending.lower() in ENDINGS and (shard := _SHARD.fullmatch(stem)) is not None:
            stems[shard[1]].append((int(shard[2]), name))
        elif ending.lower() in ENDINGS:
            found.folders.setdefault(stem, name)
        else:
            alone = alone and ending.lower() in _NOTES
    for name in found.real:
        found.folders.pop(name, None)
    if found.real:  # A download beside what was unpacked.
        found.compressed = {}
    elif alone and stems:
        found.shards = _in_order(folder, stems)
    return found


def _in_order(folder: str, stems: dict[str, list[tuple[int, str]]]) -> list[str]:
    """The names of shards by their numbers, if they are of one folder."""
    if len(stems) > 1:
        first, second = (shards[0][1] for shards in list(stems.values())[:2])
        raise ArchiveError(
            f"{folder} has the shards {first} and {second}: if both are of one folder, give them one name and other "
            f"numbers; if each is of its own, move them into {join(folder, next(iter(stems)))} and so on"
        )
    shards = sorted(next(iter(stems.values())))
    for (number, name), (other, following) in pairwise(shards):
        if other != number + 1:
            what = f"without number {number + 1}: put it back" if other > number else "of one number: remove one"
            raise ArchiveError(f"{folder} has the shards {name} and {following} {what}, or number them without gaps")
    return [name for _, name in shards]


def find_known(path: PathLike) -> Place | None:
    """A file in an archive that was used before; None if there is none, whatever else there is."""
    if not _mounts:
        return None
    full = at = os.path.abspath(path)
    while True:
        if (archive := _mounts.get(at)) is not None:
            place = Place.of(archive, full[len(at) :].strip(os.sep).replace(os.sep, "/"))
            return None if place.row is None else place
        above = os.path.dirname(at)
        if above == at:
            return None
        at = above


def discover(path: PathLike) -> Place | None:
    """Find the archive that a path leads into, whether it was used before or not; None if it leads into none."""
    at, inner = os.path.abspath(path), list[str]()
    while True:
        try:
            mode = os.stat(at).st_mode
            break
        except (OSError, ValueError):
            at, name = os.path.split(at)
            if not name:
                return None
            inner.insert(0, name)
    folder, file = os.path.split(at)
    if stat.S_ISREG(mode):
        if COMPRESSED.fullmatch(file):
            raise ArchiveError(
                f"{path if not inner else at}: {compressed_remedy(os.fspath(path) if not inner else at)}"
            )
        is_archive = os.path.splitext(file)[1].lower() in ENDINGS
        return Place.of(mount(at, folder, [file]), "/".join(inner)) if is_archive else None
    if not stat.S_ISDIR(mode) or not inner:
        return None
    archives = _archives_of(at)
    if (own := archives.folders.get(inner[0])) is not None:
        return Place.of(mount(join(at, inner[0]), at, [own]), "/".join(inner[1:]))
    if (own := archives.compressed.get(inner[0])) is not None:
        raise ArchiveError(f"{join(at, own)}: {compressed_remedy(join(at, own))}")
    return Place.of(mount(at, at, archives.shards), "/".join(inner)) if archives.shards else None


def _archives_of(folder: str) -> Archives:
    """The archives in a folder on a disk, as long as it does not change."""
    changed = os.stat(folder).st_mtime_ns
    if (known := _seen.get(folder)) is None or known[0] != changed:
        try:
            with os.scandir(folder) as found:
                known = changed, sort_out(folder, found)
        except OSError:
            known = changed, Archives()
        _seen[folder] = known
    return known[1]


def mount(at: PathLike, folder: PathLike, files: Sequence[str]) -> Archive:
    """The archive of these files in a folder, as they are now, which stands for the folder ``at``."""
    full = os.path.abspath(folder)
    paths = tuple(join(full, file) for file in files)
    with _locks[paths]:
        known = _archives.get(paths)
        if known is None or not known.is_current():
            known = _archives[paths] = Archive(paths)
    _mounts[os.path.abspath(at)] = known
    return known


def may_have_archives(names: str) -> bool:
    """Whether an archive may be among names, which are joined to one text; this is quick."""
    return any(mark in names for mark in _MARKS)


def join(folder: PathLike, name: str) -> str:
    """The path of a name in a folder."""
    return os.path.join(folder, name)
