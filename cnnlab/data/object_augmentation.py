"""ObjectTransform: the augmentation of training images with objects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.augmentation import (
    Annotated,
    Augmentation,
    InputSpec,
    check_amounts,
    draw_color,
    scale_box,
    signed,
)
from cnnlab.data.warp import Box, Geometry, decode_size, recolor, to_bytes, warp
from cnnlab.imaging import ImageSource


@dataclass(frozen=True)
class ObjectTransform(Augmentation):
    """Enlarge or shrink, turn, flip, rotate, change colors; one warp and one color matrix.

    Args:
        scale: Minimum and maximum factor of the size that the image has in evaluation. What does not fit is cropped;
            what is left over is filled.
        ratio: Minimum and maximum factor of the ratio of width to height.
        flip: Probability of a flip from left to right.
        vertical_flip: Probability of a flip upside down.
        turns: Whether images are turned by 0, 90, 180 or 270 degrees.
        degrees: Maximum rotation to either side. It makes boxes larger than their objects, unless there are outlines.
        brightness: Maximum change of brightness: 0.2 draws factors from 0.8 to 1.2.
        contrast: Maximum change of contrast.
        saturation: Maximum change of saturation.
        hue: Maximum change of hue, in turns, 0..0.5.

    Raises:
        InputError: If an amount is out of range.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    vertical_flip: float = 0.0
    turns: bool = False
    degrees: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02

    draws = 15

    def __post_init__(self) -> None:
        check_amounts(self, {"degrees": 180.0, "hue": 0.5}, {"scale": math.inf, "ratio": math.inf}, ("turns",))

    @property
    def mirrors(self) -> bool:  # type: ignore[override]
        """Whether images may be flipped, left to right or upside down."""
        return bool(self.flip or self.vertical_flip)

    def __call__(
        self, image: ImageSource, annotation: Annotated, spec: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Annotated]:
        """Read an image and augment it with its annotation."""
        drawn = iter(numbers)
        quarter = int(next(drawn) * 4)
        quarters = quarter if self.turns else 0
        annotation = annotation.turn(quarters)
        shape = _turned(image.size, quarters)
        crop = annotation.move_crop(self._draw_crop(drawn, shape, spec), numbers[self.draws :])
        whole = Geometry(
            crop,
            flip=next(drawn) < self.flip,
            upside_down=next(drawn) < self.vertical_flip,
            angle=self.degrees * signed(drawn),
        )
        color = draw_color(drawn, self.brightness, self.contrast, self.saturation, self.hue)
        pixels = image.read(spec.channels, at_least=_turned(decode_size(shape, crop, spec.size), quarters))
        source = torch.rot90(torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()), quarters)
        source, geometry = _shrink(source, whole._replace(box=scale_box(source.shape, shape, crop)), spec.size)
        levels = warp(source, geometry, spec.size, spec.fill)
        return to_bytes(recolor(levels, color)), annotation.warp(whole, spec.size)

    def _draw_crop(self, drawn: Iterator[float], shape: tuple[int, int], spec: InputSpec) -> Box:
        """Draw the part of an image of this shape that fills the input; it may be larger than the image."""
        size = spec.size
        fitted = min(side / length for side, length in zip(spec.whole or size, shape, strict=True))
        scale = fitted * _between(next(drawn), self.scale)
        ratio = math.sqrt(_between(next(drawn), self.ratio))
        height, width = size[0] * ratio / scale, size[1] / (ratio * scale)
        top, left = (
            min(length - side, 0.0) + next(drawn) * abs(length - side)
            for side, length in zip((height, width), shape, strict=True)
        )
        return Box(top, left, height, width)


def _turned(size: tuple[int, int], quarters: int) -> tuple[int, int]:
    """Height and width after a number of quarter turns."""
    return size if quarters % 2 == 0 else (size[1], size[0])


def _shrink(pixels: Tensor, geometry: Geometry, size: tuple[int, int]) -> tuple[Tensor, Geometry]:
    """Shrink an image (H, W, C) with antialiasing, if the warp would shrink it by more than 2."""
    factor = max(geometry.box.height / size[0], geometry.box.width / size[1]) / 1.25
    if factor <= 1.6:
        return pixels, geometry
    smaller = max(round(pixels.shape[0] / factor), 1), max(round(pixels.shape[1] / factor), 1)
    shrunk = F.interpolate(pixels.permute(2, 0, 1)[None], smaller, mode="bilinear", antialias=True)[0]
    box = scale_box(smaller, (pixels.shape[0], pixels.shape[1]), geometry.box)
    return shrunk.permute(1, 2, 0), geometry._replace(box=box)


def _between(number: float, limits: tuple[float, float]) -> float:
    """A number between two limits, whose logarithm is uniform."""
    low, high = map(math.log, limits)
    return math.exp(low + (high - low) * number)
