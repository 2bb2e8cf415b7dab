"""The index of an archive: names, places and sizes of its members, packed in a file that processes share."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cnnlab.archives.members import FOLDER, SPECIAL, Member

_MAGIC = "cnnlab index of an archive, form 1"
_COLUMNS = (
    ("ends", "q"),
    ("offsets", "q"),
    ("stored", "q"),
    ("sizes", "q"),
    ("checks", "I"),
    ("parts", "I"),
    ("how", "B"),
)
"""The columns and the types of their items, as in array; the names follow, in the order of their bytes."""
_AFTER = b"0"
"""The byte after "/": what is in a folder has a name between FOLDER/ and FOLDER0."""
_LONGEST_HEAD = 1 << 22
_STEP = 64
"""Of so many names one is at hand as an object, so that a search takes few steps."""
_CODING = "utf-8", "surrogateescape"


class TwiceError(ValueError):
    """Two members of one name."""


class Part(NamedTuple):
    """What tells a file of an archive from an earlier or a later one."""

    name: str
    """The file's name without its folder."""
    size: int
    """In bytes."""
    changed: int
    """The time of its last change, in nanoseconds."""
    node: int
    """Its number in the file system."""

    @classmethod
    def of(cls, path: str) -> Part:
        """A file as it is now.

        Raises:
            OSError: If it is missing.
        """
        status = os.stat(path)
        return cls(os.path.basename(path), status.st_size, status.st_mtime_ns, status.st_ino)


