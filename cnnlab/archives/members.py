"""What an index knows of a member of an archive, and which members there may be."""

from __future__ import annotations

import os
from typing import NamedTuple

from cnnlab.errors import InputError

ZIP_STORED, IN_TAR, ZIP_DEFLATED = 0, 1, 8
"""How a member's bytes lie in its archive."""
FOLDER, SPECIAL = 254, 255
"""A folder, whose name ends with "/"; and a link, a device or the like, which has no content that is read."""
_HIDDEN = "__MACOSX"
"""The folder in which macOS keeps what else it knows of files."""


class ArchiveError(InputError):
    """An archive or a member that cannot be read: the message names it, and says what to do."""


class Member(NamedTuple):
    """A file, a folder or something else in an archive."""

    name: str
    """With "/"; a folder's name ends with it. Bytes that are not UTF-8 are surrogates."""
    offset: int
    """Where its bytes begin in a tar, or its header in a zip."""
    stored: int
    """How many bytes it takes in the archive, without its header."""
    size: int
    """How many bytes it has."""
    check: int
    """CRC-32 of its header in a tar, or of its content in a zip."""
    how: int
    """ZIP_STORED, IN_TAR, ZIP_DEFLATED, FOLDER or SPECIAL."""


def plain_name(archive: str, name: str, where: str) -> str | None:
    """A member's name without "." and empty parts; None if the member or a folder of it is hidden.

    Args:
        archive: The archive's path, for errors.
        name: The name as it stands there.
        where: Its place, for errors.

    Raises:
        ArchiveError: If the name leads out of the archive.
    """
    parts = name.split("/")
    if not parts[0] and len(parts) > 1:
        raise _outside(archive, name, where, "is absolute")
    if ".." in parts:
        raise _outside(archive, name, where, "leads out of its folder")
    kept = [part for part in parts if part not in ("", ".")]
    if any(part[0] == "." or part == _HIDDEN for part in kept):
        return None
    return "/".join(kept)


def _outside(archive: str, name: str, where: str, what: str) -> ArchiveError:
    return ArchiveError(f"{archive}: the name {name!r} ({where}) {what}: pack the folder anew, with names below it")


def read_exactly(file: int, length: int, offset: int) -> bytes:
    """Read from an open file at an offset, without moving its position; fewer bytes only at its end."""
    content = os.pread(file, length, offset)
    if len(content) == length or not content:
        return content
    pieces = [content]
    while content and (missing := length - sum(map(len, pieces))):  # A call reads 2 GB at most.
        content = os.pread(file, missing, offset + length - missing)
        pieces.append(content)
    return b"".join(pieces)
