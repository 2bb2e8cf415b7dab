"""Augmentation of photographs by name: a file and its random numbers in, an image of the network's size out."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab import imaging
from cnnlab.data.warp import (
    Box,
    Colour,
    Geometry,
    enough,
    fill_shifted,
    random_box,
    recolour,
    to_bytes,
    warp,
)
from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageSource

_ORDERS = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
_ATTEMPTS = 10
"""Boxes that are tried, as in torchvision."""
MASK_DRAWS = 5
"""How many numbers more an image with a mask needs."""


class InputSpec(NamedTuple):
    """What an image is brought to."""

    size: tuple[int, int]
    """Height and width."""
    channels: int
    """3 or 1."""
    fill: Tensor
    """(channels,) float, 0..255: what is outside the image, and what is erased."""
    crop: float
    """See imaging.Preprocessing; for images that are not augmented."""
    interpolation: str
    """See imaging.Preprocessing; for images that are not augmented."""


class Mask(NamedTuple):
    """The classes of an image's pixels, and how they are to be augmented with it."""

    classes: Tensor
    """(H, W) int64, as large as the image."""
    ignore_index: int
    """What is outside the image, and what is erased: it counts for nothing."""
    native: bool
    """Whether the crop's scale is that of the size it is brought to, so that pixels stay about as large as they are;
    else that of the image."""
    rare: float
    """The probability that the crop is put onto a pixel of a class that is drawn among those of the image."""


