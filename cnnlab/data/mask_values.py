"""From what stands in a mask's file to classes: numbers, or colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.imaging import ImageError

Value = int | Sequence[int]
"""A grey value or number of a palette, or a colour (red, green, blue), each 0..255."""


class MaskValues:
    """Which value of a mask is which class.

    Args:
        values: The value of each class, in the order of the classes: numbers for all of them, or colours for all.
        ignored: The value of pixels that count for nothing; None if all are of a class.
        ignore_index: What those become.

    Raises:
        InputError: If numbers and colours are mixed, or if two classes have the same value.

    >>> MaskValues([0, 255], None, 7).classes(np.array([[0, 255]]), "a.png").tolist()
    [[0, 1]]
    >>> MaskValues([[255, 0, 0]], [0, 0, 0], 7).classes(np.array([[[255, 0, 0], [0, 0, 0]]]), "a.png").tolist()
    [[0, 7]]
    """

    def __init__(self, values: Sequence[Value], ignored: Value | None, ignore_index: int) -> None:
        known = [*values, *([ignored] if ignored is not None else [])]
        self.coloured = not isinstance(known[0], int)
        codes = [_code(value) for value in known]
        if any(isinstance(value, int) == self.coloured for value in known):
            raise InputError(f"data.mask_values {known} are partly numbers and partly colours: give one kind")
        if len(set(codes)) < len(codes):
            raise InputError(f"data.mask_values and data.ignore_index name a value twice: {known}")
        order = np.argsort(codes)
        self._codes = np.array(codes)[order]
        self._classes = np.array([*range(len(values)), ignore_index][: len(codes)])[order]

    def classes(self, mask: npt.NDArray[np.integer], path: str) -> npt.NDArray[np.int64]:
        """The class of each pixel.

        Args:
            mask: (H, W), or (H, W, 3) with colours.
            path: The file, for errors.

        Returns:
            (H, W), 0..K-1 or ignore_index.

        Raises:
            ImageError: If it has values that are none of a class, or colours where numbers were expected.
        """
        if (mask.ndim == 3) != self.coloured:
            has, wants = ("colours", "numbers") if mask.ndim == 3 else ("numbers", "colours [red, green, blue]")
            raise ImageError(
                f"{path}: the mask has {has}, but its classes are known by {wants}: say in data.mask_values which "
                "value is which class"
            )
        codes = mask.astype(np.int64) @ [65536, 256, 1] if self.coloured else mask
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        strange = self._codes[places] != codes
        if strange.any():
            raise ImageError(self._stranger(codes[strange], path))
        found: npt.NDArray[np.int64] = self._classes[places]
        return found

    def _stranger(self, codes: npt.NDArray[np.int64], path: str) -> str:
        found, counts = np.unique(codes, return_counts=True)
        named = ", ".join(
            f"{self._shown(code)} ({count:,} pixels)" for code, count in zip(found[:5], counts, strict=False)
        )
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        known = ", ".join(map(self._shown, self._codes[:12])) + (", ..." if len(self._codes) > 12 else "")
        return (
            f"{path}: the mask has {named}{more}, expected {known}: mend it, or say in data.mask_values which value is "
            "which class, and in data.ignore_index which counts for nothing"
        )

    def _shown(self, code: int) -> str:
        return str([int(code) >> 16, int(code) >> 8 & 255, int(code) & 255] if self.coloured else int(code))


def _code(value: Value) -> int:
    if isinstance(value, int):
        return value
    if len(value) != 3 or not all(0 <= level <= 255 for level in value):
        raise InputError(f"data.mask_values: {list(value)} is no colour, expected red, green and blue, each 0..255")
    red, green, blue = value
    return red << 16 | green << 8 | blue
