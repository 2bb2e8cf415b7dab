"""The values of masks (numbers or colors), and the classes that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.annotations import ClassMask
from cnnlab.errors import InputError
from cnnlab.image_files import ImageError, explain, open_file
from cnnlab.imaging import ImageSource, read_orientation, turn_upright

Value = int | Sequence[int | Sequence[int]]
"""A gray value or palette index, a color (red, green, blue), each 0..255, or several numbers or colors."""
NO_VALUE = 255
"""The ignored number by default; it stands for nothing where classes are known by colors."""
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
"""Formats whose values may differ from those that were saved."""
_EXPECTED = (
    "expected for each class a number, a color [red, green, blue], or a list of several of one kind, such as "
    "'[0, [1, 2]]' or '[[0, 0, 0], [[255, 0, 0], [0, 255, 0]]]'"
)


class Mask(NamedTuple):
    """A mask as it is in its file, but upright."""

    values: npt.NDArray[np.int32]
    """(H, W), or (H, W, 3) of colors."""
    lossy: bool
    """Whether its format may change values."""
    orientation: int
    """The Exif orientation by which it was turned; 1, not at all, to 8."""
    palette: npt.NDArray[np.uint8]
    """(N, 3) the colors of its numbers; (0, 3) if it has no palette."""


MaskOpener = Callable[[str, bool], Mask]
"""Reads a mask by its path; and whether colors count: see read_mask."""


def read_mask(path: str, colored: bool = False) -> Mask:
    """Read the values of a mask.

    Args:
        path: A gray image (8 or 16 bits), a palette image, or an RGB image.
        colored: Whether colors count, for palettes and gray images too. Otherwise numbers count, also those of an RGB
            image whose channels are equal.

    Raises:
        ImageError: If the file cannot be read, or if it has transparency or another kind of pixels.
    """
    try:
        image, content = open_file(path)
        orientation, lossy = read_orientation(image, content), image.format in _LOSSY
        image = _opaque(image, path)
        if image.mode not in ("1", "L", "P", "RGB") and not image.mode.startswith("I"):
            kind = "floats" if image.mode == "F" else image.mode
            raise ImageError(
                f"{path}: the mask's pixels are {kind}: save it as a PNG of whole numbers or of RGB colors"
            )
        palette = np.array(image.getpalette("RGB") if image.mode == "P" else [], dtype=np.uint8).reshape(-1, 3)
        if colored and not image.mode.startswith("I"):
            image = image.convert("RGB")
        values = np.asarray(image)
        if not colored and values.ndim == 3 and _is_gray(values, lossy):
            values = np.asarray(image.convert("L"))
        return Mask(turn_upright(values.astype(np.int32), orientation), lossy, orientation, palette)
    except Exception as error:
        raise explain(path, error) from error


def _is_gray(values: npt.NDArray[np.uint8], lossy: bool) -> bool:
    """Whether the channels are equal; almost, after compression."""
    return int(np.ptp(values, axis=2).max()) <= (8 if lossy else 0)


def _opaque(image: Image.Image, path: str | Path) -> Image.Image:
    """Remove an alpha channel that hides nothing."""
    kinds = {"RGBA": "RGB", "LA": "L", "PA": "P"}
    if image.mode not in kinds:
        return image
    if np.asarray(image.getchannel("A")).min() < 255:
        raise ImageError(
            f"{path}: the mask has transparent pixels, which are of no class: save it without transparency"
        )
    return image.convert(kinds[image.mode])


def color_codes(mask: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The values of a mask as (H, W) numbers: gray values as they are, colors as 0xRRGGBB."""
    codes: npt.NDArray[np.int64] = mask.astype(np.int64)
    return codes @ np.array([65536, 256, 1]) if codes.ndim == 3 else codes


