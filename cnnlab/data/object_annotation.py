"""ObjectAnnotation: the boxes and masks of an image's objects, and how they change with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from cnnlab import rle
from cnnlab.data.annotations import Annotation
from cnnlab.data.objects.shapes import Shape
from cnnlab.data.warp import Box, Geometry, Matrix, affine_of, compose, invert, move_points
from cnnlab.objects import Objects, Truth

_LEAST_SIDE = 1.0
"""The shortest side of a box in a training image, in pixels."""
_CORNERS = np.array([[0, 1], [2, 1], [2, 3], [0, 3]])
"""The places of x and y of a box's corners in x1, y1, x2, y2."""


def _identity() -> Matrix:
    return np.array([[1.0, 0, 0], [0, 1, 0]])


@dataclass(frozen=True)
class ObjectAnnotation(Annotation):
    """The objects of an image."""

    boxes: npt.NDArray[np.float64]
    """(M, 4), x1, y1, x2, y2 in pixels of the image."""
    labels: npt.NDArray[np.int64]
    """(M,), 0..K-1."""
    crowd: npt.NDArray[np.bool_]
    """(M,)."""
    size: tuple[int, int]
    """Height and width of the image."""
    shapes: Sequence[Shape] | None = None
    """For each object its shape in the original image, if it has one: polygons, or a run-length mask."""
    least_visible: float = 0.3
    """An object of which a training image shows a smaller share of its box is left out."""
    truth: Truth | None = None
    """The objects in the original image; None after augmentation, or if they are unknown."""
    known: bool = True
    """Whether the objects are known."""
    mask_side: int = 0
    """Height and width of the masks in a batch, each a grid over its object's box; 0 for none."""
    original: tuple[int, int] = (0, 0)
    """Height and width of the original image."""
    affine: Matrix = field(default_factory=_identity)
    """(2, 3), the map from the original image to this one."""
    grids: npt.NDArray[np.uint8] | None = None
    """(M, mask_side, mask_side), see masks(); None as long as they follow from the shapes."""

    draws: ClassVar[int] = 1

    def move_crop(self, crop: Box, numbers: Sequence[float]) -> Box:
        """Move a crop without the center of any object to one of them, each equally likely."""
        if not len(self.boxes):
            return crop
        x, y = ((self.boxes[:, 0] + self.boxes[:, 2]) / 2, (self.boxes[:, 1] + self.boxes[:, 3]) / 2)
        inside = (x >= crop.left) & (x < crop.left + crop.width) & (y >= crop.top) & (y < crop.top + crop.height)
        if inside.any():
            return crop
        chosen = int(numbers[0] * len(self.boxes))
        top, left = (
            min(max(start, min(center - side / 2, length - side)), max(center - side / 2, 0.0))
            for start, center, side, length in (
                (crop.top, float(y[chosen]), crop.height, self.size[0]),
                (crop.left, float(x[chosen]), crop.width, self.size[1]),
            )
        )
        return crop._replace(top=top, left=left)

    def turn(self, quarters: int) -> Self:
        """Turn the boxes."""
        turned = self
        for _ in range(quarters):
            height, width = turned.size
            left, top, right, bottom = turned.boxes.T
            boxes = np.stack([top, width - right, bottom, width - left], axis=1)
            affine = compose(np.array([[0.0, 1, 0], [-1, 0, width]]), turned.affine)
            turned = replace(turned, boxes=boxes, affine=affine, size=(width, height))
        return turned

    def warp(self, geometry: Geometry, size: tuple[int, int]) -> Self:
        """Move the boxes; they are clipped, and those of which too little is visible are left out.

        If the image is rotated, a box follows from the object's outline, where it is known, instead of the box's
        corners, which would make it larger.
        """
        move = affine_of(geometry, size)
        whole = compose(move, self.affine)
        moved = np.zeros_like(self.boxes)
        for number, box in enumerate(self.boxes):
            outline = self._outline(number) if geometry.angle else None
            points = move_points(box[_CORNERS], move) if outline is None else move_points(outline, whole)
            moved[number] = *points.min(axis=0), *points.max(axis=0)
        clipped = moved.clip(0, [size[1], size[0]] * 2)
        sides, before = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
        kept = (sides.prod(axis=1) >= self.least_visible * before.prod(axis=1)) & (sides >= _LEAST_SIDE).all(axis=1)
        return replace(self.chosen(np.flatnonzero(kept)), boxes=clipped[kept], size=size, affine=whole, truth=None)

    def _outline(self, number: int) -> npt.NDArray[np.float64] | None:
        """The points (N, 2) of an object's outline in the original image; None if it is not known."""
        shape = None if self.shapes is None else self.shapes[number]
        if isinstance(shape, list):
            return np.concatenate(shape).astype(np.float64)
        if isinstance(shape, bytes):
            crop = rle.crop_of(rle.from_text(shape, self.original))
            y, x = np.nonzero(crop.bitmap ^ _shrunk(crop.bitmap))
            corners = np.stack([x + crop.left, y + crop.top], axis=1)[:, None] + _PIXEL
            return corners.reshape(-1, 2).astype(np.float64) if len(x) else None
        return None

    def chosen(self, places: npt.NDArray[np.integer]) -> Self:
        """Some of the objects, by their numbers (N,)."""
        shapes = None if self.shapes is None else [self.shapes[place] for place in places.tolist()]
        grids = None if self.grids is None else self.grids[places]
        own: dict[str, Any] = {name: getattr(self, name)[places] for name in ("boxes", "labels", "crowd")}
        return replace(self, **own, shapes=shapes, grids=grids)

    def resize(self, size: tuple[int, int]) -> Self:
        """Scale the boxes."""
        down, right = size[0] / self.size[0], size[1] / self.size[1]
        affine = compose(np.array([[right, 0.0, 0.0], [0.0, down, 0.0]]), self.affine)
        return replace(self, boxes=self.boxes * [right, down, right, down], size=size, affine=affine)

    def masks(self) -> npt.NDArray[np.uint8]:
        """(M, mask_side, mask_side), each object's mask as a grid over its box, 0..255; an unknown shape fills it."""
        if self.grids is not None:
            return self.grids
        side = self.mask_side
        found = np.full((len(self.boxes), side, side), 255, dtype=np.uint8)
        back = invert(self.affine)
        for number, box in enumerate(self.boxes.tolist()):
            shape = None if self.shapes is None else self.shapes[number]
            if shape is None:
                continue
            if isinstance(shape, list):
                mask = rle.from_polygons(shape, self.original)
            else:
                mask = rle.from_text(shape, self.original)
            found[number] = _sampled(rle.crop_of(mask), move_points(_grid(box, side), back))
        return found

    def bitmaps(self) -> list[rle.Crop]:
        """Each object's mask in the pixels of this image; its box, if there are no masks."""
        if self.mask_side:
            return [rle.paste(grid, box, self.size) for grid, box in zip(self.masks(), self.boxes, strict=True)]
        inside = np.rint(self.boxes.clip(0, [self.size[1], self.size[0]] * 2)).astype(np.int64)
        return [
            rle.Crop(top, left, np.ones((bottom - top, right - left), dtype=bool))
            for left, top, right, bottom in inside.tolist()
        ]

    def behind(self, cover: npt.NDArray[np.bool_]) -> Self:
        """The objects after something else was drawn over the pixels (H, W) of the image that are true.

        A mask loses what is covered, and its box shrinks; without masks a box stays as it is. An object of which too
        little is left is left out.
        """
        boxes, kept = self.boxes.copy(), np.ones(len(self.boxes), dtype=bool)
        grids = self.masks().copy() if self.mask_side else None
        for number, crop in enumerate(self.bitmaps()):
            rows, columns = crop.bitmap.shape
            left = crop.bitmap & ~cover[crop.top : crop.top + rows, crop.left : crop.left + columns]
            before, after = int(crop.bitmap.sum()), int(left.sum())
            if before == after:
                continue
            kept[number] = after > 0 and after >= self.least_visible * before
            if grids is None or not after:
                continue
            y, x = np.flatnonzero(left.any(axis=1)), np.flatnonzero(left.any(axis=0))
            boxes[number] = crop.left + x[0], crop.top + y[0], crop.left + x[-1] + 1, crop.top + y[-1] + 1
            grids[number] = _sampled(crop._replace(bitmap=left), _grid(boxes[number].tolist(), self.mask_side))
        return replace(self, boxes=boxes, grids=grids).chosen(np.flatnonzero(kept))

    @classmethod
    def joined(cls, annotations: Sequence[Self]) -> Self:
        """The objects of several images in one, whose size is that of all of them."""
        own: dict[str, Any] = {
            name: np.concatenate([getattr(one, name) for one in annotations]) for name in ("boxes", "labels", "crowd")
        }
        grids = np.concatenate([one.masks() for one in annotations]) if annotations[0].mask_side else None
        return replace(annotations[0], **own, shapes=None, grids=grids, truth=None)

    def to_arrays(self) -> dict[str, Any]:
        """The boxes, the number of each object, and its mask, if there are masks."""
        arrays: dict[str, Any] = {"bboxes": self.boxes, "numbers": np.arange(len(self.boxes))}
        if self.mask_side:
            arrays["masks"] = np.zeros((len(self.boxes), *self.size), dtype=np.uint8)
            for bitmap, crop in zip(arrays["masks"], self.bitmaps(), strict=True):
                rows, columns = crop.bitmap.shape
                bitmap[crop.top : crop.top + rows, crop.left : crop.left + columns] = crop.bitmap
        return arrays

    def from_arrays(self, arrays: Mapping[str, Any]) -> Self:
        """The boxes that are left."""
        numbers = np.asarray(arrays["numbers"], dtype=np.int64)
        boxes = np.asarray(arrays["bboxes"], dtype=np.float64).reshape(-1, 4)
        grids = None
        if self.mask_side:
            bitmaps = [rle.Crop(0, 0, np.asarray(arrays["masks"][number], dtype=bool)) for number in numbers]
            pairs = zip(bitmaps, boxes.tolist(), strict=True)
            found = [_sampled(bitmap, _grid(box, self.mask_side)) for bitmap, box in pairs]
            grids = np.array(found, dtype=np.uint8).reshape(-1, self.mask_side, self.mask_side)
        own = replace(self.chosen(numbers), boxes=boxes, size=arrays["image"].shape[:2], shapes=None, truth=None)
        return replace(own, grids=grids)

    @classmethod
    def stack(cls, annotations: Sequence[Self]) -> Objects:
        """The objects of a batch."""
        boxes, labels, crowd = (
            np.concatenate([getattr(one, name) for one in annotations]) for name in ("boxes", "labels", "crowd")
        )
        counts = [len(one.boxes) if one.known else -1 for one in annotations]
        masks = [one.masks() for one in annotations if one.mask_side]
        return Objects(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(crowd),
            torch.tensor(counts),
            [None if one.truth is None else one.truth._replace(covers=one.size) for one in annotations],
            torch.from_numpy(np.concatenate(masks)) if masks else None,
        )


