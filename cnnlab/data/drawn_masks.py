"""Masks that are drawn when they are read: from the polygons and run lengths of objects in a COCO file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnlab import rle, tree
from cnnlab.data.mask_files import has_masks
from cnnlab.data.mask_values import Mask
from cnnlab.data.objects import ObjectListing, ObjectTable, list_objects
from cnnlab.data.objects.coco_files import find_jsons
from cnnlab.data.objects.places import Files
from cnnlab.data.samples import SampleIndex
from cnnlab.errors import InputError, nearest
from cnnlab.image_files import ImageError, listed

BACKGROUND = "background"
"""The class 0, of pixels without an object, unless it is called otherwise."""


@dataclass(eq=False)
class DrawnMasks:
    """Reads the mask of an image: the values of its objects' classes, the smaller objects on top, and 0 elsewhere."""

    table: ObjectTable
    rows: dict[str, int]
    """The row of each image's objects, by its path."""
    values: npt.NDArray[np.int32]
    """(K,) the value of each class of the objects."""

    def __call__(self, path: str, colored: bool = False) -> Mask:
        """Draw the mask of an image.

        Args:
            path: The image.
            colored: As for masks in files; drawn ones have no colors.

        Raises:
            ImageError: If a shape does not fit the image.
        """
        row = self.rows[path]
        size = (int(self.table.sizes[row, 0]), int(self.table.sizes[row, 1]))
        own = self.table.of(row, size, path)
        try:
            masks = [
                (value, rle.from_polygons(shape, size) if isinstance(shape, list) else rle.from_text(shape, size))
                for value, shape in zip(self.values[own.labels].tolist(), own.shapes, strict=True)
                if shape is not None and value
            ]
        except InputError as error:
            raise ImageError(f"{path}: {error}") from error
        values = np.zeros(size, np.int32)
        for place in np.argsort(-rle.areas([mask for _, mask in masks]), kind="stable").tolist() if masks else ():
            value, mask = masks[place]
            crop = rle.crop_of(mask)
            rows, columns = crop.bitmap.shape
            values[crop.top : crop.top + rows, crop.left : crop.left + columns][crop.bitmap] = value
        return Mask(values, lossy=False, orientation=1, palette=np.zeros((0, 3), np.uint8))


@dataclass
class DrawnListing:
    """Images whose masks are drawn."""

    index: SampleIndex
    """A sample's mask is its own path."""
    class_names: list[str]
    """(K,) in the order of their values; the first one is the background."""
    masks: DrawnMasks


def list_drawn(
    root: Path, class_names: Sequence[str] | None = None, on_error: Literal["raise", "skip"] = "raise"
) -> DrawnListing | None:
    """List the images of COCO files, for which there are no masks: see objects.coco_files.find_jsons.

    Args:
        root: The folder.
        class_names: The name of the background, then categories in the wanted order; all, in the data's order, if None.
            Objects of other categories are background.
        on_error: What to do with objects that are wrong or have no outline, and with images that are missing: raise,
            or leave them out.

    Returns:
        None if there are masks, or no COCO file.

    Raises:
        InputError: See objects.list_objects; or if objects have no outlines, or the first name is a category's.
    """
    if not tree.is_dir(root) or has_masks(root) or not find_jsons(root, Files()):
        return None
    found = list_objects(root, format="coco", on_error=on_error)
    names = [BACKGROUND, *found.class_names] if class_names is None else list(class_names)
    values = np.array([names.index(name) if name in names[1:] else 0 for name in found.class_names], np.int32)
    _check_names(names, found.class_names)
    samples = [replace(sample, mask=sample.path) for sample in found.samples]
    notes = [*found.notes, *_left_out(found, values, on_error)]
    layout = f"{found.layout}; where objects overlap, the smaller one counts"
    masks = DrawnMasks(found.table, {sample.path: sample.objects for sample in samples}, values)
    return DrawnListing(SampleIndex(samples, notes=notes, layout=layout), names, masks)


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Check that the first name is the background's, and that the others are categories."""
    if names[0] in known:
        raise InputError(
            f"data.class_names begins with the category {names[0]!r}: the first name is for pixels without an object, "
            f"such as '[{BACKGROUND}, {', '.join(names)}]'"
        )
    if strange := [name for name in names[1:] if name not in known]:
        raise InputError(f"data.class_names: the data have no class {strange[0]!r}: {nearest(strange[0], known)}")


def _left_out(found: ObjectListing, values: npt.NDArray[np.int32], on_error: str) -> list[str]:
    """Notes about objects that are not drawn.

    Raises:
        InputError: If some have no outline and ``on_error`` is raise, or if none has one.
    """
    table, notes = found.table, []
    if others := [name for name, value in zip(found.class_names, values.tolist(), strict=True) if not value]:
        notes.append(f"objects of classes that data.class_names leaves out are background: {listed(others)}")
    outlined = 0 if table.shapes is None else sum(table.shapes.kinds)
    if lacking := len(table.labels) - outlined:
        text = (
            f"{lacking:,} of {len(table.labels):,} objects have a box and no outline, so no mask can be drawn of them"
        )
        if on_error == "raise" or not outlined:
            raise InputError(f"{text}: add their segmentation, or leave them out with --data.on_error skip")
        notes.append(f"{text}: they are background")
    return notes
