"""Masks as runs, and what several lists that lie one behind the other need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError

Size = tuple[int, int]
Integers = npt.NDArray[np.int64]

_LARGEST = 2**31 - 1
"""The most pixels of an image: pycocotools counts with 32 bits."""


class Rle(NamedTuple):
    """The mask of one object.

    Args:
        size: The image's (height, width).
        counts: (R,) uint32, the lengths of the runs, column by column; the first one is outside and may be 0.
    """

    size: Size
    counts: npt.NDArray[np.uint32]


class Crop(NamedTuple):
    """The mask of one object, within its bounding box.

    Args:
        top: The box's first row.
        left: The box's first column.
        bitmap: (h, w) bool; (0, 0) if the mask is empty.
    """

    top: int
    left: int
    bitmap: npt.NDArray[np.bool_]


def places(lengths: Integers) -> Integers:
    """0, 1, ... for each of the lists that lie one behind the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def inner_runs(masks: Sequence[Rle]) -> tuple[Integers, Integers, Integers]:
    """The runs inside masks that have pixels: the mask that each belongs to, its start and its end."""
    lengths = np.array([len(mask.counts) for mask in masks], dtype=np.int64)
    counts = np.concatenate([np.zeros(0, dtype=np.int64), *(mask.counts for mask in masks)]).astype(np.int64)
    owner = np.repeat(np.arange(len(masks)), lengths)
    ends = np.cumsum(counts)
    firsts = np.cumsum(lengths) - lengths
    before = np.concatenate([[0], ends])[firsts]
    ends -= before[owner]
    inside = (places(lengths) % 2 == 1) & (counts > 0)
    return owner[inside], (ends - counts)[inside], ends[inside]


def chunks(weights: Integers, largest: int) -> list[slice]:
    """Divide a list into slices that weigh about as much as the largest may, or a little more."""
    part = np.cumsum(weights) // largest
    stops = [*(np.flatnonzero(np.diff(part)) + 1).tolist(), len(weights)]
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def from_changes(positions: Integers, size: Size) -> Rle:
    """A mask from the positions, rising and all different, at which outside and inside change."""
    total = size[0] * size[1]
    edges = np.concatenate([[0], positions[positions < total], [total]])
    return Rle(size, np.diff(edges).astype(np.uint32))


def odd_only(positions: Integers) -> Integers:
    """The positions that occur an odd number of times, sorted: two changes at one place cancel."""
    values, times = np.unique(positions, return_counts=True)
    odd: Integers = values[times % 2 == 1]
    return odd


def checked_size(size: Sequence[int]) -> Size:
    """The (height, width) of a mask's image.

    Raises:
        InputError: It has no pixel, or too many.
    """
    height, width = (int(side) for side in size)
    if height < 1 or width < 1 or height * width > _LARGEST:
        raise InputError(f"a mask's image cannot have {height} x {width} pixels (height x width)")
    return height, width


def check_counts(counts: npt.NDArray[Any], lengths: Integers, sizes: Sequence[Size]) -> None:
    """Check the counts of masks that lie one behind the other."""
    if (counts < 0).any():
        raise InputError(f"a mask has a negative count: {int(counts[counts < 0][0])}")
    totals = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=counts, minlength=len(lengths))
    for total, (height, width) in zip(totals.tolist(), sizes, strict=True):
        if total != height * width:
            text = f"a mask's counts sum to {int(total)}, not to {height} x {width} = {height * width} pixels"
            raise InputError(f"{text}; its size is given as height, width")
