"""What masks have in common, counted from their runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnlab.errors import InputError
from cnnlab.rle.runs import Integers, Rle, chunks, inner_runs, places

_CHUNK = 1 << 21
"""So many runs are compared at once, so that memory stays small."""


def intersections(first: Sequence[Rle], second: Sequence[Rle], pairs: Integers) -> Integers:
    """The number of pixels that pairs of masks have in common.

    Args:
        first: Masks.
        second: Masks.
        pairs: (P, 2), an index into the first masks, and one into the second; both masks are of one image's size.

    Returns:
        (P,) pixels.

    Raises:
        InputError: The masks of a pair belong to images of different sizes.
    """
    sizes = [np.array([mask.size for mask in masks], dtype=np.int64).reshape(-1, 2) for masks in (first, second)]
    for i, j in pairs[(sizes[0][pairs[:, 0]] != sizes[1][pairs[:, 1]]).any(axis=1)][:1]:
        raise InputError(f"masks of different sizes, {first[i].size} and {second[j].size}, cannot be compared")
    owner, starts, ends = inner_runs(first)
    run_of = np.searchsorted(owner, np.arange(len(first) + 1))
    runs = np.diff(run_of)[pairs[:, 0]]
    before = _Covered(second)
    found = np.zeros(len(pairs), dtype=np.int64)
    for part in chunks(runs, _CHUNK):
        repeats = runs[part]
        pair = np.repeat(np.arange(part.start, part.stop), repeats)
        run = run_of[pairs[pair, 0]] + places(repeats)
        common = before(pairs[pair, 1], ends[run]) - before(pairs[pair, 1], starts[run])
        found += np.bincount(pair, weights=common, minlength=len(pairs)).astype(np.int64)
    return found


class _Covered:
    """How many pixels of a mask lie before a position, for many masks and positions at once."""

    def __init__(self, masks: Sequence[Rle]) -> None:
        owner, starts, ends = inner_runs(masks)
        pixels = np.array([height * width for height, width in (mask.size for mask in masks)], dtype=np.int64)
        # All masks lie one behind the other.
        self._base = np.cumsum(pixels) - pixels
        self._starts = np.concatenate([[-1], starts + self._base[owner]])
        self._lengths = np.concatenate([[0], ends - starts])
        self._sums = np.cumsum(self._lengths) - self._lengths

    def __call__(self, mask: Integers, position: Integers) -> Integers:
        """(Q,) pixels of all masks before positions (Q,) of masks (Q,)."""
        place = self._base[mask] + position
        run = np.searchsorted(self._starts, place, side="right") - 1
        found: Integers = self._sums[run] + np.minimum(place - self._starts[run], self._lengths[run])
        return found
