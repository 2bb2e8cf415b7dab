"""Where annotations and images lie: files that exist, names of splits, sizes in headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnlab import tree
from cnnlab.data.samples import SPLITS
from cnnlab.errors import InputError
from cnnlab.image_files import EXTENSIONS, LeftOut, check_name, list_images, listed, local_copy
from cnnlab.imaging import ImageError, LazyImage

_SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
ENDINGS = frozenset({".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".cache", ".md", ".names", ".data"})
"""What may lie among images as annotations or descriptions, and is not looked at as an image."""
_CHUNK = 512
_LARGEST_SIDE = 10**7


def split_of(name: str) -> str | None:
    """The split that a name of a folder, a file or a list stands for, None if it stands for none.

    >>> [split_of(name) for name in ("valid", "instances_train2017", "Test", "trainval", "cells")]
    ['val', 'train', 'test', None, None]
    """
    parts = re.split(r"[^a-z]+", name.lower())
    found = {_SPLIT_OF[part] for part in parts if part in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


class Files:
    """Which files there are; each folder is read once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """The names in a folder, none if there is no such folder."""
        if folder not in self._names:
            try:
                self._names[folder] = tree.names(folder)
            except InputError:
                raise
            except (OSError, ValueError):  # ValueError: a zero byte in its name.
                self._names[folder] = frozenset()
        return self._names[folder]

    def has(self, path: str) -> bool:
        """Whether there is a file or a folder."""
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def with_ending(self, folder: str, ending: str) -> list[str]:
        """The names in a folder that end so, in lower or upper case, without hidden ones, sorted."""
        return sorted(n for n in self.names(folder) if n.lower().endswith(ending) and not n.startswith("."))


def find_images(folder: Path, left_out: LeftOut) -> list[str]:
    """The images below a folder, sorted; annotations among them are no images.

    Args:
        folder: The folder.
        left_out: Counts other files.
    """
    return [str(path) for path in list_images(folder, left_out, ENDINGS)]


def describe_unlisted(paths: Sequence[str], files: Files) -> list[str]:
    """Lines about what lies beside listed images: images that are not listed, and files that are no images.

    Args:
        paths: The listed images.
        files: The files there are.
    """
    named: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        named.setdefault(folder, set()).add(name)
    others, left_out = [], LeftOut()
    for folder, own in named.items():
        for name in sorted(files.names(folder) - own):
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if ending in EXTENSIONS:
                others.append(f"{folder}/{name}")
            elif ending not in ENDINGS and not name.startswith(".") and tree.is_file(f"{folder}/{name}"):
                left_out.add(name)
    notes = [f"{len(others):,} images are not listed, and left out: {listed(others, most=3)}"] if others else []
    return notes + ([str(left_out)] if left_out else [])


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InputError: If it cannot be read, is not UTF-8, or has control characters.
    """
    try:
        lines = tree.read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    for line in lines:
        check_name(line.strip())
    return [line.strip() for line in lines if line.strip()]


def stem_of(path: str) -> str:
    """A file's name without folder and ending; only the ending of an image is one.

    >>> stem_of("a/b.v2.jpg"), stem_of("a/b.v2")
    ('b.v2', 'b.v2')
    """
    name = os.path.basename(path)  # noqa: PTH119
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return stem if ending.lower() in EXTENSIONS else name


def read_all(paths: Sequence[str]) -> list[bytes | OSError]:
    """The content of small files, or the error of reading them, in threads: a network's delays overlap."""

    def read(chunk: Sequence[str]) -> list[bytes | OSError]:
        found: list[bytes | OSError] = []
        for path in chunk:
            try:
                found.append(tree.read_bytes(local_copy(path)))
            except OSError as error:
                found.append(error)
        return found

    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor() as pool:
        return [content for chunk in pool.map(read, chunks) for content in chunk]


def declared_size(height: object, width: object) -> tuple[int, int]:
    """Height and width that annotations declare, as numbers or texts; 0 and 0 if they are no size.

    >>> declared_size("480", 640.0), declared_size(0, 0), declared_size(None, 1e99)
    ((480, 640), (0, 0), (0, 0))
    """
    try:
        found = int(float(height)), int(float(width))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0, 0
    return found if 0 < min(found) <= max(found) <= _LARGEST_SIDE else (0, 0)


def read_sizes(paths: Iterable[str]) -> npt.NDArray[np.int32]:
    """(I, 2) height and width of upright images from their headers, 0 for those that cannot be read."""

    def size(path: str) -> tuple[int, int]:
        try:
            return LazyImage(path).size
        except ImageError:
            return 0, 0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, paths)), np.int32).reshape(-1, 2)


def by_split(splits: Iterable[str]) -> list[str]:
    """Splits in the order of training, validation, test."""
    return sorted(splits, key=lambda split: SPLITS.index(split) if split in SPLITS else -1)
