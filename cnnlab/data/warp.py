"""Geometry in one warp and color in one matrix: pure functions of an image and of random numbers from the caller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = npt.NDArray[np.float64]

_LUMA = (0.299, 0.587, 0.114)
"""Rec. 601: the definition of gray in ColorJitter and JPEG."""
_TO_YIQ = np.array([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
# RGB to RGB, through YIQ: keep only the luma; keep only the chroma; keep only the chroma, turned by 90 degrees.
_KEEP_LUMA, _KEEP_CHROMA, _TURN_CHROMA = (
    np.linalg.inv(_TO_YIQ) @ np.array(part) @ _TO_YIQ
    for part in (
        [[1.0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.0, 0, 0], [0, 0, 1], [0, -1, 0]],
    )
)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float


class Geometry(NamedTuple):
    """A crop that is resized, flipped, rotated about the center and shifted, in this order."""

    box: Box
    """What lies outside the image is filled."""
    flip: bool = False
    """Left to right."""
    upside_down: bool = False
    angle: float = 0.0
    """In degrees, counter-clockwise."""
    shift: tuple[int, int] = (0, 0)
    """Down and to the right, in pixels of the result."""


class Color(NamedTuple):
    """Factors as in torchvision's ColorJitter; 1 (hue: 0) changes nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """In turns, -0.5..0.5."""
    order: Sequence[int] = (0, 1, 2, 3)
    """The order of the changes: 0 brightness, 1 contrast, 2 saturation, 3 hue."""


