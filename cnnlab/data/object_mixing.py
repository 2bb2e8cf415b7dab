"""ObjectMixing: several training images with objects become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.data.files import AugmentedFiles
from cnnlab.data.object_annotation import ObjectAnnotation
from cnnlab.data.samplers import Draw
from cnnlab.data.warp import Box, Geometry
from cnnlab.errors import InputError
from cnnlab.random import uniform

_MULTIPLE = 32
_TILES = 4
_PARTNERS = _TILES + 1
_SOFT = 0.1
"""The width of the soft edge of a box that is pasted, as a share of its side."""

Mixed = tuple[Tensor, ObjectAnnotation]
Partner = Callable[[int], Mixed]
"""Another training image, augmented, by a number from 0 to 4: not the same one for two numbers."""


@dataclass(frozen=True)
class ObjectMixing:
    """Mosaic, copy-paste and mixup of training images with objects.

    Args:
        mosaic: The probability that an image becomes one of four parts of an image (Bochkovskiy et al. 2020,
            arXiv:2004.10934). Each part shows its image at the size of other training images.
        copy_paste: The probability that about half of the objects of another image are drawn over an image (Ghiasi et
            al. 2021, arXiv:2012.07177): the pixels of their masks, or their boxes with a soft edge.
        mixup: The probability that an image is blended half and half with another, with the objects of both (Zhang et
            al. 2018, arXiv:1710.09412).
        until: The share of the run after which images are no longer mixed, 0..1, so that a network ends with images as
            they are (Ge et al. 2021, arXiv:2107.08430).

    Raises:
        InputError: If a number is out of range.
    """

    mosaic: float = 0.0
    copy_paste: float = 0.0
    mixup: float = 0.0
    until: float = 0.85

    draws = 10
    """The number of uniform random numbers that an image needs."""

    def __post_init__(self) -> None:
        for name in ("mosaic", "copy_paste", "mixup", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"mixing.{name} is {getattr(self, name)}, expected 0 to 1")
        if not self.mosaic and not self.copy_paste and not self.mixup:
            raise InputError(
                "mixing.mosaic, mixing.copy_paste and mixing.mixup are all 0: set one, or data.mixing to null"
            )

    def __call__(self, own: Mixed, partner: Partner, numbers: Sequence[float]) -> Mixed:
        """Mix an image with others.

        Args:
            own: The augmented image, (C, H, W) uint8, and its objects.
            partner: Others, of the same size.
            numbers: 10, uniform in [0, 1).
        """
        wanted, others = numbers[:3], numbers[3:]
        if wanted[0] < self.mosaic:
            own = _mosaic([own, *map(partner, range(1, _TILES))], others[:-1])
        if wanted[1] < self.copy_paste:
            own = _copy_paste(own, partner(0), others[-1])
        if wanted[2] < self.mixup:
            own = _mixup(own, partner(_TILES))
        return own


@dataclass(eq=False)
class MixedFiles(AugmentedFiles):
    """Image files with objects for training: each is augmented by (seed, epoch, index), then mixed with others."""

    objects_mixing: ObjectMixing | None = None
    """How images are mixed."""
    scales: tuple[float, float] = (1.0, 1.0)
    """The smallest and the largest size of a batch, as factors of the input's size."""
    total: float = math.inf
    """The samples of the whole run."""

    def __getitems__(self, draws: list[Draw]) -> Batch:
        epochs, indices, seen = np.array(draws, dtype=np.int64).T
        mixing, size = self.objects_mixing, self._size(int(seen[0]))
        sized = self if size == self.spec.size else replace(self, spec=self.spec._replace(size=size))
        if mixing is None or seen[0] >= mixing.until * self.total:
            return AugmentedFiles.__getitems__(sized, draws)
        count = 1 + _PARTNERS
        numbers = uniform(self.seed, epochs, indices, count * (self.draws + 1) + mixing.draws)
        return self.source.stack(
            indices.tolist(), (sized.mix(mixing, *pair) for pair in zip(indices, numbers, strict=True))
        )

    def mix(self, mixing: ObjectMixing, index: int, numbers: npt.NDArray[np.float64]) -> Mixed:
        """An image, mixed by its own random numbers."""
        rows = numbers[mixing.draws :].reshape(1 + _PARTNERS, -1)

        def partner(number: int) -> Mixed:
            place, *own = rows[1 + number].tolist()
            return self.create_sample(int(place * len(self)), own)

        return mixing(self.create_sample(int(index), rows[0, 1:].tolist()), partner, numbers[: mixing.draws].tolist())

    def _size(self, seen: int) -> tuple[int, int]:
        """The size of the images of a step, the same on all processes."""
        low, high = self.scales
        if low == high == 1:
            return self.spec.size
        (number,) = uniform(self.seed, np.array([seen]), np.array([0]), 1)[0]
        scale = low + (high - low) * number
        rows, columns = (max(_MULTIPLE, _MULTIPLE * round(side * scale / _MULTIPLE)) for side in self.spec.size)
        return rows, columns


