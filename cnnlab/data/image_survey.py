"""What image files have besides 8 bits per channel: deep values, whose range is found, and transparency."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cnnlab.imaging import ImageError, LazyImage, Tones

_SAMPLED = 64
"""So many headers say whether files are deep; a million files of 8 bits need not be read."""
_FEW_LEVELS = 64


class _Found(NamedTuple):
    low: float
    high: float
    levels: int
    """The distinct values in the file."""
    levels_left: int
    """The distinct values after the conversion to 8 bits."""


def find_range(paths: Sequence[str]) -> tuple[float, float] | None:
    """The lowest and the highest value of images with more than 8 bits; files that cannot be read do not count.

    Returns:
        None if none of some sampled files has more than 8 bits, or if all values are equal.
    """
    if not any_deep(paths):
        return None
    with ThreadPoolExecutor() as pool:
        found = [values for values in pool.map(_read, paths) if values is not None]
    low, high = min(values.low for values in found), max(values.high for values in found)
    return (low, high) if low < high else None


def any_deep(paths: Sequence[str]) -> bool:
    """Whether one of some sampled images has more than 8 bits."""
    sampled = np.unique(np.linspace(0, len(paths) - 1, min(_SAMPLED, len(paths))).round().astype(int)).tolist()
    with ThreadPoolExecutor() as pool:
        return any(pool.map(_is_deep, [paths[place] for place in sampled]))


def describe_images(paths: Sequence[str], tones: Tones) -> list[str]:
    """Lines about images with more than 8 bits and with transparency; a warning if few gray levels are left.

    Args:
        paths: The files; those that cannot be read do not count.
        tones: How their values become 0..255.
    """
    with ThreadPoolExecutor() as pool:
        found = [values for values in pool.map(lambda path: _read(path, tones), paths) if values is not None]
        transparent = sum(pool.map(_is_transparent, paths))
    lines = []
    if found:
        low, high = min(values.low for values in found), max(values.high for values in found)
        left = float(np.median([values.levels_left for values in found]))
        before = float(np.median([values.levels for values in found]))
        black, white = tones.range or ((0, 1) if high <= 1 else (0, 65535))
        lines.append(
            f"{len(found):,} images have more than 8 bits: values {low:g} to {high:g}; {black:g} becomes black and "
            f"{white:g} white (data.range); an image has {left:.0f} of 256 levels"
        )
        if left < _FEW_LEVELS and 2 * left < before:
            lines.append(
                f"warning: only {left:.0f} levels are left of the {before:.0f} of an image: give the range that "
                f"matters, such as --data.range '[{low:g}, {high:g}]'"
            )
    if transparent:
        done = "laid on white" if tones.alpha == "blend" else "read without this channel"
        other = (
            "--data.alpha drop ignores the channel" if tones.alpha == "blend" else "--data.alpha blend lays on white"
        )
        lines.append(f"{transparent:,} images have transparent pixels, and are {done} ({other})")
    return lines


def _is_deep(path: str) -> bool:
    try:
        return LazyImage(path).deep
    except ImageError:
        return False


def _is_transparent(path: str) -> bool:
    try:
        image = LazyImage(path)
        return image.has_alpha and image.transparency() > 0
    except ImageError:
        return False


def _read(path: str, tones: Tones | None = None) -> _Found | None:
    """The extreme values of a deep file, and its levels if the tones are given; None for other files."""
    try:
        image = LazyImage(path, tones)
        if not image.deep:
            return None
        values = image.deep_values()
        if tones is None:
            return _Found(float(values.min()), float(values.max()), 0, 0)
        pixels = LazyImage(path, tones).read(3)
    except ImageError:
        return None
    return _Found(float(values.min()), float(values.max()), len(np.unique(values)), len(np.unique(pixels)))
