"""Folders and files, wherever they are: on a disk, or in archives that stand for folders.

An archive NAME.tar or NAME.zip is the folder NAME in the folder that it lies in. Archives NAME-NUMBER, where the number
has five digits or more (shard-00000.tar), are shards: their members together are in the folder that the shards lie in.
A path may also name an archive itself: photos.tar/cat/1.jpg. Nothing else in cnnlab knows whether a path leads there.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cnnlab.archives.members import FOLDER, SPECIAL, ArchiveError
from cnnlab.archives.mounts import (
    COMPRESSED,
    ENDINGS,
    PathLike,
    Place,
    discover,
    find_known,
    join,
    may_have_archives,
    mount,
    sort_out,
)
from cnnlab.archives.tar_files import compression

_NUMBERED = re.compile(r"(.+)[-_]\d+")


class NotRegularError(OSError):
    """A path that is neither a file nor in an archive, such as a pipe."""


class Entry(NamedTuple):
    """What is in a folder, as os.DirEntry tells of it."""

    name: str
    path: str
    how: int
    """FOLDER, SPECIAL, or another number for a file."""
    source: str = ""
    """The file's name of an archive on a disk that stands for this folder; "" otherwise."""

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.how == FOLDER

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.how not in (FOLDER, SPECIAL)

    def is_symlink(self) -> bool:
        """Never: a link in an archive leads nowhere."""
        return False


def entries(folder: PathLike) -> Sequence[os.DirEntry[str] | Entry]:
    """What is in a folder, in any order.

    Raises:
        OSError: If there is no such folder, or if it cannot be read.
        ArchiveError: If an archive cannot be read, or if it is not clear what it stands for.
    """
    try:
        with os.scandir(folder) as found:
            own = list(found)
    except (FileNotFoundError, NotADirectoryError):
        place = discover(folder)
        if place is None or not place.is_folder:
            raise
        return list(_members(place, os.fspath(folder)))
    if not may_have_archives("/".join([entry.name for entry in own])):
        return own
    return _with_archives(os.fspath(folder), own)


def _with_archives(folder: str, own: Sequence[os.DirEntry[str]]) -> Sequence[os.DirEntry[str] | Entry]:
    """The entries of a folder on a disk, in which archives stand for folders, and shards for their members."""
    archives = sort_out(folder, own)
    stands_for = {file: name for name, file in (archives.folders | archives.compressed).items()}
    found: list[os.DirEntry[str] | Entry] = [
        Entry(name, join(folder, name), FOLDER, entry.name) if (name := stands_for.get(entry.name)) else entry
        for entry in own
        if entry.name not in archives.shards
    ]
    if archives.shards:
        members = list(_members(Place.of(mount(folder, folder, archives.shards), ""), folder))
        if both := sorted({entry.name for entry in found} & {entry.name for entry in members}):
            raise ArchiveError(
                f"{join(folder, both[0])} is in the shards {archives.shards[0]}, ... and beside them: remove one"
            )
        found += members
    return found


def check_one_reading(folder: PathLike) -> None:
    """Check that all folders in a folder are meant as such, where each is a class.

    Raises:
        ArchiveError: If archives stand beside folders, or look like shards.
    """
    found = [entry for entry in entries(folder) if not entry.name.startswith(".")]
    packed = sorted(entry.path for entry in found if isinstance(entry, Entry) and entry.source)
    files = [entry for entry in found if not isinstance(entry, Entry) and entry.name.lower().endswith(ENDINGS)]
    unused = [entry.path for entry in files if not entry.is_dir()]
    real = sorted(entry.path for entry in found if entry.is_dir() and entry.path not in packed)
    if real and (packed or unused):
        raise ArchiveError(
            f"{(packed + unused)[0]} is an archive, and {real[0]} a folder: if the archive is a class, unpack it; if "
            "it is none, move it elsewhere"
        )
    series = defaultdict[str, list[str]](list)
    for path in packed:
        if (numbered := _NUMBERED.fullmatch(path)) is not None:
            series[numbered[1]].append(path)
    for alike in (paths for paths in series.values() if len(paths) > 1):
        if inner := [path for path in alike for entry in entries(path) if entry.is_dir()]:
            name = os.path.basename(inner[0]).replace("-", "").replace("_", "")
            raise ArchiveError(
                f"{inner[0]} is an archive with folders, called like others: if they are shards of one folder, number "
                f"them with five digits (shard-00000); if each is a class, call it {name}"
            )


