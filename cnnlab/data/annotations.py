"""Annotation: what is known of an image besides its pixels, and how it changes with the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.warp import Box, Geometry, fill_shifted, warp


class Annotation(ABC):
    """What is known of an image besides its pixels.

    The defaults are for a target that does not change with the image. Methods return a new annotation.
    """

    draws: ClassVar[int] = 0
    """How many random numbers a training image needs in addition to its augmentation's."""
    ignore_index: int | None = None
    """The class of erased pixels and of pixels outside the image; None if pixels have no classes."""

    least_visible: float | None = None
    """The least share of an object's box that must be visible for the object to be kept; None if there are no boxes."""

    def move_crop(self, crop: Box, numbers: Sequence[float]) -> Box:
        """Move a training crop, in pixels of the whole image, by ``draws`` numbers, uniform in [0, 1).

        The result has the same size, and lies inside the image.
        """
        return crop

    def turn(self, quarters: int) -> Self:
        """Turn the whole image by a number of quarters, 0 to 3, counter-clockwise."""
        return self

    def warp(self, geometry: Geometry, size: tuple[int, int]) -> Self:
        """Apply a crop, flip, rotation and shift, in pixels of the whole image; size is the result's."""
        return self

    def erase(self, box: Box) -> Self:
        """Erase a box, in pixels of the current image."""
        return self

    def resize(self, size: tuple[int, int]) -> Self:
        """Resize the whole annotation to this height and width."""
        return self

    def to_arrays(self) -> dict[str, Any]:
        """The arguments of an albumentations transform besides the image, by name (mask, bboxes, ...)."""
        return {}

    def from_arrays(self, arrays: Mapping[str, Any]) -> Self:
        """The annotation in the result of an albumentations transform."""
        return self

    @classmethod
    @abstractmethod
    def stack(cls, annotations: Sequence[Self]) -> Any:
        """The targets of a batch: B items that can be sliced."""


@dataclass(frozen=True)
class FixedTarget(Annotation):
    """A label, several labels or values: a target that does not change with the image."""

    value: Tensor
    """() int64, or (K,) float."""

    @classmethod
    def stack(cls, annotations: Sequence[Self]) -> Tensor:
        """(B,) int64, or (B, K) float."""
        return torch.stack([annotation.value for annotation in annotations])


@dataclass(frozen=True)
class ClassMask(Annotation):
    """The classes of an image's pixels."""

    classes: Tensor
    """(H, W) int64, the size of the image."""
    ignore_index: int
    rare: float = 0.0
    """The probability that a crop is moved to a pixel of a class that is drawn from the classes in the image."""

    draws: ClassVar[int] = 5

    def move_crop(self, crop: Box, numbers: Sequence[float]) -> Box:
        """With the probability ``rare``, move the crop to a pixel of a class; classes present are equally likely."""
        wanted, kind, place, *shares = numbers
        if wanted >= self.rare:
            return crop
        present = [value for value in np.unique(self.classes.numpy()).tolist() if value != self.ignore_index]
        if not present:
            return crop
        pixels = (self.classes == present[int(kind * len(present))]).nonzero()
        pixel, sides = pixels[int(place * len(pixels))].tolist(), (crop.height, crop.width)
        top, left = (
            round(min(max(at - share * side, 0), length - side))
            for at, share, side, length in zip(pixel, shares, sides, self.classes.shape, strict=True)
        )
        return crop._replace(top=top, left=left)

    def turn(self, quarters: int) -> Self:
        """Turn the mask."""
        return replace(self, classes=torch.rot90(self.classes, quarters))

    def warp(self, geometry: Geometry, size: tuple[int, int]) -> Self:
        """Warp with nearest-neighbor sampling; pixels outside the image get ignore_index."""
        fill = torch.tensor([float(self.ignore_index)])
        warped = warp(self.classes[..., None], geometry, size, fill, mode="nearest")
        fill_shifted(warped, geometry.shift, fill)
        return replace(self, classes=warped[0].to(torch.int64))

    def erase(self, box: Box) -> Self:
        """Set the pixels of a box to ignore_index."""
        top, left, height, width = map(int, box)
        classes = self.classes.clone()
        classes[top : top + height, left : left + width] = self.ignore_index
        return replace(self, classes=classes)

    def resize(self, size: tuple[int, int]) -> Self:
        """Resize with nearest-neighbor sampling."""
        if tuple(self.classes.shape) == tuple(size):
            return self
        resized = F.interpolate(self.classes[None, None].to(torch.float32), size, mode="nearest-exact")
        return replace(self, classes=resized[0, 0].to(torch.int64))

    def to_arrays(self) -> dict[str, Any]:
        """The mask as (H, W) int16, since OpenCV has no int64."""
        return {"mask": self.classes.to(torch.int16).numpy()}

    def from_arrays(self, arrays: Mapping[str, Any]) -> Self:
        """The mask, (H, W) of any integer type."""
        return replace(self, classes=torch.from_numpy(arrays["mask"].copy()).to(torch.int64))

    @classmethod
    def stack(cls, annotations: Sequence[Self]) -> Tensor:
        """(B, H, W) int64; all masks must have one size."""
        return torch.stack([annotation.classes for annotation in annotations])