def random_box(numbers: Sequence[float], size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """Draw a part of an image by its share of the area and its aspect ratio (Szegedy et al. 2015).

    Args:
        numbers: An even number of draws, uniform in [0, 1): a pair for each attempt, then a pair for the place.
        size: The image's height and width.
        scale: Minimum and maximum share of the area.
        ratio: Minimum and maximum width / height.

    Returns:
        The part, in whole pixels; the largest one within ``ratio`` if no attempt fits into the image.
    """
    rows, columns = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    down, right = numbers[-2:]
    for attempt in range(0, len(numbers) - 2, 2):
        area = rows * columns * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
        proportion = math.exp(low + (high - low) * numbers[attempt + 1])
        height, width = round(math.sqrt(area / proportion)), round(math.sqrt(area * proportion))
        if 0 < height <= rows and 0 < width <= columns:
            break
    else:
        height = min(rows, max(round(columns / ratio[0]), 1))
        width = min(columns, max(round(rows * ratio[1]), 1))
    return Box(int(down * (rows - height + 1)), int(right * (columns - width + 1)), height, width)


def warp(
    pixels: Tensor,
    geometry: Geometry,
    size: tuple[int, int],
    fill: Tensor,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Apply a geometry in one interpolation.

    Pixels outside the box are not used, as if the image had been cropped before it was rotated. There is no
    antialiasing: the image should not be much larger than the result (see decode_size).

    Args:
        pixels: (H, W, C), uint8 or any values that float32 represents exactly.
        geometry: In pixels of this image.
        size: Height and width of the result.
        fill: (C,) float, 0..255: the value of pixels outside.
        mode: bilinear, or nearest for class numbers.

    Returns:
        (C, *size), float 0..255. The pixels that a shift brings in are not filled yet: see fill_shifted.
    """
    box = geometry.box
    top, left = max(math.floor(box.top), 0), max(math.floor(box.left), 0)
    bottom, right = math.ceil(box.top + box.height - 1e-6), math.ceil(box.left + box.width - 1e-6)
    framed = _framed(pixels[top:bottom, left:right], fill)
    rows, columns = framed.shape[:2]
    height, width = size
    angle = math.radians(geometry.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    # From a position in the result, relative to its center, to one in the part in -1..1: undo shift, rotation, flip
    # and scale.
    across = box.width / width * (-1 if geometry.flip else 1) * 2 / columns
    along = box.height / height * (-1 if geometry.upside_down else 1) * 2 / rows
    center_x = (box.left - left + 1 + box.width / 2) * 2 / columns - 1
    center_y = (box.top - top + 1 + box.height / 2) * 2 / rows - 1
    # As complex numbers, x + iy: a single vectorized addition.
    xs = (_centered(width) - geometry.shift[1]) * complex(cos * across, sin * along)
    ys = (_centered(height) - geometry.shift[0]) * complex(-sin * across, cos * along)
    grid = torch.view_as_real(xs[None, :] + (ys + complex(center_x, center_y))[:, None])
    levels = framed.permute(2, 0, 1)[None]
    return F.grid_sample(levels, grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


def affine_of(geometry: Geometry, size: tuple[int, int]) -> Matrix:
    """The map from points of an image to points in the result of warp(), (2, 3): see move_points.

    Args:
        geometry: See warp.
        size: Height and width of the result.

    >>> move_points(np.array([3.0, 1.0]), affine_of(Geometry(Box(0, 0, 4, 8), flip=True), (8, 16))).tolist()
    [10.0, 2.0]
    """
    (height, width), box = size, geometry.box
    across = width / box.width * (-1 if geometry.flip else 1)
    along = height / box.height * (-1 if geometry.upside_down else 1)
    cos, sin = math.cos(math.radians(geometry.angle)), math.sin(math.radians(geometry.angle))
    linear = np.array([[cos * across, sin * along], [-sin * across, cos * along]])
    down, right = geometry.shift
    center = np.array([box.left + box.width / 2, box.top + box.height / 2])
    offset = np.array([width / 2 + right, height / 2 + down]) - linear @ center
    return np.concatenate([linear, offset[:, None]], axis=1)


def move_points(points: npt.NDArray[np.float64], affine: Matrix) -> npt.NDArray[np.float64]:
    """Map points (..., 2), x and y in pixels; the corner of the first pixel is 0, 0."""
    return points @ affine[:, :2].T + affine[:, 2]


def compose(later: Matrix, earlier: Matrix) -> Matrix:
    """The map (2, 3) that applies one after the other."""
    both: Matrix = later[:, :2] @ earlier
    both[:, 2] += later[:, 2]
    return both


def invert(affine: Matrix) -> Matrix:
    """The map (2, 3) back."""
    back = np.linalg.inv(affine[:, :2])
    return np.concatenate([back, -(back @ affine[:, 2:])], axis=1)


def _framed(pixels: Tensor, fill: Tensor) -> Tensor:
    """(H, W, C) as floats, with a border of one pixel, which the sampler repeats outside."""
    rows, columns, channels = pixels.shape
    framed = torch.empty(rows + 2, columns + 2, channels)
    for strip in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        strip.copy_(fill)
    framed[1:-1, 1:-1] = pixels
    return framed


@lru_cache(maxsize=16)
def _centered(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float32).add_(0.5 - length / 2).to(torch.complex64)


def decode_size(image_size: tuple[int, int], box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """The minimum height and width at which an image may be decoded, so that the warp shrinks it only a little.

    A JPEG decoder can halve an image without aliasing, in the frequency domain. The warp, which has no antialiasing,
    then shrinks by less than 2 / 1.25 = 1.6, or enlarges by at most 1.25.

    All sizes are height and width; the box, in pixels of the image, is the part that is resized to ``size``.

    >>> decode_size((3000, 4000), Box(0, 0, 2240, 2240), (224, 224))
    (240, 320)
    """
    shrink = max(box.height / size[0], box.width / size[1], 0.8) * 1.25
    return math.floor(image_size[0] / shrink), math.floor(image_size[1] / shrink)


def color_matrix(color: Color, means: Sequence[float]) -> Matrix:
    """One affine map for all four adjustments.

    In YIQ, the adjustments scale and shift the luma, and scale and rotate the chroma. Hue rotates the chroma; contrast
    pulls towards the gray of the image's mean. So all is linear, and values are clipped once, after the last step.

    Args:
        color: The color changes.
        means: The image's mean of each channel (3, or 1 for gray), 0..255.

    Returns:
        (C, C + 1): the matrix, with the offset in the last column, in units of 0..255.
    """
    gray = len(means) == 1
    mean = means[0] if gray else sum(share * level for share, level in zip(_LUMA, means, strict=True))
    luma, offset, chroma = 1.0, 0.0, 1.0
    for which in color.order:
        if which == 0:
            luma, offset, chroma = (value * color.brightness for value in (luma, offset, chroma))
        elif which == 1:
            center = luma * mean + offset
            luma, offset, chroma = (value * color.contrast for value in (luma, offset, chroma))
            offset += (1 - color.contrast) * center
        elif which == 2:
            chroma *= color.saturation
    found = np.full((len(means), len(means) + 1), offset)
    if gray:
        found[0, 0] = luma
    else:
        cos, sin = math.cos(2 * math.pi * color.hue), math.sin(2 * math.pi * color.hue)
        found[:, :-1] = luma * _KEEP_LUMA + chroma * cos * _KEEP_CHROMA + chroma * sin * _TURN_CHROMA
    return found


def recolor(levels: Tensor, color: Color) -> Tensor:
    """Apply color changes to (C, H, W), float 0..255; the result is not clipped."""
    flat = levels.flatten(1)
    affine = torch.from_numpy(color_matrix(color, flat.mean(dim=1).tolist())).to(torch.float32)
    return torch.addmm(affine[:, -1:], affine[:, :-1], flat).view_as(levels)


def to_bytes(levels: Tensor) -> Tensor:
    """(..., H, W) float to uint8: rounded, and clipped to 0..255. The input is changed in place."""
    # Through int16, because torch vectorizes both of these conversions, but not the direct one.
    return levels.add_(0.5).clamp_(0, 255.5).to(torch.int16).to(torch.uint8)


def fill_shifted(pixels: Tensor, shift: tuple[int, int], fill: Tensor) -> None:
    """Set the pixels of (C, H, W) that a shift, down and to the right, has brought in to ``fill`` (C,), in place."""
    down, right = shift
    color = fill.to(pixels.dtype).view(-1, 1, 1)
    if down:
        pixels[:, slice(0, down) if down > 0 else slice(down, None)] = color
    if right:
        pixels[:, :, slice(0, right) if right > 0 else slice(right, None)] = color