class Index:
    """The members of an archive, or of the shards of a folder, sorted by name.

    Args:
        content: An index as pack() makes it.

    Raises:
        ValueError: If it is of another form, or broken.
    """

    def __init__(self, content: bytes | mmap.mmap) -> None:
        view = memoryview(content)
        try:
            known = json.loads(bytes(view[:_LONGEST_HEAD]).partition(b"\n")[0])
            self.parts = tuple(Part(*part) for part in known["parts"])
            self._outer: str = known["outer"]
            self._count, start = int(known["members"]), int(known["start"])
            whole = known["form"] == _MAGIC and zlib.crc32(view[start:]) == known["check"]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError("no index of this form") from error
        if not whole:
            raise ValueError("no whole index of this form")
        columns: dict[str, memoryview[int]] = {}
        for name, kind in _COLUMNS:
            stop = start + self._count * array(kind).itemsize
            columns[name], start = view[start:stop].cast(kind), stop  # type: ignore[call-overload]
        self._columns = tuple(columns.values())
        self._ends = columns["ends"]
        self._part, self._how = columns["parts"], columns["how"]
        self._names = view[start:]
        self._few = [self._name(row) for row in range(0, self._count, _STEP)]

    def __len__(self) -> int:
        return self._count

    def _name(self, row: int) -> bytes:
        return bytes(self._names[self._ends[row - 1] if row else 0 : self._ends[row]])

    def _row(self, name: bytes, low: int = 0) -> int:
        """The row of the first name that is not before this one."""
        first = (bisect_left(self._few, name) - 1) * _STEP
        low, high = max(low, first, 0), min(first + _STEP + 1, self._count)
        return bisect_left(range(self._count), name, low, max(low, high), key=self._name)

    def find(self, name: str) -> int | None:
        """The row of a file, None if there is none of this name."""
        wanted = name.encode(*_CODING)
        row = self._row(wanted)
        if row < self._count and self._name(row) == wanted and self._how[row] != FOLDER:
            return row
        return self.find(name.removeprefix(self._outer)) if self._outer and name.startswith(self._outer) else None

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder; "" is the archive itself."""
        start = f"{name}/".encode(*_CODING)
        row = self._row(start)
        return not name or (row < self._count and self._name(row).startswith(start))

    def member(self, row: int) -> Member:
        """A member."""
        _, offsets, stored, sizes, checks, _, how = self._columns
        name = self._name(row).decode(*_CODING)
        return Member(name, offsets[row], stored[row], sizes[row], checks[row], how[row])

    def part(self, row: int) -> int:
        """The number of the file that a member is in."""
        return self._part[row]

    def children(self, folder: str) -> Iterator[tuple[str, int]]:
        """The names in a folder, "" for the archive itself, and what each is: FOLDER, SPECIAL or another for a file."""
        start = f"{folder}/".encode(*_CODING) if folder else b""
        row, stop = self._row(start), self._row(start[:-1] + _AFTER) if folder else self._count
        while row < stop:
            head, inside, _ = self._name(row)[len(start) :].partition(b"/")
            if not inside and head:
                yield head.decode(*_CODING), self._how[row]
            elif head:
                yield head.decode(*_CODING), FOLDER
                row = self._row(start + head + _AFTER, row) - 1
            row += 1


def pack_index(
    parts: Sequence[Part], members: Iterable[tuple[int, Member]], links: dict[str, str], outer: str = ""
) -> bytes:
    """Make an index.

    Args:
        parts: The files of the archive.
        members: Each member and the number of the file that it is in.
        links: Further names of files, and the files' names; filled while the members are read.
        outer: A folder that is left out of the names if all members are in it, with "/".

    Raises:
        TwiceError: If two members have one name.
    """
    names: list[bytes] = []
    values = {name: array(kind) for name, kind in _COLUMNS}
    folders: set[str] = set()
    for part, (name, *own) in members:
        if own[-1] == FOLDER:
            if name in folders or name == "/":
                continue
            folders.add(name)
        names.append(name.encode(*_CODING))
        for column, value in zip(
            ("offsets", "stored", "sizes", "checks", "parts", "how"), (*own[:4], part, own[4]), strict=True
        ):
            values[column].append(value)
    start = outer.encode(*_CODING)
    if outer and all(name.startswith(start) for name in names):
        names = [name[len(start) :] for name in names]
        links = {name.removeprefix(outer): target.removeprefix(outer) for name, target in links.items()}
    else:
        outer = ""
    order = sorted(range(len(names)), key=names.__getitem__)
    _check_names(parts, names, values, order)
    _follow(links, names, values, order)
    total = 0
    for row in order:
        total += len(names[row])
        values["ends"].append(total)
    body = b"".join(
        (column if name == "ends" else array(column.typecode, map(column.__getitem__, order))).tobytes()
        for name, column in values.items()
    ) + b"".join(map(names.__getitem__, order))
    known = {"form": _MAGIC, "check": zlib.crc32(body), "members": len(names), "parts": parts, "outer": outer}
    length = 64 * (len(json.dumps(known | {"start": 0})) // 64 + 2)
    return json.dumps(known | {"start": length}).ljust(length - 1).encode() + b"\n" + body


def _check_names(parts: Sequence[Part], names: list[bytes], values: dict[str, array[int]], order: list[int]) -> None:
    def where(row: int) -> str:
        return f"{parts[values['parts'][row]].name} at offset {values['offsets'][row]:,}"

    folders = {name[:end] for name in names for end in (name.rfind(b"/"),) if end >= 0}
    folders |= {b"/".join(name.split(b"/")[:count]) for name in folders for count in range(1, name.count(b"/") + 1)}
    for place, row in enumerate(order):
        before = order[place - 1] if place else -1
        name = names[row].decode(errors="backslashreplace")
        if before >= 0 and names[before] == names[row]:
            raise TwiceError(f"two members are called {name!r}: {where(before)}, {where(row)}: keep one, and pack anew")
        if names[row] in folders:
            raise TwiceError(f"{name!r} is a file ({where(row)}) and a folder: rename one, and pack anew")


def _follow(links: dict[str, str], names: list[bytes], values: dict[str, array[int]], order: list[int]) -> None:
    """Give a further name of a file the file's content; one of nothing that is known is SPECIAL."""
    if not links:
        return
    rows = {names[row].decode(*_CODING): row for row in order}
    for name, target in links.items():
        if (source := rows.get(target)) is not None and values["how"][source] != FOLDER:
            for column in ("offsets", "stored", "sizes", "checks", "parts", "how"):
                values[column][rows[name]] = values[column][source]
        else:
            values["how"][rows[name]] = SPECIAL


def read_index(path: Path) -> Index:
    """Map an index, so that processes share its memory.

    Raises:
        OSError: If there is none.
        ValueError: If it is of another form, or broken.
    """
    with path.open("rb") as file:
        return Index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
