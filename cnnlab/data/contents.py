"""What files contain, as it is read: their hashes, by which a run knows them again."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cnnlab import tree
from cnnlab.errors import InputError

MANY = 100_000
"""Of more images, the manifest is compressed, and has only the beginnings of hashes."""
_AT_ONCE = 4096
"""Files whose sizes a thread asks for together."""


class Content(NamedTuple):
    """What one reading of a file has found."""

    sha256: str = ""
    """In hexadecimal, "" if the file could not be read."""
    bytes: str = ""
    """How many, as text."""


class ContentHashes:
    """The content of each of many files, from the bytes that are read; reader processes share it.

    Args:
        count: The number of files, N.
    """

    def __init__(self, count: int) -> None:
        self.table = torch.zeros(count, _SHA256 + _COUNT + _CRC, dtype=torch.uint8)
        """(N, 44) uint8: SHA-256, number of bytes and CRC-32 of each file; all zero where one has not been read."""
        self.table.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, row: int, content: bytes) -> bool:
        """Note the content of a file that was read, and return whether it is that of the first reading."""
        quick = len(content).to_bytes(_COUNT) + zlib.crc32(content).to_bytes(_CRC)
        first = self.table[row].numpy().tobytes()
        if any(first[-_CRC:]):
            return first[_SHA256:] == quick
        if any(first):  # Read for its hash.
            return first[:_SHA256] == hashlib.sha256(content).digest()
        self._put(row, hashlib.sha256(content).digest() + quick)
        return True

    def read(self, paths: Sequence[str], rows: Sequence[int]) -> None:
        """Read files, in threads, and note their contents; those that cannot be read stay unknown.

        Args:
            paths: The files.
            rows: The row of each.
        """

        def read_one(path: str, row: int) -> None:
            if (content := _content_of(path)).sha256:
                self._put(row, bytes.fromhex(content.sha256) + int(content.bytes).to_bytes(_COUNT) + bytes(_CRC))

        with ThreadPoolExecutor() as pool:
            deque(pool.map(read_one, paths, rows), maxlen=0)

    def _put(self, row: int, entry: bytes) -> None:
        self.table[row] = torch.frombuffer(bytearray(entry), dtype=torch.uint8)

    def known(self) -> npt.NDArray[np.bool_]:
        """Whether each file has been read, (N,)."""
        found: npt.NDArray[np.bool_] = self.table.any(dim=1).numpy()
        return found

    def content(self, row: int) -> Content:
        """The content of a file; empty if it has not been read."""
        entry = self.table[row].numpy().tobytes()
        if not any(entry):
            return Content()
        return Content(entry[:_SHA256].hex(), str(int.from_bytes(entry[_SHA256 : _SHA256 + _COUNT])))

    def columns(self) -> tuple[list[str], Iterator[str]]:
        """The number of bytes and the SHA-256 of each file as text, "" if it has not been read.

        Of many files it is the hash's beginning, which tells them apart as well.
        """
        known, entries = self.known().tolist(), self.table.numpy()
        counts = np.ascontiguousarray(entries[:, _SHA256 : _SHA256 + _COUNT]).view(">u8")[:, 0].tolist()
        kept = hash_bytes(len(known))
        hashes = (entries[row, :kept].tobytes().hex() if read else "" for row, read in enumerate(known))
        return [str(count) if read else "" for count, read in zip(counts, known, strict=True)], hashes

    def equal(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Those of these rows that have the same content as another one of them, as groups, the first row's first."""
        entries = np.ascontiguousarray(self.table.numpy()[rows, :_SHA256]).view(f"V{_SHA256}")[:, 0]
        # Most differ in their first bytes, which are compared far faster.
        quick = entries.view(np.uint64).reshape(len(rows), -1)[:, 0] if len(rows) else np.zeros(0, np.uint64)
        order = np.argsort(quick, kind="stable")
        same = quick[order][1:] == quick[order][:-1]
        groups: dict[bytes, list[int]] = {}
        for place in np.flatnonzero(np.append(same, False) | np.insert(same, 0, False)):
            groups.setdefault(entries[order[place]].tobytes(), []).append(int(order[place]))
        found = [rows[sorted(group)] for group in groups.values() if len(group) > 1]
        return sorted(found, key=lambda group: int(group[0]))


class ContentNotes(NamedTuple):
    """The contents of some of many files, which take what is read of them."""

    hashes: ContentHashes
    """Those of all files."""
    rows: npt.NDArray[np.int32]
    """The row of each of the files, (N,)."""

    def note(self, index: int, content: bytes) -> bool:
        """See ContentHashes.note."""
        return self.hashes.note(int(self.rows[index]), content)


_SHA256, _COUNT, _CRC = 32, 8, 4
"""The bytes of each part of a row."""
_SHORT = 12
"""The bytes of a hash in the manifest of many images: two of a million are equal once in 10^17 times."""


def hash_bytes(count: int) -> int:
    """The bytes of each hash in the manifest of so many images."""
    return _SHA256 if count <= MANY else _SHORT


def hash_files(paths: Sequence[str]) -> list[Content]:
    """The content of each file; empty for one that cannot be read."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_content_of, paths))


def _content_of(path: str) -> Content:
    try:
        with tree.open(path) as file:
            return Content(hashlib.file_digest(file, "sha256").hexdigest(), str(file.seek(0, os.SEEK_END)))
    except (OSError, InputError):
        return Content()


def is_hash(sha256: str, known: str) -> bool:
    """Whether a hash is the known one, of which there may be only the beginning, or nothing."""
    return bool(sha256) and sha256.startswith(known)


def file_sizes(paths: Sequence[str]) -> npt.NDArray[np.int64]:
    """The bytes of each file, (N,), -1 for one that is missing; asked for in threads, since disks may be far away."""
    with ThreadPoolExecutor() as pool:
        parts = (paths[first : first + _AT_ONCE] for first in range(0, len(paths), _AT_ONCE))
        sizes = pool.map(lambda part: [_size_of(path) for path in part], parts)
        return np.fromiter(chain.from_iterable(sizes), np.int64, len(paths))


def _size_of(path: str) -> int:
    try:
        return tree.size(path)
    except OSError:
        return -1
