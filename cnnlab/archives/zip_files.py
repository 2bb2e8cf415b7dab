"""The members of a zip, from its central directory, and their contents."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from PIL import Image

from cnnlab.archives.members import (
    FOLDER,
    SPECIAL,
    ZIP_DEFLATED,
    ZIP_STORED,
    ArchiveError,
    Member,
    plain_name,
    read_exactly,
)

_HEADER = struct.Struct("<4s5H3I2H")
_MAGIC = b"PK\x03\x04"
_EXTRA = 64
"""So many bytes of extra fields are expected in a header; more are read by a second call."""
_MOST_RATIO = 1040
"""Deflate makes one byte of at most 1,032."""
_PIXEL_BYTES = 16
"""Of an image's largest pixel, with four channels of 32 bits."""


def zip_members(file: int, path: str) -> Iterator[Member]:
    """Yield the members of a zip; hidden ones are left out.

    Args:
        file: The open file.
        path: Its path, for errors.

    Raises:
        ArchiveError: If it is no zip, cut or broken, if a member is encrypted or compressed otherwise than by deflate,
            or if a name leads out of it.
    """
    total = os.fstat(file).st_size
    try:
        with zipfile.ZipFile(path) as content:
            infos = content.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise ArchiveError(
            f"{path}: is no whole zip ({error}; it has {total:,} bytes): fetch or pack it again"
        ) from error
    for info in infos:
        raw = _decoded(info)
        where = f"offset {info.header_offset:,}"
        if "\\" in raw:
            raise ArchiveError(
                f"{path}: the name {raw!r} ({where}) has a backslash, which is no separator in a zip: unpack it where "
                "it was made, and pack it with another program"
            )
        if (name := plain_name(path, raw, where)) is None:
            continue
        mode = info.external_attr >> 16
        if info.is_dir():
            yield Member(f"{name}/", 0, 0, 0, 0, FOLDER)
            continue
        if info.flag_bits & 1:
            raise ArchiveError(f"{path}: {name!r} ({where}) is encrypted: unpack it with its password")
        if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            how = zipfile.compressor_names.get(info.compress_type, f"method {info.compress_type}")  # type: ignore[attr-defined]
            raise ArchiveError(
                f"{path}: {name!r} ({where}) is compressed by {how}, expected stored or deflate: unpack it, or pack "
                "it anew"
            )
        if info.header_offset < 0 or info.header_offset + _HEADER.size + info.compress_size > total:
            raise ArchiveError(f"{path}: is cut, {name!r} ({where}) ends after {total:,} bytes: fetch or pack it again")
        how = SPECIAL if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode) else info.compress_type
        yield Member(name, info.header_offset, info.compress_size, info.file_size, info.CRC, how)


def _decoded(info: zipfile.ZipInfo) -> str:
    """A member's name; many programs write UTF-8 without saying so."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode(errors="surrogateescape")


def read_zip_member(file: int, member: Member) -> bytes:
    """The content of a member.

    Raises:
        ArchiveError: If header, length or CRC-32 are not those of the index.
    """
    _check_size(member)
    expected = _HEADER.size + len(member.name) + _EXTRA
    chunk = read_exactly(file, expected + member.stored, member.offset)
    if len(chunk) < _HEADER.size or not chunk.startswith(_MAGIC):
        raise ArchiveError("there is no header any more: fetch or pack the archive again")
    _, _, _, method, _, _, _, _, _, of_name, of_extra = _HEADER.unpack(chunk[: _HEADER.size])
    start = _HEADER.size + of_name + of_extra
    name = chunk[_HEADER.size : _HEADER.size + of_name].decode(errors="surrogateescape")
    if method != member.how or (name.isascii() and not name.endswith(member.name.rpartition("/")[2])):
        raise ArchiveError(f"the header is of {name!r}, not of the member of the index: pack the archive again")
    data = chunk[start : start + member.stored]
    if len(data) < member.stored:
        data += read_exactly(file, member.stored - len(data), member.offset + start + len(data))
    content = data if member.how == ZIP_STORED else _inflate(data, member.size)
    if len(content) != member.size or zlib.crc32(content) != member.check:
        raise ArchiveError("its content is damaged (CRC-32 and length are others): fetch or pack the archive again")
    return content


def _check_size(member: Member) -> None:
    """Refuse a member that declares more than it can have, or than an image may have."""
    if member.how != ZIP_DEFLATED:
        return
    most = 2 * Image.MAX_IMAGE_PIXELS * _PIXEL_BYTES if Image.MAX_IMAGE_PIXELS is not None else None
    if member.size > _MOST_RATIO * (member.stored + 1) or (most is not None and member.size > most):
        raise ArchiveError(
            f"it declares {member.size:,} bytes in {member.stored:,} compressed ones, which is no image: remove it, or "
            "unpack it yourself"
        )


def _inflate(data: bytes, size: int) -> bytes:
    """Decompress, at most one byte more than declared."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise ArchiveError(f"its content is damaged ({error}): fetch or pack the archive again") from error
