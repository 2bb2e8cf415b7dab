"""Polygons as the pixels that pycocotools gives them; NumPy only.

An outline is drawn on a grid that is five times finer than the pixels. It crosses a column of pixels in the middle of
the column, and each crossing is moved to a border between two rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.rle.runs import Integers, Rle, Size, checked_size, from_changes, places

_FINE = 5
"""Outlines are drawn on a grid that is so many times finer than the pixels."""
_FAR = 10
_NEAR = 1000
"""A point may be so many sides of the image outside, or so many pixels if that is more."""


def from_polygons(rings: Sequence[Any], size: Size) -> Rle:
    """The union of polygons as a mask, with the pixels of pycocotools.

    Args:
        rings: The outlines, each as (N, 2) points or as a flat list x, y, x, y, ... in pixels; not closed.
        size: The image's (height, width).

    Raises:
        InputError: There are no rings, or one has fewer than three points, or an odd number of coordinates, or a
            coordinate that is no finite number or absurdly far outside.
    """
    height, _ = size = checked_size(size)
    if len(rings) == 0:
        raise InputError("a mask of polygons has no polygon")
    points = [_checked_ring(ring, size) for ring in rings]
    ring, column, row = _crossings(points, size)
    return _union(ring, column * height + row, size)


def _crossings(rings: list[npt.NDArray[np.float64]], size: Size) -> tuple[Integers, Integers, Integers]:
    """Where the outlines of rings cross the columns of an image.

    Args:
        rings: The points (N, 2) of each ring, x and y in pixels.
        size: The image's (height, width).

    Returns:
        For each crossing its ring, its column, and the first row behind it, 0..height.
    """
    height, width = size
    ring, x, y = _outline(rings)
    at = np.flatnonzero((x[1:] != x[:-1]) & (ring[1:] == ring[:-1]))
    # The middle of a column lies between the fine points 2 and 3 of 0..4.
    column, rest = np.divmod(np.minimum(x[at], x[at + 1]) - _FINE // 2, _FINE)
    crossed = (rest == 0) & (column >= 0) & (column < width)
    at = at[crossed]
    row = -((_FINE // 2 - np.minimum(y[at], y[at + 1])) // _FINE)
    return ring[at], column[crossed], row.clip(0, height)


def _checked_ring(ring: Any, size: Size) -> npt.NDArray[np.float64]:
    """The points (N, 2) of a ring.

    Args:
        ring: (N, 2) points, or a flat list x, y, x, y, ..., in pixels.
        size: The image's (height, width).

    Raises:
        InputError: It has fewer than three points, an odd number of coordinates, or a coordinate that is no finite
            number or absurdly far outside.
    """
    try:
        values = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a polygon's coordinates must be numbers ({error})") from error
    if values.size % 2 or (values.ndim == 2 and values.shape[1] != 2) or values.ndim > 2:
        raise InputError(f"a polygon is a list of x, y, x, y, ..., not of {values.size} numbers")
    points = values.reshape(-1, 2)
    if len(points) < 3:
        raise InputError(f"a polygon needs at least 3 points, and this one has {len(points)}")
    if not np.isfinite(points).all():
        raise InputError("a polygon has a coordinate that is NaN or infinite")
    far = np.abs(points).max()
    if far > max(size) + max(_FAR * max(size), _NEAR):
        raise InputError(
            f"a polygon has a coordinate {far:g} pixels from the origin, in an image of {size[0]} x {size[1]} pixels: "
            "coordinates are pixels of this image"
        )
    return points


def _outline(rings: list[npt.NDArray[np.float64]]) -> tuple[Integers, Integers, Integers]:
    """Each point of the rings' outlines on the fine grid: its ring, x and y."""
    lengths = np.array([len(ring) for ring in rings])
    # Truncation, and not floor: it is what pycocotools does with negative coordinates.
    ends = np.concatenate(rings) * _FINE + 0.5
    begin = np.trunc(ends).astype(np.int64)
    following = np.arange(len(begin)) + 1
    following[np.cumsum(lengths) - 1] = np.cumsum(lengths) - lengths
    end = begin[following]
    delta = np.abs(end - begin)
    flat = delta[:, 0] >= delta[:, 1]
    # An edge is drawn along its longer side, from its smaller end.
    along, across = np.where(flat, 0, 1), np.where(flat, 1, 0)
    edge = np.arange(len(begin))
    backward = begin[edge, along] > end[edge, along]
    low = np.where(backward[:, None], end, begin)
    high = np.where(backward[:, None], begin, end)
    steps = delta.max(axis=1)
    slope = (high - low)[edge, across] / np.maximum(steps, 1)
    owner = np.repeat(edge, steps + 1)
    step = places(steps + 1)
    step = np.where(backward[owner], steps[owner] - step, step)
    long = low[edge, along][owner] + step
    short = np.trunc(low[edge, across][owner] + slope[owner] * step + 0.5).astype(np.int64)
    level = flat[owner]
    ring = np.repeat(np.arange(len(rings)), lengths)[owner]
    return ring, np.where(level, long, short), np.where(level, short, long)


def _union(ring: Integers, positions: Integers, size: Size) -> Rle:
    """The union of rings from the positions at which each changes between outside and inside."""
    order = np.lexsort((positions, ring))
    positions = positions[order]
    # Each ring crosses a column an even number of times, so that the next one begins outside again.
    steps = 1 - 2 * (np.arange(len(positions)) % 2)
    values, where = np.unique(positions, return_inverse=True)
    inside = np.cumsum(np.bincount(where, weights=steps, minlength=len(values))) > 0
    return from_changes(values[np.diff(inside, prepend=False)], size)
