"""Archive: the files of a tar or a zip, or of shards together, read in place."""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from cnnlab.archives.index import Index, Part, TwiceError, pack_index, read_index
from cnnlab.archives.members import IN_TAR, SPECIAL, ZIP_DEFLATED, ZIP_STORED, ArchiveError, Member, read_exactly
from cnnlab.archives.tar_files import BLOCK, tar_members
from cnnlab.archives.zip_files import read_zip_member, zip_members
from cnnlab.writing import write_atomically

_MOST_OPEN = 256
"""Files that a process keeps open; more are opened again."""


class Archive:
    """A tar or a zip, or several that together are one folder.

    Its index lies beside it in a hidden file, or in the user's cache folder; it is made anew if the files have changed.

    Args:
        paths: The files.

    Raises:
        ArchiveError: If one cannot be read as an archive.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.index = _load(self.paths)

    def is_current(self) -> bool:
        """Whether its files are still those of the index."""
        try:
            return tuple(map(Part.of, self.paths)) == self.index.parts
        except OSError:
            return False

    def stamp(self, row: int) -> tuple[int, int]:
        """A member's bytes, and the time of its archive's last change, in nanoseconds."""
        return self.index.member(row).size, self.index.parts[self.index.part(row)].changed

    def read(self, row: int) -> bytes:
        """The content of a member, in which its header is compared with the index.

        Raises:
            ArchiveError: If the archive has changed, or if the member is damaged or no file.
        """
        member, number = self.index.member(row), self.index.part(row)
        path, part = self.paths[number], self.index.parts[number]
        now = os.stat(path)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != part[1:]:
            raise ArchiveError(
                f"in {path}, which has changed since it was listed ({part.size:,} bytes, now {now.st_size:,}): put "
                "that back, or begin a new run"
            )
        try:
            file = _open(path, part.node, part.changed)
            return _READERS[member.how](file.number, member)
        except ArchiveError as error:
            raise ArchiveError(f"in {path} at offset {member.offset:,}: {error}") from error


def _read_tar_member(file: int, member: Member) -> bytes:
    content = read_exactly(file, BLOCK + member.size, member.offset - BLOCK)
    if len(content) < BLOCK + member.size or zlib.crc32(content[:BLOCK]) != member.check:
        raise ArchiveError("the header is another than when it was listed: put that archive back, or begin a new run")
    return content[BLOCK:]


def _refuse(file: int, member: Member) -> bytes:
    raise ArchiveError("is a link, a device or a sparse file: put the file itself into the archive")


_READERS = {
    IN_TAR: _read_tar_member,
    ZIP_STORED: read_zip_member,
    ZIP_DEFLATED: read_zip_member,
    SPECIAL: _refuse,
}


class _File:
    """An open file, closed when nothing uses it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(_MOST_OPEN)
def _open(path: str, node: int, changed: int) -> _File:
    """An open file; another one if it was replaced. Reading moves no position, so forked processes may share it."""
    return _File(path)


def _load(paths: Sequence[str]) -> Index:
    """The index of an archive, made if there is none."""
    parts = tuple(map(Part.of, paths))
    places = _places(Path(paths[0]), len(paths))
    for place in places:
        try:
            index = read_index(place)
        except OSError:
            continue
        except ValueError:
            print(f"{place}: is broken or of another form, and is made anew", file=sys.stderr)
            continue
        if index.parts == parts:
            return index
        print(f"{place}: is not of {paths[0]} as it is now, and is made anew", file=sys.stderr)
    links: dict[str, str] = {}
    outer = f"{Path(paths[0]).stem}/" if len(paths) == 1 else ""
    try:
        content = pack_index(parts, _members(paths, links), links, outer)
    except TwiceError as error:
        raise ArchiveError(f"{paths[0]}: {error}") from error
    for place in places:
        try:
            write_atomically(place, content)
            return read_index(place)
        except OSError:  # A disk that is full, or only read.
            continue
    return Index(content)


def _places(first: Path, count: int) -> list[Path]:
    """Where the index may lie: beside the archive, or in the user's cache folder."""
    beside = first.with_name(f".{first.name}.index" if count == 1 else ".shards.index")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnlab/archives"
    key = hashlib.sha256(os.fsencode(beside.resolve())).hexdigest()[:24]
    return [beside, cache / f"{key}.index"]


def _members(paths: Sequence[str], links: dict[str, str]) -> Iterator[tuple[int, Member]]:
    """The members of all files, each with its file's number."""
    for number, path in enumerate(paths):
        file = _File(path)
        is_zip = path.lower().endswith(".zip")
        for member in zip_members(file.number, path) if is_zip else tar_members(file.number, path, links):
            yield number, member