_PIXEL = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
"""The corners of a pixel."""


def _shrunk(bitmap: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels whose four neighbors belong to the object, too."""
    framed = np.pad(bitmap, 1)
    inner: npt.NDArray[np.bool_] = bitmap & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return inner


def _grid(box: Sequence[float], side: int) -> npt.NDArray[np.float64]:
    """The points (side, side, 2), x and y, in the centers of a box's cells."""
    left, top, right, bottom = box
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    return np.stack([x, y], axis=-1)


def _sampled(crop: rle.Crop, points: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """A mask at points (..., 2), x and y in pixels of its image: bilinear between the centers of pixels, 0 outside.

    Values are 0..255.
    """
    framed = np.pad(crop.bitmap, 1).astype(np.float64)
    rows, columns = framed.shape
    x = (points[..., 0] - crop.left + 0.5).clip(0, columns - 1.001)
    y = (points[..., 1] - crop.top + 0.5).clip(0, rows - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, down = x - column, y - row
    upper = framed[row, column] * (1 - right) + framed[row, column + 1] * right
    lower = framed[row + 1, column] * (1 - right) + framed[row + 1, column + 1] * right
    blended: npt.NDArray[np.uint8] = np.rint(255 * (upper * (1 - down) + lower * down)).astype(np.uint8)
    return blended
