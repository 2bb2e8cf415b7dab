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
_MIDDLE = 2
"""The fine point before the middle of a pixel."""
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
    """Where the outlines of rings cross the middles of an image's columns.

    Args:
        rings: The points (N, 2) of each ring, x and y in pixels.
        size: The image's (height, width).

    Returns:
        For each crossing its ring, its column, and the first row behind it, 0..height.
    """
    lengths = np.array([len(ring) for ring in rings])
    # Truncation, and not floor: it is what pycocotools does with negative coordinates.
    begin = np.trunc(np.concatenate(rings) * _FINE + 0.5).astype(np.int64)
    following = np.arange(len(begin)) + 1
    following[np.cumsum(lengths) - 1] = np.cumsum(lengths) - lengths
    end = begin[following]
    # The middle of a column lies between the fine points 2 and 3 of 0..4.
    low, high = np.minimum(begin[:, 0], end[:, 0]), np.maximum(begin[:, 0], end[:, 0])
    first = _ceil_pixel(low).clip(min=0)
    counts = (np.minimum((high - _MIDDLE - 1) // _FINE, size[1] - 1) - first + 1).clip(min=0)
    edge = np.repeat(np.arange(len(begin)), counts)
    column = first[edge] + places(counts)
    fine_row = _fine_rows(begin[edge], end[edge], column * _FINE + _MIDDLE)
    return np.repeat(np.arange(len(rings)), lengths)[edge], column, _ceil_pixel(fine_row).clip(0, size[0])


def _ceil_pixel(fine: Integers) -> Integers:
    """The first pixel whose middle is not before a point of the fine grid."""
    return -((_MIDDLE - fine) // _FINE)


def _fine_rows(begin: Integers, end: Integers, x: Integers) -> Integers:
    """The upper one of the two rows in which edges (N, 2) to (N, 2) pass from x (N,) to x + 1, on the fine grid.

    An edge is drawn along its longer side, from its smaller end, one point at each step.
    """
    sides = np.abs(end - begin)
    steep = sides[:, 1] > sides[:, 0]
    axis = steep.astype(np.int64)[:, None]
    backward = np.take_along_axis(begin, axis, 1) > np.take_along_axis(end, axis, 1)
    low, high = np.where(backward, end, begin), np.where(backward, begin, end)
    rows = np.zeros(len(x), dtype=np.int64)

    flat = ~steep
    start, slope, step = low[flat, 1], (high - low)[flat, 1] / sides[flat, 0], x[flat] - low[flat, 0]
    rows[flat] = np.minimum(_drawn(start, slope, step), _drawn(start, slope, step + 1))

    start, slope = low[steep, 0], (high - low)[steep, 0] / sides[steep, 1]
    step = np.floor((x[steep] + 0.5 - start) / slope).astype(np.int64)
    # This last step before x + 1 may be one off, by a rounding.
    before, still = ((_drawn(start, slope, step + more) <= x[steep]) == (slope > 0) for more in (0, 1))
    rows[steep] = low[steep, 1] + step - 1 + before + (before & still)
    return rows


def _drawn(start: Integers, slope: npt.NDArray[np.float64], step: Integers) -> Integers:
    """The coordinate across an edge's longer side after some steps, rounded as pycocotools does."""
    return np.trunc(start + slope * step + 0.5).astype(np.int64)


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


def _union(ring: Integers, positions: Integers, size: Size) -> Rle:
    """The union of rings from the positions at which each changes between outside and inside."""
    order = np.lexsort((positions, ring))
    positions = positions[order]
    # Each ring crosses a column an even number of times, so that the next one begins outside again.
    steps = 1 - 2 * (np.arange(len(positions)) % 2)
    values, where = np.unique(positions, return_inverse=True)
    inside = np.cumsum(np.bincount(where, weights=steps, minlength=len(values))) > 0
    return from_changes(values[np.diff(inside, prepend=False)], size)