class Augmentation(ABC):
    """What happens to a training image; the same numbers give the same image."""

    draws: int = 0
    """How many numbers an image needs."""
    mirrors: bool = False
    """Whether left and right, or above and below, may be exchanged."""

    @abstractmethod
    def __call__(self, image: ImageSource, target: InputSpec, numbers: Sequence[float]) -> Tensor:
        """Read and augment an image.

        Args:
            image: The opened file.
            target: What it is brought to.
            numbers: ``draws`` numbers, uniform in [0, 1).

        Returns:
            (channels, *size), uint8.
        """

    @abstractmethod
    def together(
        self, image: ImageSource, mask: Mask, target: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Read and augment an image, and its mask in step.

        Args:
            image: The opened file.
            mask: Its mask.
            target: What both are brought to.
            numbers: ``draws + MASK_DRAWS`` numbers, uniform in [0, 1).

        Returns:
            (channels, *size), uint8, and (*size), int64.
        """


class NoAugmentation(Augmentation):
    """The image as evaluation sees it."""

    def __call__(self, image: ImageSource, target: InputSpec, numbers: Sequence[float]) -> Tensor:
        """Read, resize and crop."""
        return evaluated(image, target)

    def together(
        self, image: ImageSource, mask: Mask, target: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Read and resize; a crop of the size itself, anywhere, where the scale is native."""
        if mask.native:
            drawn = [0.5] * _CROP.draws
            drawn[2 * _ATTEMPTS : 2 * _ATTEMPTS + 2] = numbers[-2:]
            return _CROP.together(image, mask, target, [*drawn, *numbers[-MASK_DRAWS:]])
        return stretched(image, target), nearest_resized(mask.classes, target.size)


def evaluated(image: ImageSource, target: InputSpec) -> Tensor:
    """Read, resize and crop an image for evaluation, to (channels, *size) uint8."""
    reading = imaging.EvalTransform(target.channels, target.size, target.crop, target.interpolation)
    return as_tensor(imaging.preprocess(image, reading))


def stretched(image: ImageSource, target: InputSpec) -> Tensor:
    """Read an image and bring all of it to the size, whatever its proportions, to (channels, *size) uint8."""
    reading = imaging.EvalTransform(target.channels, target.size, interpolation=target.interpolation, stretch=True)
    return as_tensor(imaging.preprocess(image, reading))


def as_tensor(pixels: imaging.Pixels) -> Tensor:
    """(H, W, C) to (C, H, W)."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def nearest_resized(classes: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) numbers of classes to (*size), by the nearest pixel."""
    if tuple(classes.shape) == tuple(size):
        return classes
    resized = F.interpolate(classes[None, None].to(torch.float32), size, mode="nearest-exact")
    return resized[0, 0].to(torch.int64)


@dataclass(frozen=True)
class Photograph(Augmentation):
    """Crop, flip, turn, shift, change the colours, erase, in this order; one warp and one colour matrix.

    Args:
        scale: Least and greatest share of the area that the crop keeps.
        ratio: Least and greatest width / height of the crop.
        flip: Probability of exchanging left and right.
        vertical_flip: Probability of exchanging above and below.
        degrees: Greatest rotation to either side.
        translate: Greatest shift, as a share of height and width, 0..1.
        brightness: Greatest change of brightness: 0.2 draws factors from 0.8 to 1.2.
        contrast: Greatest change of contrast.
        saturation: Greatest change of saturation.
        hue: Greatest change of hue, in turns, 0..0.5.
        erase: Probability of erasing a rectangle (Zhong et al. 2017).
        policy: trivialaugment (Mueller and Hutter 2021) or randaugment (Cubuk et al. 2019) after all that.

    Raises:
        InputError: If an amount is out of range.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0
    policy: Literal["trivialaugment", "randaugment"] | None = None

    draws = 2 * _ATTEMPTS + 24

    def __post_init__(self) -> None:
        limits = {"degrees": 180.0, "hue": 0.5}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("scale", "ratio", "policy") and not isinstance(value, (int, float)):
                raise InputError(f"augment_args.{field.name} is {value!r}, expected a number")
            if isinstance(value, (int, float)) and not 0 <= value <= limits.get(field.name, 1.0):
                raise InputError(f"augment_args.{field.name} is {value}, expected 0 to {limits.get(field.name, 1.0):g}")
        for name, highest in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest:
                raise InputError(f"augment_args.{name} is {[low, high]}, expected two ascending numbers above 0")
        if self.policy not in (None, "trivialaugment", "randaugment"):
            raise InputError(f"augment_args.policy is {self.policy!r}, expected trivialaugment, randaugment or null")

    @property
    def mirrors(self) -> bool:  # type: ignore[override]
        """Whether left and right, or above and below, may be exchanged."""
        return bool(self.flip or self.vertical_flip or self.degrees > 90)

    def __call__(self, image: ImageSource, target: InputSpec, numbers: Sequence[float]) -> Tensor:
        """Read and augment an image."""
        drawn = iter(numbers)
        box = random_box([next(drawn) for _ in range(2 * _ATTEMPTS + 2)], image.size, self.scale, self.ratio)
        result, _ = self._augmented(image, None, target, box, drawn)
        return result

    def together(
        self, image: ImageSource, mask: Mask, target: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Read and augment an image, and its mask in step; the proportions are relative to those of the size."""
        drawn = iter(numbers)
        (rows, columns), (height, width) = image.size, target.size
        ratio = [value * width / height for value in self.ratio]
        share = height * width / (rows * columns) if mask.native else 1.0
        scale = [value * share for value in self.scale]
        box = random_box([next(drawn) for _ in range(2 * _ATTEMPTS + 2)], image.size, scale, ratio)
        wanted, *place = numbers[self.draws :]
        if wanted < mask.rare:
            box = _put_onto_a_class(box, mask, place)
        result, classes = self._augmented(image, mask, target, box, drawn)
        assert classes is not None
        return result, classes

    def _augmented(
        self, image: ImageSource, mask: Mask | None, target: InputSpec, box: Box, drawn: Iterator[float]
    ) -> tuple[Tensor, Tensor | None]:
        whole = self._geometry(box, target.size, drawn)
        pixels = image.read(target.channels, at_least=enough(image.size, box, target.size))
        geometry = whole._replace(box=_in_pixels_of(pixels.shape, image.size, box))
        colour = Colour(
            brightness=1 + self.brightness * _either(drawn),
            contrast=1 + self.contrast * _either(drawn),
            saturation=1 + self.saturation * _either(drawn),
            hue=self.hue * _either(drawn),
            order=_ORDERS[int(next(drawn) * len(_ORDERS))],
        )
        # Copied where it is read-only: torch warns of sharing such memory.
        source = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self.degrees or self.translate:
            source, geometry = _not_much_larger(source, geometry, target.size)
            levels = warp(source, geometry, target.size, target.fill)
            result = to_bytes(recolour(levels, colour) if self._colours else levels)
            fill_shifted(result, geometry.shift, target.fill)
        else:
            result = _resized(source, geometry, target.size)
            if self._colours:
                result = to_bytes(recolour(result.to(torch.float32), colour))
        if self.policy:
            result = _apply_policy(self.policy, result, next(drawn), target.fill)
        classes = _warped(mask, whole, target.size) if mask is not None else None
        if next(drawn) < self.erase:
            box = random_box([next(drawn) for _ in range(10)], target.size, (0.02, 0.33), (0.3, 3.3))
            top, left, height, width = map(int, box)
            result[:, top : top + height, left : left + width] = target.fill.to(torch.uint8).view(-1, 1, 1)
            if mask is not None and classes is not None:
                classes[top : top + height, left : left + width] = mask.ignore_index
        return result, classes

    @property
    def _colours(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    def _geometry(self, box: Box, size: tuple[int, int], drawn: Iterator[float]) -> Geometry:
        return Geometry(
            box,
            flip=next(drawn) < self.flip,
            upside_down=next(drawn) < self.vertical_flip,
            angle=self.degrees * _either(drawn),
            shift=(round(size[0] * self.translate * _either(drawn)), round(size[1] * self.translate * _either(drawn))),
        )


def _put_onto_a_class(box: Box, mask: Mask, numbers: Sequence[float]) -> Box:
    """Move a box so that a pixel of a class is in it: each class of the image is as likely as any other."""
    kinds, place, down, right = numbers
    present = [value for value in np.unique(mask.classes.numpy()).tolist() if value != mask.ignore_index]
    if not present:
        return box
    found = (mask.classes == present[int(kinds * len(present))]).nonzero()
    row, column = found[int(place * len(found))].tolist()
    top, left = (
        round(min(max(pixel - share * side, 0), length - side))
        for pixel, share, side, length in zip(
            (row, column), (down, right), (box.height, box.width), mask.classes.shape, strict=True
        )
    )
    return box._replace(top=top, left=left)


def _warped(mask: Mask, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """The mask's classes under a geometry of the whole image, (*size) int64."""
    fill = torch.tensor([float(mask.ignore_index)])
    warped = warp(mask.classes[..., None], geometry, size, fill, mode="nearest")
    fill_shifted(warped, geometry.shift, fill)
    return warped[0].to(torch.int64)


def _either(drawn: Iterator[float]) -> float:
    """Uniform in -1..1."""
    return 2 * next(drawn) - 1


def _in_pixels_of(shape: Sequence[int], size: tuple[int, int], box: Box) -> Box:
    """A box of the whole image, in pixels of one that was decoded smaller."""
    down, right = shape[0] / size[0], shape[1] / size[1]
    return Box(box.top * down, box.left * right, box.height * down, box.width * right)


def _not_much_larger(pixels: Tensor, geometry: Geometry, size: tuple[int, int]) -> tuple[Tensor, Geometry]:
    """The box alone, shrunk with antialiasing, where the warp would shrink it by more than 2.

    Only a JPEG can be decoded smaller.
    """
    if max(geometry.box.height / size[0], geometry.box.width / size[1]) <= 2:
        return pixels, geometry
    part = _resized(pixels, Geometry(geometry.box), size).permute(1, 2, 0)
    return part, geometry._replace(box=Box(0, 0, *size))


def _resized(pixels: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Crop, resize with antialiasing and flip (H, W, C) uint8 to (C, *size) uint8."""
    top, left, height, width = (round(value) for value in geometry.box)
    part = pixels[top : top + max(height, 1), left : left + max(width, 1)].permute(2, 0, 1)[None]
    resized = F.interpolate(part, size, mode="bilinear", antialias=True)[0]
    mirrored = [axis for axis, wanted in ((2, geometry.flip), (1, geometry.upside_down)) if wanted]
    return resized.flip(mirrored) if mirrored else resized


def _apply_policy(name: str, image: Tensor, number: float, fill: Tensor) -> Tensor:
    from torchvision.transforms import v2

    kinds = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}
    policy = kinds[name](interpolation=v2.InterpolationMode.BILINEAR, fill=fill.tolist())
    with seeded(number):
        changed: Tensor = policy(image)
    return changed


@contextmanager
def seeded(number: float) -> Iterator[None]:
    """Torch's generator of the CPU, seeded by a number in [0, 1), and put back afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int(number * 2**53))
    try:
        yield
    finally:
        torch.set_rng_state(state)


_PHOTOGRAPHS: dict[str, dict[str, Any]] = {
    "light": {},
    "standard": {
        "degrees": 15.0,
        "translate": 0.1,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.1,
        "erase": 0.2,
    },
    "strong": {"scale": (0.35, 1.0), "policy": "trivialaugment", "erase": 0.25},
}
# A policy would move images without their masks.
_WITH_MASKS: dict[str, dict[str, Any]] = {
    **_PHOTOGRAPHS,
    "strong": {
        "scale": (0.25, 1.0),
        "degrees": 15.0,
        "translate": 0.1,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "erase": 0.25,
    },
}
_CROP = Photograph(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
PRESETS = ("none", *_PHOTOGRAPHS, "albumentations")


def create_augmentation(name: str, args: dict[str, Any] | None = None, masks: bool = False) -> Augmentation:
    """Make an augmentation.

    Args:
        name: none; light (random resized crop of 0.8 to 1 of the area, flip); standard (light, rotation 15 degrees,
            shift 0.1, colours 0.2, 0.2, 0.2, 0.1, erasing 0.2); strong (crop of 0.35 to 1, flip, TrivialAugment,
            erasing 0.25); albumentations (see data.albumentations).
        args: What is to differ from that: arguments of Photograph, or of data.albumentations.Albumentations.
        masks: Whether images have masks; strong is then a crop of 0.25 to 1 and stronger changes of geometry and
            colour, since TrivialAugment would move the image alone.

    Raises:
        InputError: If there is no such preset, or if it does not take these arguments.
    """
    args = dict(args or {})
    if name not in PRESETS:
        raise InputError(f"there is no augmentation {name!r}: {nearest(name, PRESETS)}")
    if name == "none":
        if args:
            raise InputError(f"augment is none, so augment_args {sorted(args)} would change nothing: leave them out")
        return NoAugmentation()
    if name == "albumentations":
        from cnnlab.data.albumentations import Albumentations

        if unknown := sorted(set(args) - {"transforms"}):
            raise InputError(f"augmentation 'albumentations' has no {unknown[0]!r}, only transforms")
        return Albumentations(**args)
    known = {field.name for field in dataclasses.fields(Photograph)}
    if unknown := sorted(set(args) - known):
        raise InputError(f"augmentation {name!r} has no {unknown[0]!r}: {nearest(unknown[0], known)}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if masks and settings.get("policy"):
        raise InputError(
            f"augment_args.policy {settings['policy']} would move images without their masks: leave it out"
        )
    try:
        return Photograph(**{**(_WITH_MASKS if masks else _PHOTOGRAPHS)[name], **settings})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"augment_args {args} do not fit: {error}") from error