def check_scales(name: str, scales: Sequence[float] | None) -> tuple[float, float]:
    """The smallest and the largest factor of a batch's size.

    Raises:
        InputError: If they are not two factors in order.
    """
    if scales is None:
        return 1.0, 1.0
    if len(scales) != 2 or not 0 < scales[0] <= scales[1] < math.inf:
        raise InputError(f"{name} is {list(scales)}, expected two factors in order, such as [0.75, 1.25]")
    return scales[0], scales[1]


def _mosaic(images: Sequence[Mixed], numbers: Sequence[float]) -> Mixed:
    """Parts of four images, which meet at a point between 0.3 and 0.7 of height and width."""
    canvas = torch.empty_like(images[0][0])
    height, width = canvas.shape[1:]
    center = [round(side * (0.3 + 0.4 * number)) for side, number in zip((height, width), numbers[:2], strict=True)]
    found = []
    for place, ((pixels, objects), number) in enumerate(zip(images, numbers[2:], strict=False)):
        low, right = divmod(place, 2)
        top, bottom = ((0, center[0]), (center[0], height))[low]
        left, end = ((0, center[1]), (center[1], width))[right]
        rows, columns = bottom - top, end - left
        # The middle of the image, or an object.
        crop = objects.move_crop(Box((height - rows) // 2, (width - columns) // 2, rows, columns), [number])
        start, first = (
            min(max(int(at), 0), most) for at, most in zip(crop, (height - rows, width - columns), strict=False)
        )
        canvas[:, top:bottom, left:end] = pixels[:, start : start + rows, first : first + columns]
        part = objects.warp(Geometry(Box(start, first, rows, columns)), (rows, columns))
        found.append(part.warp(Geometry(Box(-top, -left, height, width)), (height, width)))
    return canvas, ObjectAnnotation.joined(found)


def _copy_paste(own: Mixed, other: Mixed, number: float) -> Mixed:
    """Draw some objects of another image over an image."""
    pixels, objects = own
    single = np.flatnonzero(~other[1].crowd)
    drawn = np.random.default_rng(int(number * 2**53)).random(len(single)) < 0.5
    chosen = other[1].chosen(single[drawn])
    if not len(chosen.boxes):
        return own
    share = np.zeros(pixels.shape[1:], dtype=np.float32)
    for crop in chosen.bitmaps():
        rows, columns = crop.bitmap.shape
        part = share[crop.top : crop.top + rows, crop.left : crop.left + columns]
        np.maximum(part, crop.bitmap if chosen.mask_side else _soft(rows, columns), out=part)
    weight = torch.from_numpy(share)
    blended = torch.lerp(pixels.to(torch.float32), other[0].to(torch.float32), weight).round_().to(torch.uint8)
    return blended, ObjectAnnotation.joined([objects.behind(share >= 0.5), chosen])


def _soft(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """(rows, columns), 1 in the middle and less towards the edges, but for those of a tiny box."""
    ramps = []
    for count in (rows, columns):
        away = np.minimum(np.arange(count), np.arange(count)[::-1]) + 0.5
        ramps.append((away / max(_SOFT * count, 0.5)).clip(0, 1))
    soft: npt.NDArray[np.float32] = np.multiply.outer(*ramps).astype(np.float32)
    return soft


def _mixup(own: Mixed, other: Mixed) -> Mixed:
    """The mean of two images, with the objects of both."""
    blended = torch.lerp(own[0].to(torch.float32), other[0].to(torch.float32), 0.5)
    return blended.round_().to(torch.uint8), ObjectAnnotation.joined([own[1], other[1]])
