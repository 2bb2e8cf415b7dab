"""ObjectAnnotation: the boxes of an image, and how they change with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from cnnlab.data.annotations import Annotation
from cnnlab.data.warp import Box, Geometry, move_points
from cnnlab.objects import Objects, Truth

_LEAST_SIDE = 1.0
"""The shortest side of a box in a training image, in pixels."""


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
    outlines: Sequence[npt.NDArray[np.float64] | None] | None = None
    """For each object the points (N, 2) of its outline, x and y, from which the box of a rotated object follows; its
    corners if None."""
    least_visible: float = 0.3
    """An object of which a training image shows a smaller share of its box is left out."""
    truth: Truth | None = None
    """The objects in the original image; None after augmentation, or if they are unknown."""
    known: bool = True
    """Whether the objects are known."""

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
        """Turn boxes and outlines."""
        turned = self
        for _ in range(quarters):
            height, width = turned.size
            left, top, right, bottom = turned.boxes.T
            boxes = np.stack([top, width - right, bottom, width - left], axis=1)
            outlines = turned.outlines and [
                None if one is None else np.stack([one[:, 1], width - one[:, 0]], axis=1) for one in turned.outlines
            ]
            turned = replace(turned, boxes=boxes, outlines=outlines, size=(width, height))
        return turned

    def warp(self, geometry: Geometry, size: tuple[int, int]) -> Self:
        """Move the outlines; the boxes are clipped, and those of which too little is visible are left out."""
        moved = np.array([self._moved(number, geometry, size) for number in range(len(self.boxes))]).reshape(-1, 4)
        clipped = moved.clip(0, [size[1], size[0]] * 2)
        sides, whole = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
        kept = (sides.prod(axis=1) >= self.least_visible * whole.prod(axis=1)) & (sides >= _LEAST_SIDE).all(axis=1)
        return replace(self._at(np.flatnonzero(kept)), boxes=clipped[kept], size=size, outlines=None, truth=None)

    def _moved(self, number: int, geometry: Geometry, size: tuple[int, int]) -> npt.NDArray[np.float64]:
        outline = None if self.outlines is None or not geometry.angle else self.outlines[number]
        if outline is None:
            left, top, right, bottom = self.boxes[number]
            outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        points = move_points(outline, geometry, size)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    def _at(self, places: npt.NDArray[np.int64]) -> Self:
        return replace(self, boxes=self.boxes[places], labels=self.labels[places], crowd=self.crowd[places])

    def resize(self, size: tuple[int, int]) -> Self:
        """Scale the boxes."""
        down, right = size[0] / self.size[0], size[1] / self.size[1]
        return replace(self, boxes=self.boxes * [right, down, right, down], size=size, outlines=None)

    def to_arrays(self) -> dict[str, Any]:
        """The boxes, and the number of each object."""
        return {"bboxes": self.boxes, "numbers": np.arange(len(self.boxes))}

    def from_arrays(self, arrays: Mapping[str, Any]) -> Self:
        """The boxes that are left."""
        numbers = np.asarray(arrays["numbers"], dtype=np.int64)
        boxes = np.asarray(arrays["bboxes"], dtype=np.float64).reshape(-1, 4)
        return replace(self._at(numbers), boxes=boxes, size=arrays["image"].shape[:2], outlines=None, truth=None)

    @classmethod
    def stack(cls, annotations: Sequence[Self]) -> Objects:
        """The objects of a batch."""
        boxes, labels, crowd = (
            np.concatenate([getattr(one, name) for one in annotations]) for name in ("boxes", "labels", "crowd")
        )
        counts = [len(one.boxes) if one.known else -1 for one in annotations]
        return Objects(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(crowd),
            torch.tensor(counts),
            [None if one.truth is None else one.truth._replace(covers=one.size) for one in annotations],
        )
