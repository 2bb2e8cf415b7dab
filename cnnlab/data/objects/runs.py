"""Run-length masks in COCO's compressed text: written, checked and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def compress(counts: Iterable[int]) -> bytes:
    """COCO's text of a mask's runs: five bits a character.

    From the fourth run on, the change since the last but one is written.

    Args:
        counts: The lengths of the runs, column by column, of pixels outside first.

    >>> compress([6, 1, 40, 4, 5, 4, 5, 4, 21])
    b'61X13mN000`0'
    """
    counts = list(counts)
    text = bytearray()
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append((bits | (32 if more else 0)) + 48)
            if not more:
                break
    return bytes(text)


def decompress(text: bytes) -> Ints:
    """The lengths of the runs in COCO's text: see compress.

    Raises:
        ValueError: If the text is broken.

    >>> decompress(b"61X13mN000`0").tolist()
    [6, 1, 40, 4, 5, 4, 5, 4, 21]
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("the text is broken")
    starts = np.flatnonzero(np.r_[True, last[:-1]])
    lengths = np.diff(np.r_[starts, len(codes)])
    if lengths.max() > 8:
        raise ValueError("the text has a run longer than any image")
    within = np.arange(len(codes)) - np.repeat(starts, lengths)
    values: Ints = np.add.reduceat((codes & 31) << (5 * within), starts)
    values -= ((codes[last] & 16) != 0) * (np.int64(1) << (5 * lengths))
    for first in (1, 2):  # Each run from the fourth on is added to the last but one.
        values[first::2] = np.cumsum(values[first::2])
    return values


def problem_of(counts: Ints | Sequence[int], size: tuple[int, int]) -> str:
    """What is wrong with a mask's runs: "" if nothing.

    Args:
        counts: The lengths of the runs.
        size: The height and width of the mask.
    """
    values = np.asarray(counts, np.int64)
    if len(values) and values.min() < 0:
        return f"a run of its mask is {values.min()}"
    if values.sum() != size[0] * size[1]:
        return f"the runs of its mask have {values.sum():,} pixels, expected {size[0]} x {size[1]}"
    return ""


def bounds(counts: Ints, height: int) -> tuple[float, float, float, float]:
    """The box x1, y1, x2, y2 around a mask, of zero size if the mask has no pixel.

    Args:
        counts: The lengths of the runs.
        height: The height of the mask.
    """
    ends = np.cumsum(counts)
    first, last = ends[:-1:2], ends[1::2] - 1
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        return 0.0, 0.0, 0.0, 0.0
    whole = bool((first // height != last // height).any())  # A run that goes on in the next column.
    top, bottom = (0, height) if whole else (int((first % height).min()), int((last % height).max()) + 1)
    return float(first[0] // height), float(top), float(last[-1] // height + 1), float(bottom)