def as_groups(values: Sequence[Any], ignored: Any) -> tuple[bool, list[list[int]], list[int]]:
    """Read the options data.mask_values and data.ignore_index.

    A list of three numbers is a color, unless a class is known by a number, or by a list of another length. Where all
    classes have three numbers, a number may be repeated: [1, 2, 3, 3].

    Args:
        values: For each class a number, a color, or a list of several of one kind; empty if they are not known yet.
        ignored: The same for pixels without a class; None if all have one.

    Returns:
        Whether they are colors; for each class its codes (see color_codes); and those of ignored pixels.

    Raises:
        InputError: If they are none of this, if kinds are mixed, or if a value is named twice.
    """
    colored = len(values) > 0 and all(_is_color(entry) or _are_colors(entry) for entry in values)
    groups = [_codes(entry, colored, "data.mask_values") for entry in values]
    nothing = ignored is None or (colored and ignored == NO_VALUE)
    own = [] if nothing else _codes(ignored, colored, "data.ignore_index")
    known = [code for group in (*groups, own) for code in group]
    if len(set(known)) < len(known):
        raise InputError(
            f"data.mask_values {list(values)} and data.ignore_index {ignored} name a value twice: give each once "
            "(--data.ignore_index null ignores none)"
        )
    return colored, groups, own


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_color(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and all(map(_is_number, value))


def _are_colors(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(_is_color, value))


def _codes(entry: Any, colored: bool, name: str) -> list[int]:
    """The codes of a class, without repetitions."""
    if colored and (_is_color(entry) or _are_colors(entry)):
        colors = [entry] if _is_color(entry) else entry
        for color in colors:
            if not all(0 <= level <= 255 for level in color):
                raise InputError(f"{name}: {list(color)} is no color, expected red, green and blue, each 0..255")
        return list(dict.fromkeys(red << 16 | green << 8 | blue for red, green, blue in colors))
    numbers = [entry] if _is_number(entry) else entry
    if not isinstance(numbers, Sequence) or not numbers or not all(map(_is_number, numbers)) or colored:
        mixed = "partly numbers and partly colors" if colored or _are_colors(entry) else "of another form"
        raise InputError(f"{name} has {entry!r}, so the values are {mixed}: {_EXPECTED}")
    return list(dict.fromkeys(numbers))


def show_code(code: int, colored: bool) -> str:
    """A code as it stands in data.mask_values."""
    return str([int(code) >> 16, int(code) >> 8 & 255, int(code) & 255] if colored else int(code))


class MaskValues:
    """The mapping from the values of a mask to classes.

    Args:
        values: See as_groups.
        ignored: See as_groups.
        ignore_index: The class number of pixels without a class.

    Raises:
        InputError: See as_groups.

    >>> MaskValues([0, [1, 255]], None, 7).classes(np.array([[0, 1, 255]]), "a.png").tolist()
    [[0, 1, 1]]
    >>> MaskValues([[255, 0, 0]], [0, 0, 0], 7).classes(np.array([[[255, 0, 0], [0, 0, 0]]]), "a.png").tolist()
    [[0, 7]]
    """

    def __init__(self, values: Sequence[Value], ignored: Value | None, ignore_index: int) -> None:
        self.colored, groups, own = as_groups(values, ignored)
        pairs = [(code, number) for number, group in enumerate(groups) for code in group]
        self._codes, self._classes = np.array(sorted([*pairs, *((code, ignore_index) for code in own)])).T

    def classes(self, mask: npt.NDArray[np.integer], path: str, nearest: bool = False) -> npt.NDArray[np.int64]:
        """The class of each pixel of a mask (H, W), or (H, W, 3) with colors: (H, W), 0..K-1 or ignore_index.

        Args:
            mask: Its values.
            path: Its file, for errors.
            nearest: Whether a value that is not known stands for the nearest one.

        Raises:
            ImageError: If it has values without a class, or if it has colors instead of numbers or the reverse.
        """
        if (mask.ndim == 3) != self.colored:
            has, wants = ("colors", "numbers") if mask.ndim == 3 else ("numbers", "colors [red, green, blue]")
            raise ImageError(
                f"{path}: the mask has {has}, but its classes are known by {wants}: say in data.mask_values which "
                "value is which class"
            )
        return self.find(color_codes(mask), path, nearest)

    def find(
        self,
        codes: npt.NDArray[np.int64],
        path: str,
        nearest: bool = False,
        counts: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The classes of codes (see color_codes), of the same shape.

        Args:
            codes: The codes.
            path: The mask's file, for errors.
            nearest: Whether a value that is not known stands for the nearest one.
            counts: How many pixels each code stands for; one if None.

        Raises:
            ImageError: If a code has no class.
        """
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[places] != codes
        if unknown.any():
            found, inverse = np.unique(codes[unknown], return_inverse=True)
            if not nearest:
                raise self._unknown(found, np.bincount(inverse, None if counts is None else counts[unknown]), path)
            places[unknown] = self._nearest(found)[inverse]
        made: npt.NDArray[np.int64] = self._classes[places]
        return made

    def _nearest(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """The places of the known values that are nearest to these."""
        known, own = (_levels(values, self.colored) for values in (self._codes, codes))
        found: npt.NDArray[np.intp] = np.stack([np.square(known - levels).sum(axis=1).argmin() for levels in own])
        return found

    def _unknown(self, found: npt.NDArray[np.int64], counts: npt.NDArray[Any], path: str) -> ImageError:
        """The error of a mask that has other values, with their counts."""
        named = ", ".join(
            f"{show_code(code, self.colored)} ({int(count):,} pixels)"
            for code, count in zip(found[:5], counts, strict=False)
        )
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        shown = [show_code(code, self.colored) for code in self._codes[:12]]
        known = ", ".join(shown) + (", ..." if len(self._codes) > 12 else "")
        return ImageError(
            f"{path}: the mask has {named}{more}, expected {known}: correct it, or say in data.mask_values which value "
            "is which class, and in data.ignore_index which counts for nothing"
        )


def _levels(codes: npt.NDArray[np.int64], colored: bool) -> npt.NDArray[np.int64]:
    """Codes as (N, 3) colors, or as (N, 1) numbers."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1) if colored else codes[:, None]


@dataclass(eq=False)
class MaskReader:
    """Reads masks as annotations of their images."""

    paths: Sequence[str]
    """The file of each image's mask; "" if the mask is unknown."""
    values: MaskValues
    ignore_index: int
    """The class number of pixels without a class."""
    rare: float = 0.0
    """See annotations.ClassMask."""
    opener: MaskOpener = read_mask
    """Reads a mask, or draws it."""
    draws = ClassMask.draws

    def read(self, path: str) -> tuple[Tensor, int]:
        """The classes (H, W) int64 in a mask's file, upright, and the orientation by which it was turned.

        Raises:
            ImageError: If it cannot be read, or if it has values without a class.
        """
        mask = self.opener(path, self.values.colored)
        return torch.from_numpy(self.values.classes(mask.values, path, mask.lossy)), mask.orientation

    def __call__(self, index: int, image: ImageSource) -> ClassMask:
        """The mask of an image; ignore_index everywhere if it has none.

        Raises:
            ImageError: If it cannot be read, or if it differs in size from the image.
        """
        path = self.paths[index]
        turned = getattr(image, "orientation", 1)
        classes, own = self.read(path) if path else (torch.full(image.size, self.ignore_index), turned)
        if tuple(classes.shape) != image.size:
            exif = f", as the EXIF orientation is {turned} of the image and {own} of the mask" if turned != own else ""
            raise ImageError(
                f"{getattr(image, 'path', 'an image')} has {image.size[0]} x {image.size[1]} pixels (height x width), "
                f"its mask {path} {classes.shape[0]} x {classes.shape[1]}{exif}: make them equal"
            )
        return ClassMask(classes, self.ignore_index, self.rare)
