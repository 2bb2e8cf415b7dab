"""Geometry in one warp and colour in one matrix: pure functions of an image and of numbers that come from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = npt.NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])
"""Rec. 601: what grey means to ColorJitter and to JPEG."""
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# What a turn of the chroma plane keeps, and what of it goes with the angle's cosine and with its sine.
_HUE = [
    _FROM_YIQ @ np.array(part, dtype=np.float64) @ _TO_YIQ
    for part in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, 1], [0, -1, 0]],
    )
]
_ONE = np.ones(1)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float


class Geometry(NamedTuple):
    """A crop that is brought to a size, flipped, turned about the centre and shifted, in this order."""

    box: Box
    flip: bool = False
    """Left to right."""
    upside_down: bool = False
    angle: float = 0.0
    """In degrees, counter-clockwise."""
    shift: tuple[int, int] = (0, 0)
    """Down and to the right, in pixels of the result."""


class Colour(NamedTuple):
    """Factors as in torchvision's ColorJitter, 1 (hue: 0) changes nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """In turns, -0.5..0.5."""
    order: Sequence[int] = (0, 1, 2, 3)
    """Which comes first: 0 brightness, 1 contrast, 2 saturation, 3 hue."""


def random_box(numbers: Sequence[float], size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """Draw a part of an image by its share of the area and by its proportions (Szegedy et al. 2015).

    Args:
        numbers: An even number of draws, uniform in [0, 1): pairs for as many attempts, the last pair for the place.
        size: The image's height and width.
        scale: Least and greatest share of the area.
        ratio: Least and greatest width / height.

    Returns:
        The part, in whole pixels; the largest one at the centre that keeps within ratio, if all attempts
        reach beyond the image.
    """
    rows, columns = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    down, right = numbers[-2:]
    for attempt in range(0, len(numbers) - 2, 2):
        area = rows * columns * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
        proportion = math.exp(low + (high - low) * numbers[attempt + 1])
        height, width = round(math.sqrt(area / proportion)), round(math.sqrt(area * proportion))
        if 0 < height <= rows and 0 < width <= columns:
            return Box(int(down * (rows - height + 1)), int(right * (columns - width + 1)), height, width)
    height = min(rows, round(columns / ratio[0]))
    width = min(columns, round(rows * ratio[1]))
    return Box((rows - height) // 2, (columns - width) // 2, height, width)


def warp(pixels: Tensor, geometry: Geometry, size: tuple[int, int], fill: Tensor) -> Tensor:
    """Apply a geometry in one bilinear interpolation.

    What lies outside the box stays outside, as if the image had been cut before it was turned. There
    is no antialiasing: hand in an image that is not much larger than what comes out (see enough).

    Args:
        pixels: (H, W, C), uint8.
        geometry: In pixels of this image.
        size: Height and width of the result.
        fill: (C,) float, 0..255: what is outside.

    Returns:
        (C, *size), float 0..255. What a shift has brought in is not filled yet: see fill_shifted.
    """
    box = geometry.box
    top, left = math.floor(box.top), math.floor(box.left)
    bottom, right = math.ceil(box.top + box.height - 1e-6), math.ceil(box.left + box.width - 1e-6)
    part = pixels[top:bottom, left:right].permute(2, 0, 1)
    rows, columns = part.shape[1:]
    height, width = size
    angle = math.radians(geometry.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    # From a place in the result, about its centre, to one in the part in -1..1: shift, turn, flip and scale undone.
    across = box.width / width * (-1 if geometry.flip else 1) * 2 / columns
    along = box.height / height * (-1 if geometry.upside_down else 1) * 2 / rows
    centre_x = (box.left - left + box.width / 2) * 2 / columns - 1
    centre_y = (box.top - top + box.height / 2) * 2 / rows - 1
    xs, ys = _centred(width) - geometry.shift[1], _centred(height) - geometry.shift[0]
    grid = torch.empty(1, height, width, 2)
    torch.add((xs * (cos * across))[None, :], (ys * (-sin * across) + centre_x)[:, None], out=grid[0, :, :, 0])
    torch.add((xs * (sin * along))[None, :], (ys * (cos * along) + centre_y)[:, None], out=grid[0, :, :, 1])
    # The sampler knows no fill but 0.
    levels = part.contiguous().to(torch.float32).sub_(fill.view(-1, 1, 1))
    sampled = F.grid_sample(levels[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    return sampled.add_(fill.view(-1, 1, 1))


@lru_cache(maxsize=16)
def _centred(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float32) + (0.5 - length / 2)


def enough(image_size: tuple[int, int], box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """The height and width in which an image may be decoded at the least, so that the warp need not shrink it much.

    A decoder that can halve (a JPEG's, in the frequency domain, without aliasing) then leaves the warp, which has no
    antialiasing, to shrink by less than 2 / 1.25 = 1.6, or to enlarge by no more than 1.25.

    Args:
        image_size: Its own height and width.
        box: The part that is wanted, in its own pixels.
        size: What the part is brought to.

    >>> enough((3000, 4000), Box(0, 0, 2240, 2240), (224, 224))
    (240, 320)
    """
    shrink = max(box.height / size[0], box.width / size[1], 0.8) * 1.25
    return math.floor(image_size[0] / shrink), math.floor(image_size[1] / shrink)


def colour_matrix(colour: Colour, means: Sequence[float]) -> Matrix:
    """One affine map for all four adjustments.

    Hue turns the chroma plane of YIQ; contrast pulls towards the grey of the image's own mean. Both are linear, so
    the whole is, and values are clipped once, at the end, not after each step.

    Args:
        colour: What is wanted.
        means: The image's mean of each channel (3, or 1 for grey), 0..255.

    Returns:
        (C, C + 1): the matrix, and in the last column the offset, in units of 0..255.
    """
    grey = len(means) == 1
    luma = _ONE if grey else _LUMA
    found = np.eye(len(means), len(means) + 1)
    for which in colour.order:
        if which == 0:
            found *= colour.brightness
        elif which == 1:
            mean = float(luma @ found @ [*means, 1.0])
            found *= colour.contrast
            found[:, -1] += (1 - colour.contrast) * mean
        elif which == 2 and not grey:
            found = colour.saturation * found + (1 - colour.saturation) * (luma @ found)
        elif which == 3 and not grey:
            cos, sin = math.cos(2 * math.pi * colour.hue), math.sin(2 * math.pi * colour.hue)
            found = (_HUE[0] + cos * _HUE[1] + sin * _HUE[2]) @ found
    return found


def recolour(levels: Tensor, colour: Colour) -> Tensor:
    """Apply colour changes.

    Args:
        levels: (C, H, W), float 0..255.
        colour: What is wanted.

    Returns:
        (C, H, W), float, not clipped.
    """
    flat = levels.flatten(1)
    affine = torch.from_numpy(colour_matrix(colour, flat.mean(dim=1).tolist())).to(torch.float32)
    return torch.addmm(affine[:, -1:], affine[:, :-1], flat).view_as(levels)


def to_bytes(levels: Tensor) -> Tensor:
    """(..., H, W) float to uint8: rounded, and clipped to 0..255. Changes what it is given."""
    return levels.add_(0.5).clamp_(0, 255.5).to(torch.uint8)


def fill_shifted(pixels: Tensor, shift: tuple[int, int], fill: Tensor) -> None:
    """Fill what a shift has brought in from outside, in place.

    Args:
        pixels: (C, H, W).
        shift: Down and to the right.
        fill: (C,).
    """
    down, right = shift
    colour = fill.to(pixels.dtype).view(-1, 1, 1)
    if down:
        pixels[:, slice(0, down) if down > 0 else slice(down, None)] = colour
    if right:
        pixels[:, :, slice(0, right) if right > 0 else slice(right, None)] = colour
