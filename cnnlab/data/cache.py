"""A cache of decoded and resized images, in memory or mapped from a file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab import tree
from cnnlab.data.augmentation import InputSpec
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage, Pixels, Tones, cover_size, resize
from cnnlab.writing import write_atomically


class CachedImage:
    """A decoded and resized image from the cache."""

    def __init__(self, pixels: Pixels) -> None:
        self.size: tuple[int, int] = (pixels.shape[0], pixels.shape[1])
        """Height and width."""
        self._pixels = pixels

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """The pixels (H, W, channels), uint8."""
        return self._pixels


class ImageCache:
    """Decoded images, no larger than evaluation needs, in memory or in a memory-mapped file that processes share.

    Evaluation gets the same pixels as from the files.

    Args:
        paths: The image files.
        spec: The network's input.
        folder: The folder of the cache file; None keeps the cache in memory.
        tones: How the values of the files become 0..255; Tones() if None.

    Raises:
        InputError: If there is not enough memory or disk space.
        ImageError: If a file cannot be read.
    """

    def __init__(
        self, paths: Sequence[str], spec: InputSpec, folder: Path | None = None, tones: Tones | None = None
    ) -> None:
        self._tones = tones or Tones()
        self._place = {path: i for i, path in enumerate(dict.fromkeys(paths))}
        self._spec = spec
        self._pixels: npt.NDArray[np.uint8]
        if folder is None:
            self._lay_out(self._measure())
            self._pixels = np.empty(self._bytes("memory", _memory()), dtype=np.uint8)
            self._fill(self._pixels)
            return
        file = folder / f"{self._key()}.u8"
        shapes = file.with_suffix(".shapes")
        if not (file.is_file() and shapes.is_file()):
            folder.mkdir(parents=True, exist_ok=True)
            self._lay_out(self._measure())
            self._write(file)
            write_atomically(shapes, self._shapes.tobytes())
        self._lay_out(np.frombuffer(shapes.read_bytes(), dtype=np.int64).reshape(-1, 2))
        self._pixels = np.memmap(file, dtype=np.uint8, mode="r")

    def __call__(self, path: str) -> CachedImage:
        """Open an image."""
        place = self._place[path]
        return CachedImage(self._view(self._pixels, place))

    def _measure(self) -> npt.NDArray[np.int64]:
        with ThreadPoolExecutor() as pool:
            return np.array(list(pool.map(self._shape, self._place)), dtype=np.int64).reshape(-1, 2)

    def _shape(self, path: str) -> tuple[int, int]:
        size = LazyImage(path).size
        smaller = cover_size(size, self._spec.size, self._spec.crop)
        return smaller if smaller < size else size

    def _lay_out(self, shapes: npt.NDArray[np.int64]) -> None:
        self._shapes = shapes
        lengths = shapes.prod(axis=1) * self._spec.channels
        self._starts: list[int] = np.concatenate([[0], np.cumsum(lengths)]).tolist()

    def _write(self, file: Path) -> None:
        count = self._bytes(str(file.parent), shutil.disk_usage(file.parent).free)
        aside = file.with_suffix(f".{os.getpid()}.part")
        try:
            self._fill(np.memmap(aside, dtype=np.uint8, mode="w+", shape=(count,)))
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)

    def _bytes(self, where: str, free: int) -> int:
        count = self._starts[-1]
        if count > free:
            raise InputError(
                f"data.cache: {len(self._place):,} images of this size take {count / 2**30:.1f} GiB, and {where} has "
                f"{free / 2**30:.1f} GiB: leave it out, or make data.size smaller"
            )
        return count

    def _view(self, pixels: npt.NDArray[np.uint8], place: int) -> Pixels:
        height, width = self._shapes[place].tolist()
        return pixels[self._starts[place] : self._starts[place + 1]].reshape(height, width, self._spec.channels)

    def _fill(self, pixels: npt.NDArray[np.uint8]) -> None:
        def fill(path: str) -> None:
            view = self._view(pixels, self._place[path])
            height, width = view.shape[:2]
            source = LazyImage(path, self._tones).read(self._spec.channels, at_least=(2 * height, 2 * width))
            view[:] = resize(source, (height, width), self._spec.interpolation)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, self._place))

    def _key(self) -> str:
        """A name that depends on the files and on the input spec."""
        own = [] if self._tones == Tones() else [self._tones]
        digest = hashlib.sha256(repr([*self._spec[:2], *self._spec[3:5], *own]).encode())
        for path in self._place:
            size, changed = tree.stamp(path)
            digest.update(f"{path}\0{size}\0{changed}\n".encode())
        return digest.hexdigest()[:24]


def _memory() -> int:
    """The bytes of memory that a cache may take."""
    total: Any = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(total * 0.6)
