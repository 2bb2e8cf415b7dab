"""Small masks, as networks return them, in their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.rle.runs import Crop, Integers, Size


def paste(probabilities: npt.NDArray[Any], box: Sequence[float], size: Size, threshold: float = 0.5) -> Crop:
    """Resample the small mask of one object into its image, bilinearly; beyond its cells it is 0.

    Args:
        probabilities: (h, w), float 0..1 or uint8 0..255; the centers of its cells lie evenly in the box.
        box: x1, y1, x2, y2 of this grid in pixels of the image; it may reach outside.
        size: The image's (height, width).
        threshold: Pixels of at least this probability are inside, 0..1.

    Returns:
        The mask within the pixels whose centers are in the box; it is empty if there are none.

    Raises:
        InputError: The box is not finite.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise InputError(f"the box of a mask must be finite, not {[x1, y1, x2, y2]}")
    grid = np.asarray(probabilities)
    level = threshold * 255 if grid.dtype == np.uint8 else threshold
    top, row, down = _samples(y1, y2, size[0], grid.shape[0])
    left, column, right = _samples(x1, x2, size[1], grid.shape[1])
    if not len(row) or not len(column):
        return Crop(0, 0, np.zeros((0, 0), dtype=bool))
    grid = np.pad(grid.astype(np.float64), 1)
    steps = np.diff(grid, axis=0, append=grid[-1:])
    lines = grid[row] + down[:, None] * steps[row]
    steps = np.diff(lines, axis=1, append=lines[:, -1:])
    return Crop(top, left, lines[:, column] + right * steps[:, column] >= level)


def _samples(start: float, stop: float, length: int, cells: int) -> tuple[int, Integers, npt.NDArray[np.float64]]:
    """The first pixel whose center is in start..stop; the cell of the framed grid before each, and how far beyond."""
    if not stop > start:
        return 0, np.zeros(0, dtype=np.int64), np.zeros(0)
    first, last = (int(np.ceil(min(max(edge - 0.5, 0.0), length))) for edge in (start, stop))
    where = (np.arange(first, last) + 0.5 - start) * (cells / (stop - start)) + 0.5
    cell = where.astype(np.int64)
    return first, cell, (where - cell).astype(np.float64)
