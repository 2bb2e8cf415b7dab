"""Masks as text: COCO's compressed form, and its plain lists of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnlab.errors import InputError
from cnnlab.rle.runs import Integers, Rle, Size, check_counts, checked_size, places

_GROUP_BITS = 5
_MOST_GROUPS = 7
"""A count of 32 bits takes at most 7 characters of 5 bits each."""


def from_counts(counts: Sequence[int], size: Size) -> Rle:
    """A mask from COCO's uncompressed list of counts.

    Raises:
        InputError: A count is negative or no whole number, or their sum is not height x width.
    """
    size = checked_size(size)
    try:
        exact = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a mask's counts must be whole numbers ({error})") from error
    if exact.ndim != 1 or not np.isfinite(exact).all() or (exact != np.floor(exact)).any():
        raise InputError("a mask's counts must be whole numbers")
    check_counts(exact, np.array([len(exact)]), [size])
    return Rle(size, exact.astype(np.uint32))


def from_text(text: bytes | str, size: Size) -> Rle:
    """A mask from COCO's compressed text; see from_texts.

    >>> from_text(b"22", (2, 2)).counts.tolist()
    [2, 2]
    """
    return from_texts([text], [size])[0]


def from_texts(texts: Sequence[bytes | str], sizes: Sequence[Size]) -> list[Rle]:
    """Masks from COCO's compressed texts.

    A count is written as groups of five bits with a sign, the lowest first. From the fourth on, it is the difference
    to the last but one.

    Args:
        texts: N compressed masks.
        sizes: Their images' (height, width).

    Raises:
        InputError: A text is broken, or its counts are negative, or their sum is not height x width.
    """
    sizes = [checked_size(size) for size in sizes]
    pieces = [text.encode("latin-1", "replace") if isinstance(text, str) else bytes(text) for text in texts]
    if not pieces:
        return []
    codes = np.frombuffer(b"".join(pieces), dtype=np.uint8).astype(np.int64) - 48
    stops = np.cumsum([len(piece) for piece in pieces])
    last = codes & 32 == 0
    whole = all(len(piece) > 0 for piece in pieces) and bool(last[stops - 1].all())
    if not whole or ((codes < 0) | (codes > 63)).any():
        bad = next(piece for piece in pieces if not _is_text(piece))
        raise InputError(f"{_shown(bad)} is no compressed mask: a character is wrong, or the end is missing")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    group = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if group.max() >= _MOST_GROUPS:
        raise InputError("a compressed mask has a count of more than 32 bits")
    values = np.add.reduceat((codes & 31) << (_GROUP_BITS * group), starts)
    values -= np.where(codes[ends] & 16, 1 << (_GROUP_BITS * (group[ends] + 1)), 0)
    lengths = np.diff(np.searchsorted(ends, stops, side="left"), prepend=0)
    counts = _undo_differences(values, lengths)
    check_counts(counts, lengths, sizes)
    parts = np.split(counts.astype(np.uint32), np.cumsum(lengths)[:-1])
    return [Rle(size, part) for size, part in zip(sizes, parts, strict=True)]


def to_text(mask: Rle) -> bytes:
    """COCO's compressed text of a mask.

    >>> to_text(from_counts([0, 1, 3, 1, 3, 1], (3, 3)))
    b'013000'
    """
    return to_texts([mask])[0]


def to_texts(masks: Sequence[Rle]) -> list[bytes]:
    """COCO's compressed texts of masks."""
    if not masks:
        return []
    lengths = np.array([len(mask.counts) for mask in masks])
    counts = np.concatenate([mask.counts for mask in masks]).astype(np.int64)
    place = places(lengths)
    values = counts.copy()
    later = np.flatnonzero(place > 2)
    values[later] -= counts[later - 2]
    # n groups hold -2^(5n - 1) up to 2^(5n - 1) - 1.
    limits = 1 << (_GROUP_BITS * np.arange(1, _MOST_GROUPS + 1) - 1)
    groups = 1 + np.searchsorted(limits, np.where(values < 0, ~values, values), side="right")
    shift = places(groups)
    codes = (np.repeat(values, groups) >> (_GROUP_BITS * shift)) & 31
    codes += np.where(shift < np.repeat(groups, groups) - 1, 32, 0) + 48
    text = codes.astype(np.uint8).tobytes()
    stops = np.cumsum(groups)[np.cumsum(lengths) - 1].tolist()
    return [text[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _undo_differences(values: Integers, lengths: Integers) -> Integers:
    """Counts from differences to the last but one, which begin with each mask's fourth value."""
    place = places(lengths)
    firsts = np.cumsum(lengths) - lengths
    counts = values.copy()
    for chain in ((place % 2 == 1), (place % 2 == 0) & (place > 0)):
        sums = np.cumsum(np.where(chain, values, 0))
        base = np.concatenate([[0], sums])[firsts]
        counts[chain] = (sums - np.repeat(base, lengths))[chain]
    return counts


def _is_text(piece: bytes) -> bool:
    codes = np.frombuffer(piece, dtype=np.uint8).astype(int) - 48
    return len(piece) > 0 and bool(((codes >= 0) & (codes < 64)).all()) and not codes[-1] & 32


def _shown(piece: bytes) -> str:
    return repr(piece if len(piece) <= 40 else piece[:40] + b"...")