def check_names(folder: PathLike, found: Iterable[os.DirEntry[str] | Entry]) -> None:
    """Check that no archive among the entries of a folder would be the same folder as one that is there.

    Args:
        folder: The folder.
        found: Its entries.

    Raises:
        ArchiveError: If one would.
    """
    files = [entry.name for entry in found if entry.name.lower().endswith(ENDINGS) and entry.is_file()]
    folders = {entry.name for entry in found if entry.is_dir()} if files else set()
    if both := [name for name in files if os.path.splitext(name)[0] in folders]:
        raise ArchiveError(
            f"{join(folder, os.path.splitext(both[0])[0])} is a folder, and {both[0]} beside it is an archive of the "
            "same name, which would be the same folder: remove one, or move it elsewhere"
        )


def names(folder: PathLike) -> frozenset[str]:
    """The names in a folder, also hidden ones.

    Raises:
        OSError: See entries.
        ArchiveError: See entries.
    """
    return frozenset(entry.name for entry in entries(folder))


def is_dir(path: PathLike) -> bool:
    """Whether there is a folder.

    Raises:
        ArchiveError: If it is in an archive that cannot be read.
    """
    if os.path.isdir(path):
        return True
    place = discover(path)
    return place is not None and place.is_folder


def is_file(path: PathLike) -> bool:
    """Whether there is a file; an archive is one too."""
    if os.path.isfile(path):
        return True
    place = discover(path)
    return place is not None and place.row is not None


def is_compressed(path: PathLike) -> bool:
    """Whether a file is a compressed tar by its name, or compressed by its content; it cannot be read in place."""
    if COMPRESSED.fullmatch(os.path.basename(path)) is not None:
        return True
    with builtins.open(path, "rb") as file:
        return bool(compression(file.read(8)))


def exists(path: PathLike) -> bool:
    """Whether there is a file or a folder, or something else."""
    return os.path.exists(path) or is_file(path) or is_dir(path)


def size(path: PathLike) -> int:
    """The bytes of a file.

    Raises:
        OSError: If there is none.
    """
    return stamp(path)[0]


def stamp(path: PathLike) -> tuple[int, int]:
    """The bytes of a file, and the time of its last change, or its archive's, in nanoseconds.

    Raises:
        OSError: If there is none.
    """
    if (place := find_known(path)) is None:
        try:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            place = discover(path)
            if place is None:
                raise
    return place.archive.stamp(_row(place, path))


def read_bytes(path: PathLike) -> bytes:
    """The content of a file.

    Raises:
        NotRegularError: If it is a folder, a pipe or the like.
        OSError: If there is none, or if it cannot be read.
        ArchiveError: If it is in an archive that has changed, or damaged.
    """
    if (place := find_known(path)) is not None:
        return _read(place, path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NotRegularError(errno.EINVAL, "is no regular file", os.fspath(path))
        with builtins.open(path, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        if (place := discover(path)) is None:
            raise
    return _read(place, path)


def read_text(path: PathLike) -> str:
    """The content of a file of UTF-8, without its byte order mark: see read_bytes.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")


def open(path: PathLike) -> io.BufferedReader | io.BytesIO:
    """Open a file to read: see read_bytes."""
    if find_known(path) is None:
        try:
            return builtins.open(path, "rb")
        except (FileNotFoundError, NotADirectoryError):
            pass
    return io.BytesIO(read_bytes(path))


def _read(place: Place, path: PathLike) -> bytes:
    return place.archive.read(_row(place, path))


def _row(place: Place, path: PathLike) -> int:
    if place.row is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return place.row


def _members(place: Place, folder: str) -> Iterator[Entry]:
    start = join(folder, "")
    for name, how in place.archive.index.children(place.inner):
        yield Entry(name, f"{start}{name}", how)
