"""ObjectTable: the boxes, classes and shapes of the objects of all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.shapes import Floats, Ints, Ring, Shape, Shapes, places, starts
from cnnlab.image_files import ImageError


class ImageObjects(NamedTuple):
    """The objects of one image, in pixels of the upright image; N may be 0."""

    boxes: Floats
    """(N, 4) x1, y1, x2, y2; 0 is the image's left or upper border, and the size is the other one."""
    labels: npt.NDArray[np.int32]
    """(N,) 0..K-1."""
    crowd: npt.NDArray[np.bool_]
    """(N,) whether a box stands for many objects, or is to be ignored for another reason."""
    areas: Floats | None
    """(N,) the areas that the data give, in square pixels; None if they give none."""
    shapes: list[Shape]
    """For each object its rings (P, 2) of x and y, COCO's compressed text of its run-length mask, or None."""


@dataclass(frozen=True)
class ObjectTable:
    """The objects of I images in packed arrays: image i has the objects offsets[i] to offsets[i + 1]."""

    offsets: Ints
    """(I + 1,)"""
    labels: npt.NDArray[np.int32]
    """(N,) 0..K-1."""
    boxes: Floats
    """(N, 4) x1, y1, x2, y2: see ``relative``."""
    relative: bool
    """Whether boxes and shapes are shares of width and height, 0..1; otherwise pixels of the upright image."""
    crowd: npt.NDArray[np.bool_]
    """(N,) see ImageObjects."""
    areas: Floats | None
    """(N,) COCO's own areas in square pixels, by which its metric divides small from large; None without them."""
    sizes: npt.NDArray[np.int32]
    """(I, 2) the declared height and width, 0 if the data do not say."""
    shapes: Shapes | None
    """None if no object has one."""
    image_ids: tuple[int | str, ...] | None = None
    """(I,) COCO's own ids, for files of results; unique in a split."""
    category_ids: tuple[int, ...] | None = None
    """(K,) COCO's own ids of the classes."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Ints:
        """(I,) the objects of each image."""
        return np.diff(self.offsets)

    def labels_of(self, index: int) -> npt.NDArray[np.int32]:
        """The labels of an image's objects."""
        return self.labels[self.offsets[index] : self.offsets[index + 1]]

    def images(self) -> Ints:
        """(N,) the image of each object."""
        return np.repeat(np.arange(len(self)), self.counts)

    def of(self, index: int, size: tuple[int, int], name: str = "the image") -> ImageObjects:
        """The objects of an image.

        Args:
            index: Its row, 0..I-1.
            size: The actual height and width of the upright image.
            name: Its path, for messages.

        Raises:
            ImageError: If the data declare another size.
        """
        self._check_size(index, size, name)
        own = slice(*self.offsets[index : index + 2].tolist())
        scale = np.array([size[1], size[0]] if self.relative else [1, 1], np.float64)
        shapes: list[Shape] = [None] * (own.stop - own.start)
        if self.shapes is not None:
            shapes = [_scaled(self.shapes.of(place), scale) for place in range(own.start, own.stop)]
        areas = None if self.areas is None else self.areas[own]
        return ImageObjects(self.boxes[own] * np.tile(scale, 2), self.labels[own], self.crowd[own], areas, shapes)

    def _check_size(self, index: int, size: tuple[int, int], name: str) -> None:
        height, width = self.sizes[index].tolist()
        if not height or (height, width) == tuple(size):
            return
        declared = f"{name}: its annotations declare {width} x {height} pixels (width x height)"
        if (width, height) == tuple(size):
            raise ImageError(
                f"{declared}, which is the file before its Exif tag turns it; upright it has {size[1]} x {size[0]}: "
                "turn the pixels, remove the tag, and annotate it upright"
            )
        raise ImageError(
            f"{declared}, but it has {size[1]} x {size[0]}: put the annotated file back, or correct its annotations"
        )

    def subset(self, indices: Sequence[int] | Ints) -> ObjectTable:
        """The objects of some images, in this order."""
        rows = np.asarray(indices, np.int64)
        table = self.take(places(self.offsets, rows))
        ids = None if self.image_ids is None else tuple(self.image_ids[row] for row in rows.tolist())
        return replace(table, offsets=starts(self.counts[rows]), sizes=self.sizes[rows], image_ids=ids)

    def take(self, objects: Ints) -> ObjectTable:
        """Keep some objects of all images.

        Args:
            objects: (M,) which, in the order of the images.
        """
        counts = np.bincount(self.images()[objects], minlength=len(self))
        return replace(
            self,
            offsets=starts(counts),
            labels=self.labels[objects],
            boxes=self.boxes[objects],
            crowd=self.crowd[objects],
            areas=None if self.areas is None else self.areas[objects],
            shapes=None if self.shapes is None else self.shapes.take(objects),
        )


def _scaled(shape: Shape, scale: Floats) -> Shape:
    if not isinstance(shape, list) or (scale == 1).all():
        return shape
    rings: list[Ring] = [(ring * scale).astype(np.float32) for ring in shape]
    return rings
