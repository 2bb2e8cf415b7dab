"""Masks from bitmaps and back; their areas and bounding boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.rle.runs import Crop, Integers, Rle, Size, checked_size, from_changes, inner_runs, odd_only


def encode(bitmap: npt.NDArray[Any]) -> Rle:
    """Encode a bitmap (H, W); every value but 0 is inside.

    >>> encode(np.array([[0, 1], [0, 1]])).counts.tolist()
    [2, 2]
    """
    if bitmap.ndim != 2:
        raise InputError(f"a mask has two dimensions, height and width, not the shape {bitmap.shape}")
    size = checked_size(bitmap.shape)
    flat = bitmap.astype(bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return from_changes(np.concatenate([[0], changes]) if flat[0] else changes, size)


def encode_crop(crop: Crop, size: Size) -> Rle:
    """Encode a crop of an image of a size (height, width).

    >>> encode_crop(Crop(1, 0, np.array([[True, True]])), (3, 2)).counts.tolist()
    [1, 1, 2, 1, 1]
    """
    height, width = size = checked_size(size)
    rows, columns = crop.bitmap.shape
    if crop.top < 0 or crop.left < 0 or crop.top + rows > height or crop.left + columns > width:
        place = f"{rows} x {columns} pixels at row {crop.top} and column {crop.left}"
        raise InputError(f"a crop of {place} does not lie in an image of {height} x {width} pixels")
    # An empty row above and below each column ends its runs there.
    framed = np.zeros((columns, rows + 2), dtype=bool)
    framed[:, 1:-1] = crop.bitmap.T
    column, row = np.nonzero(framed[:, 1:] != framed[:, :-1])
    positions = (crop.left + column) * height + crop.top + row
    return from_changes(odd_only(positions), size)


def decode(mask: Rle) -> npt.NDArray[np.bool_]:
    """Decode a mask to a bitmap (H, W)."""
    height, width = mask.size
    inside = np.arange(len(mask.counts)) % 2 == 1
    return np.repeat(inside, mask.counts).reshape(width, height).T


def crop_of(mask: Rle) -> Crop:
    """Decode a mask within its bounding box."""
    left, top, columns, rows = (int(value) for value in bounding_boxes([mask])[0])
    height = mask.size[0]
    _, starts, ends = inner_runs([mask])
    changes = np.zeros(columns * height + 1, dtype=np.int8)
    # Runs do not touch unless a count is 0; then one ends where another one starts, and both changes cancel.
    np.add.at(changes, starts - left * height, 1)
    np.add.at(changes, ends - left * height, -1)
    slab = np.cumsum(changes[:-1], dtype=np.int8).astype(bool).reshape(columns, height).T
    return Crop(top, left, slab[top : top + rows])


def areas(masks: Sequence[Rle]) -> Integers:
    """The number of pixels of each mask, (N,)."""
    owner, starts, ends = inner_runs(masks)
    found: Integers = np.bincount(owner, weights=ends - starts, minlength=len(masks)).astype(np.int64)
    return found


def bounding_boxes(masks: Sequence[Rle]) -> Integers:
    """The bounding box of each mask, (N, 4): x, y, width, height in pixels, zeros if it is empty."""
    boxes = np.zeros((len(masks), 4), dtype=np.int64)
    owner, starts, ends = inner_runs(masks)
    if not len(owner):
        return boxes
    height = np.array([mask.size[0] for mask in masks])[owner]
    left, top = np.divmod(starts, height)
    right, bottom = np.divmod(ends - 1, height)
    top, bottom = np.where(left < right, 0, top), np.where(left < right, height - 1, bottom)
    some, first = np.unique(owner, return_index=True)
    lowest = [np.minimum.reduceat(values, first) for values in (left, top)]
    highest = [np.maximum.reduceat(values, first) for values in (right, bottom)]
    boxes[some] = np.stack([*lowest, *(high - low + 1 for low, high in zip(lowest, highest, strict=True))], axis=1)
    return boxes
