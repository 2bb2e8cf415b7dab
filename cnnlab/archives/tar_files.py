"""The members of a tar without compression, from its headers: ustar, GNU and PAX (POSIX.1-2001, pax)."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator

from cnnlab.archives.members import FOLDER, IN_TAR, SPECIAL, ArchiveError, Member, plain_name, read_exactly

BLOCK = 512
_ZEROS = bytes(BLOCK)
_PADDING = 1 << 16
"""After the end mark, so many bytes are looked at: tar fills its last record with zeros."""
_REGULAR = b"0\0" + b"7"
_EMPTY = b"123456"
"""Links, devices, folders and pipes, which have a header only."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_HEADER = 1 << 20


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
    offset, longer, shared = 0, dict[str, str](), dict[str, str]()
    while offset < total:
        block = os.pread(file, BLOCK, offset)
        if len(block) < BLOCK:
            raise _cut(path, f"inside a header at offset {offset:,}", total)
        if block == _ZEROS:
            _check_end(file, path, offset)
            break
        _check_header(block, path, offset)
        kind, size, data = block[156:157], _number(block[124:136], path, offset), offset + BLOCK
        if kind in b"LKxgX":
            if size > _LARGEST_HEADER:
                raise ArchiveError(f"{path}: the header at offset {offset:,} has {size:,} bytes: pack the folder anew")
            found = _extension(kind, read_exactly(file, size, data), path, offset)
            (shared if kind == b"g" else longer).update(found)
        else:
            own, longer = shared | longer, {}
            name = own.get("path") or _name(block)
            size = int(own.get("size", size))
            while kind == b"S" and block[482 if data == offset + BLOCK else 504]:  # More of the map of a sparse file.
                block, data = os.pread(file, BLOCK, data).ljust(BLOCK, b"\0"), data + BLOCK
            size = 0 if kind in _EMPTY else size
            if data + size > total:
                raise _cut(path, f"inside {name!r}, which begins at offset {data:,} and has {size:,} bytes", total)
            if (plain := plain_name(path, name, f"offset {offset:,}")) is not None:
                sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in own)
                if kind == b"1":
                    links[plain] = plain_name(path, own.get("linkpath") or _text(block[157:257]), "a link") or ""
                if kind == b"5" or (kind in _REGULAR and name.endswith("/")):
                    yield Member(f"{plain}/", data, 0, 0, 0, FOLDER)
                else:
                    how = IN_TAR if kind in _REGULAR and not sparse else SPECIAL
                    yield Member(plain, data, size, size, zlib.crc32(block), how)
        offset = data + -(-size // BLOCK) * BLOCK
    else:
        print(f"{path}: has no end mark; if it was cut, files after byte {total:,} are missing", file=sys.stderr)


def _check_end(file: int, path: str, offset: int) -> None:
    if read_exactly(file, _PADDING, offset).strip(b"\0"):
        raise ArchiveError(
            f"{path}: goes on after its end at offset {offset:,}, as joined archives do: keep them apart"
        )


def _check_header(block: bytes, path: str, offset: int) -> None:
    text = block[148:156].strip(b" \0")
    try:
        right = int(text, 8) == sum(block) - sum(block[148:156]) + 8 * 32
    except ValueError:
        right = False
    if right:
        return
    if not offset and (how := compression(block)):
        raise ArchiveError(f"{path}: {compressed_remedy(path, how)}")
    what = "is no tar" if not offset else f"is broken: at offset {offset:,} is no header"
    raise ArchiveError(f"{path}: {what}: pack the folder anew, or fetch the file again")


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


def _number(field: bytes, path: str, offset: int) -> int:
    """A number in octal digits, or in binary with the first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise ArchiveError(f"{path}: the size at offset {offset:,} is {field!r}: pack the folder anew") from error


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _extension(kind: bytes, content: bytes, path: str, offset: int) -> dict[str, str]:
    """What a header says of the next member, or of all that follow."""
    if kind in b"LK":
        return {"path" if kind == b"L" else "linkpath": _text(content)}
    found = {}
    try:
        while content:
            length = int(content.split(b" ", 1)[0])
            key, _, value = content[:length].split(b" ", 1)[1].removesuffix(b"\n").partition(b"=")
            found[key.decode()] = value.decode(errors="surrogateescape")
            content = content[length:].lstrip(b"\0")
            if length <= 0:
                raise ValueError(length)
        if int(found.get("size", 0)) < 0:
            raise ValueError(found["size"])
    except (ValueError, IndexError) as error:
        raise ArchiveError(f"{path}: the header at offset {offset:,} is broken: pack the folder anew") from error
    return found
