"""Mask files: which belongs to which image, and the mapping from their values (numbers or colors) to classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnnlab.data.annotations import ClassMask
from cnnlab.data.listing import Sample, read_samples, split_folders
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, ImageSource, list_images, read_mask

Value = int | Sequence[int]
"""A gray value or palette index, or a color (red, green, blue), each 0..255."""
_ENDINGS = ("", "_mask", "_gt", "_label", "_labels")
"""What may follow the image's name in the mask's name."""


def list_pairs(root: Path) -> list[Sample]:
    """List ROOT/images/SPLIT/**/NAME and ROOT/masks/SPLIT/**/NAME, or the same without splits.

    A mask has its image's name, optionally followed by "_mask" or the like, and any image file extension. The split is
    "" if none has been decided.

    Raises:
        InputError: If a folder is missing, if an image has no mask or several, or if there are no images.
    """
    images, masks = root / "images", root / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}: data.root {root} must have the folders images and masks, each with the "
                "folders train, val and test or all files together (or give a table of images and masks: data.csv)"
            )
    stems: dict[Path, list[str]] = {}
    for path in list_images(masks):
        stems.setdefault(path.relative_to(masks).with_suffix(""), []).append(str(path))
    samples: list[Sample] = []
    lacking: list[str] = []
    for split, folder in (split_folders(images, ()) or {"": images}).items():
        for path in list_images(folder):
            stem = path.relative_to(images).with_suffix("")
            candidates = [mask for ending in _ENDINGS for mask in stems.get(stem.with_name(stem.name + ending), ())]
            if len(candidates) > 1:
                raise InputError(f"{path} has several masks, {', '.join(candidates)}: keep one")
            lacking += [] if candidates else [f"{path} (expected as {masks / stem}.png)"]
            samples.append(Sample(str(path), split=split, mask="".join(candidates)))
    if lacking:
        raise InputError(f"{len(lacking)} of {len(samples)} images have no mask: " + ", ".join(lacking[:5]))
    if not samples:
        raise InputError(f"{images} has no images")
    return samples


def list_pair_table(table: Path, root: Path) -> list[Sample]:
    """List the images of a CSV file with the columns path and mask (relative to root), and optionally split and group.

    Raises:
        InputError: If the file or a column is missing, if a row has no mask, or if its split is unknown.
    """
    samples = []
    for place, row, sample in read_samples(table, root, ("path", "mask")):
        if not row["mask"]:
            raise InputError(f"{place}: {row['path']} has no mask")
        samples.append(replace(sample, mask=str(root / row["mask"])))
    return samples


class MaskValues:
    """The mapping from the values of a mask to classes.

    Args:
        values: The value of each class, in the order of the classes: numbers for all of them, or colors for all.
        ignored: The value of pixels without a class; None if all have one.
        ignore_index: The class number of those pixels.

    Raises:
        InputError: If numbers and colors are mixed, if two values are equal, or if a color is wrong.

    >>> MaskValues([0, 255], None, 7).classes(np.array([[0, 255]]), "a.png").tolist()
    [[0, 1]]
    >>> MaskValues([[255, 0, 0]], [0, 0, 0], 7).classes(np.array([[[255, 0, 0], [0, 0, 0]]]), "a.png").tolist()
    [[0, 7]]
    """

    def __init__(self, values: Sequence[Value], ignored: Value | None, ignore_index: int) -> None:
        known = [*values, *([ignored] if ignored is not None else [])]
        self.colored = not isinstance(known[0], int)
        codes = [_code(value) for value in known]
        if any(isinstance(value, int) == self.colored for value in known):
            raise InputError(f"data.mask_values {known} are partly numbers and partly colors: give one kind")
        if len(set(codes)) < len(codes):
            raise InputError(f"data.mask_values and data.ignore_index name a value twice: {known}")
        order = np.argsort(codes)
        self._codes = np.array(codes)[order]
        self._classes = np.array([*range(len(values)), ignore_index][: len(codes)])[order]

    def classes(self, mask: npt.NDArray[np.integer], path: str) -> npt.NDArray[np.int64]:
        """The class of each pixel of a mask (H, W), or (H, W, 3) with colors: (H, W), 0..K-1 or ignore_index.

        Raises:
            ImageError: If it has values without a class, or if it has colors instead of numbers or the reverse.
        """
        if (mask.ndim == 3) != self.colored:
            has, wants = ("colors", "numbers") if mask.ndim == 3 else ("numbers", "colors [red, green, blue]")
            raise ImageError(
                f"{path}: the mask has {has}, but its classes are known by {wants}: say in data.mask_values which "
                "value is which class"
            )
        codes = mask.astype(np.int64) @ [65536, 256, 1] if self.colored else mask
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[places] != codes
        if unknown.any():
            raise ImageError(self._unknown_values(codes[unknown], path))
        found: npt.NDArray[np.int64] = self._classes[places]
        return found

    def _unknown_values(self, codes: npt.NDArray[np.int64], path: str) -> str:
        found, counts = np.unique(codes, return_counts=True)
        named = ", ".join(
            f"{self._shown(code)} ({count:,} pixels)" for code, count in zip(found[:5], counts, strict=False)
        )
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        known = ", ".join(map(self._shown, self._codes[:12])) + (", ..." if len(self._codes) > 12 else "")
        return (
            f"{path}: the mask has {named}{more}, expected {known}: correct it, or say in data.mask_values which value "
            "is which class, and in data.ignore_index which counts for nothing"
        )

    def _shown(self, code: int) -> str:
        return str([int(code) >> 16, int(code) >> 8 & 255, int(code) & 255] if self.colored else int(code))


def _code(value: Value) -> int:
    if isinstance(value, int):
        return value
    if len(value) != 3 or not all(0 <= level <= 255 for level in value):
        raise InputError(f"data.mask_values: {list(value)} is no color, expected red, green and blue, each 0..255")
    red, green, blue = value
    return red << 16 | green << 8 | blue


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
    draws = ClassMask.draws

    def read(self, path: str) -> Tensor:
        """The classes (H, W) int64 in a mask's file.

        Raises:
            ImageError: If it cannot be read, or if it has values without a class.
        """
        return torch.from_numpy(self.values.classes(read_mask(path), path))

    def __call__(self, index: int, image: ImageSource) -> ClassMask:
        """The mask of an image; ignore_index everywhere if it has none.

        Raises:
            ImageError: If it cannot be read, or if it differs in size from the image.
        """
        path = self.paths[index]
        classes = self.read(path) if path else torch.full(image.size, self.ignore_index)
        if tuple(classes.shape) != image.size:
            raise ImageError(
                f"{getattr(image, 'path', 'an image')} has {image.size[0]} x {image.size[1]} pixels (height x width), "
                f"its mask {path} {classes.shape[0]} x {classes.shape[1]}: make them equal"
            )
        return ClassMask(classes, self.ignore_index, self.rare)
