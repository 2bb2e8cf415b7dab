"""Shards: files packed into archives of a size, the same bytes each time."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from cnnlab.archives.archive import Archive
from cnnlab.archives.members import ArchiveError
from cnnlab.archives.mounts import COMPRESSED
from cnnlab.archives.tar_files import BLOCK

_MODE = 0o644
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can tell."""
_LOCAL, _CENTRAL, _END = 30, 46, 22
"""The bytes of a zip's headers, without names."""
_PIECE = 1 << 20
_OPENERS: dict[bytes, Callable[[Path], BinaryIO]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,  # type: ignore[dict-item]
    b"\xfd7zXZ": lzma.open,  # type: ignore[dict-item]
}


class Packed(NamedTuple):
    """What was packed."""

    files: int
    shards: int
    bytes: int
    """Of the shards."""


class _Writer(Protocol):
    """Writes one shard."""

    def fits(self, name: str, size: int, most: int) -> bool:
        """Whether the shard still has at most so many bytes with a file of this name and size."""

    def add(self, name: str, content: bytes) -> None:
        """Add a file."""

    def close(self) -> None:
        """Write what ends the shard."""


class _TarWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def _header(self, name: str, size: int) -> tarfile.TarInfo:
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, _MODE
        return header

    def fits(self, name: str, size: int, most: int) -> bool:
        header = len(self._header(name, size).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        end = self._tar.offset + header + -(-size // BLOCK) * BLOCK + 2 * BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE <= most

    def add(self, name: str, content: bytes) -> None:
        self._tar.addfile(self._header(name, len(content)), io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


class _ZipWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._bytes = _END

    def _needs(self, name: str, size: int) -> int:
        return _LOCAL + _CENTRAL + 2 * len(name.encode()) + size

    def fits(self, name: str, size: int, most: int) -> bool:
        return self._bytes + self._needs(name, size) <= most

    def add(self, name: str, content: bytes) -> None:
        header = zipfile.ZipInfo(name, _EARLIEST)
        header.create_system, header.external_attr = 3, _MODE << 16
        self._zip.writestr(header, content)
        self._bytes += self._needs(name, len(content))

    def close(self) -> None:
        self._zip.close()


_WRITERS: dict[str, Callable[[BinaryIO], _Writer]] = {"tar": _TarWriter, "zip": _ZipWriter}
FORMATS = tuple(_WRITERS)


def pack_files(
    files: Sequence[tuple[str, str]],
    read: Callable[[str], bytes],
    out: Path,
    most: int,
    form: str,
    advance: Callable[[], None],
) -> Packed:
    """Pack files into OUT/shard-00000.tar and so on, read all of them back, and only then put OUT into its place.

    Names, contents and order alone decide on the bytes; times and owners do not.

    Args:
        files: The name and the path of each file, in the order in which they are packed.
        read: Reads a file by its path.
        out: OUT, which does not exist or is empty.
        most: The bytes of a shard, unless one file has more.
        form: A name in FORMATS.
        advance: Called twice for each file: when it was written, and when it was read back.

    Raises:
        ArchiveError: If a file reads back as another.
        OSError: If a file cannot be read or written.
    """
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    shards = _Shards(aside, most, form)
    try:
        checks = []
        for name, path in files:
            content = read(path)
            shards.add(name, content)
            checks.append(zlib.crc32(content))
            advance()
        shards.close()
        archive = Archive([str(path) for path in shards.paths])
        for (name, path), check in zip(files, checks, strict=True):
            row = archive.index.find(name)
            if row is None or zlib.crc32(archive.read(row)) != check:
                raise ArchiveError(f"{path}: reads back as another file from {out}: is the disk sound? Pack again")
            advance()
        aside.replace(out)
        return Packed(len(files), len(shards.paths), sum((out / path.name).stat().st_size for path in shards.paths))
    finally:
        with suppress(OSError, ValueError):  # After another error, whose shard is removed.
            shards.close()
        shutil.rmtree(aside, ignore_errors=True)


class _Shards:
    """Shards that are written one after the other."""

    def __init__(self, folder: Path, most: int, form: str) -> None:
        self.paths: list[Path] = []
        self._folder, self._most, self._form = folder, most, form
        self._file: BinaryIO | None = None
        self._writer: _Writer | None = None

    def add(self, name: str, content: bytes) -> None:
        if self._writer is not None and not self._writer.fits(name, len(content), self._most):
            self.close()
        if self._writer is None:
            self.paths.append(self._folder / f"shard-{len(self.paths):05d}.{self._form}")
            self._file = self.paths[-1].open("wb")
            self._writer = _WRITERS[self._form](self._file)
        self._writer.add(name, content)

    def close(self) -> None:
        if self._writer is None or self._file is None:
            return
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        with file:
            writer.close()
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def decompressed(path: Path, aside: Path) -> Iterator[Path]:
    """Yield a folder with the one tar that a compressed one contains; it is removed afterwards.

    Args:
        path: The compressed tar, by gzip, bzip2 or xz.
        aside: The folder that is made.

    Raises:
        ArchiveError: If it is compressed otherwise, or broken.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
    if opener is None:
        raise ArchiveError(f"{path}: is compressed in a way that is not known here (gzip, bzip2, xz are): unpack it")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    named = COMPRESSED.fullmatch(path.name)
    place = aside / f"{named[1] if named else path.stem}.tar"
    try:
        try:
            with opener(path) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ArchiveError(f"{path}: is cut or broken ({error}): fetch it again") from error
        yield place
    finally:
        shutil.rmtree(aside, ignore_errors=True)
