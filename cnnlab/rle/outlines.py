"""The outline of a mask as a polygon along the edges of its pixels; NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnlab.rle.runs import Crop, Integers

_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""Right, down, left, up, as x and y."""


def outline(crop: Crop) -> npt.NDArray[np.float64]:
    """The outer outline of the largest connected part of a mask.

    It runs along the edges of the pixels, so that the polygon has exactly the pixels of that part, but for holes, which
    are filled. A line through the centers of the border's pixels would lose half a pixel on each side.

    Returns:
        (P, 2) x and y of the corners, clockwise in the image, without repetition; (0, 2) for an empty mask.

    >>> outline(Crop(2, 5, np.ones((1, 3), dtype=bool))).tolist()
    [[5.0, 2.0], [8.0, 2.0], [8.0, 3.0], [5.0, 3.0]]
    """
    rings = _rings(np.pad(crop.bitmap, 1))
    if not rings:
        return np.zeros((0, 2))
    largest = max(rings, key=_area)
    before, after = np.roll(largest, 1, axis=0), np.roll(largest, -1, axis=0)
    corners = ((largest - before) != (after - largest)).any(axis=1)
    found: npt.NDArray[np.float64] = largest[corners] + np.array([crop.left - 1.0, crop.top - 1.0])
    return found


def _rings(inside: npt.NDArray[np.bool_]) -> list[Integers]:
    """The closed lines (P, 2) along the pixels' edges, with the mask at their right; diagonal neighbors are apart."""
    neighbors = (np.roll(inside, 1, 0), np.roll(inside, -1, 1), np.roll(inside, -1, 0), np.roll(inside, 1, 1))
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (other, (right, down)) in enumerate(zip(neighbors, starts, strict=True)):
        rows, columns = np.nonzero(inside & ~other)
        for x, y in zip((columns + right).tolist(), (rows + down).tolist(), strict=True):
            leaving.setdefault((x, y), []).append(direction)
    rings = []
    while leaving:
        first = place = next(iter(leaving))
        direction, points = leaving[place][0], []
        while place in leaving:
            ways = leaving[place]
            # At a corner where two pixels touch, the line turns right, and so stays at its own pixel.
            direction = next(way for way in ((direction + 1) % 4, direction, (direction - 1) % 4) if way in ways)
            ways.remove(direction)
            if not ways:
                del leaving[place]
            points.append(place)
            place = (place[0] + int(_STEPS[direction][0]), place[1] + int(_STEPS[direction][1]))
            if place == first:
                break
        rings.append(np.array(points, dtype=np.int64))
    return rings


def _area(ring: Integers) -> int:
    """Twice the area, negative for the outline of a hole."""
    x, y = ring.T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())
