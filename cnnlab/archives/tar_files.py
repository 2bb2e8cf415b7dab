"""The members of a tar without compression, from its headers."""

from __future__ import annotations

import os
import sys
import tarfile
import zlib
from collections.abc import Iterator

from cnnlab.archives.members import FOLDER, IN_TAR, SPECIAL, ArchiveError, Member, plain_name, read_exactly

BLOCK = tarfile.BLOCKSIZE
_PADDING = 1 << 16
"""After the end mark, so many bytes are looked at: tar fills its last record with zeros."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def tar_members(file: int, path: str, links: dict[str, str]) -> Iterator[Member]:
    """Yield the members of a tar; hidden ones are left out.

    Args:
        file: The open file.
        path: Its path, for errors.
        links: Gets the name of each further name of a file (a hard link), and the file's name.

    Raises:
        ArchiveError: If it is no tar, compressed, cut or broken, or if a name leads out of it.
    """
    total = os.fstat(file).st_size
    if not total:
        raise ArchiveError(f"{path}: is empty (0 bytes): pack the folder anew")
    end = 0
    for info, following in _headers(file, path):
        end = following
        header, data = f"offset {info.offset:,}", info.offset_data
        size = info.size if info.isreg() and not info.issparse() else 0
        if data + size > total:
            raise _cut(path, f"inside {info.name!r}, which begins at offset {data:,} and has {size:,} bytes", total)
        if (name := plain_name(path, info.name, header)) is None:
            continue
        if info.isdir():
            yield Member(f"{name}/", data, 0, 0, 0, FOLDER)
            continue
        if info.islnk():
            links[name] = plain_name(path, info.linkname, "a link") or ""
        check = zlib.crc32(read_exactly(file, BLOCK, data - BLOCK))
        yield Member(name, data, size, size, check, IN_TAR if info.isreg() and not info.issparse() else SPECIAL)
    _check_end(file, path, end, total)


def _headers(file: int, path: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member, and where the next one begins.

    Raises:
        ArchiveError: If the first header is none, or if a header that goes on in others is broken.
    """
    at = 0
    try:
        with os.fdopen(os.dup(file), "rb") as content:
            content.seek(0)
            with tarfile.open(fileobj=content, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # Typeshed does not know it; it keeps them all.
                    at = tar.offset
                    yield info, at
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        if how := compression(read_exactly(file, BLOCK, 0)):
            raise ArchiveError(f"{path}: {compressed_remedy(path, how)}") from error
        what = f"is broken: at offset {at:,} is no header" if at else "is no tar"
        raise ArchiveError(f"{path}: {what}: pack the folder anew, or fetch the file again") from error


def _check_end(file: int, path: str, end: int, total: int) -> None:
    """Look at what follows the last member: tarfile takes everything that is no header for the end."""
    block = read_exactly(file, BLOCK, end)
    if not block:
        print(f"{path}: has no end mark; if it was cut, files after byte {total:,} are missing", file=sys.stderr)
    elif len(block) < BLOCK:
        raise _cut(path, f"inside a header at offset {end:,}", total)
    elif block.strip(b"\0"):
        raise ArchiveError(
            f"{path}: is broken: at offset {end:,} is no header: pack the folder anew, or fetch the file again"
        )
    elif read_exactly(file, _PADDING, end).strip(b"\0"):
        raise ArchiveError(f"{path}: goes on after its end at offset {end:,}, as joined archives do: keep them apart")


def compression(start: bytes) -> str:
    """How a file that starts with these bytes is compressed, "" if it is not."""
    return next((how for magic, how in _COMPRESSED.items() if start.startswith(magic)), "")


def compressed_remedy(path: str, how: str = "") -> str:
    """What to do with a compressed tar, whose files can only be read from its beginning on."""
    return (
        f"is compressed{f' ({how})' if how else ''}, so no file in it can be read by itself: unpack it, or: cnnlab "
        f"data pack {path} FOLDER"
    )


def _cut(path: str, where: str, total: int) -> ArchiveError:
    return ArchiveError(f"{path}: is cut, it ends after {total:,} bytes {where}: fetch or pack it again")
