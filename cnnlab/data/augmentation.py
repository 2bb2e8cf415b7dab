"""Augmentation: turns an opened image and its annotation into training input of the network's size."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.annotations import Annotation
from cnnlab.data.warp import (
    Box,
    Color,
    Geometry,
    decode_size,
    fill_shifted,
    random_box,
    recolor,
    to_bytes,
    warp,
)
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, ImageSource, Pixels, preprocess

Annotated = TypeVar("Annotated", bound=Annotation)

_ORDERS = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
_ATTEMPTS = 10
"""The number of boxes that are tried, as in torchvision."""


class InputSpec(NamedTuple):
    """The size, channels and fill of the network's input, and how an image is resized to it."""

    size: tuple[int, int]
    """Height and width."""
    channels: int
    """3 or 1."""
    fill: Tensor
    """(channels,) float, 0..255: the value of erased pixels and of pixels outside the image."""
    crop: float
    """See imaging.Preprocessing; for images that are not augmented."""
    interpolation: str
    """See imaging.Preprocessing; for images that are not augmented."""
    stretch: bool = False
    """Whether the whole image is resized, whatever its aspect ratio, instead of its center being cropped.
    A training crop then has the aspect ratio of ``size``, times a factor within the requested ratio."""
    native: bool = False
    """Whether a training crop has about ``size`` pixels; otherwise it is a share of the image."""
    fit: bool = False
    """Whether the whole image is fitted into ``size`` with its aspect ratio, and what is left over is filled."""
    whole: tuple[int, int] | None = None
    """The size that whole images are fitted into in evaluation, if a training image is a part of one."""

    def eval_transform(self) -> EvalTransform:
        """The transform of an image that is not augmented."""
        pad = tuple(self.fill.tolist()) if self.fit else None
        return EvalTransform(self.channels, self.size, self.crop, self.interpolation, self.stretch, pad=pad)


class Augmentation(ABC):
    """The augmentation of training images; the same numbers give the same image."""

    draws: int = 0
    """How many random numbers an image needs."""
    mirrors: bool = False
    """Whether images may be flipped, left to right or upside down."""

    @abstractmethod
    def __call__(
        self, image: ImageSource, annotation: Annotated, spec: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Annotated]:
        """Read an image and augment it with its annotation.

        Args:
            image: The opened file.
            annotation: The image's annotation.
            spec: The network's input.
            numbers: ``draws + annotation.draws`` numbers, uniform in [0, 1).

        Returns:
            The image (channels, *size), uint8, and its annotation.

        Raises:
            ImageError: If the file cannot be read.
        """


class NoAugmentation(Augmentation):
    """The image as in evaluation; with a native spec, a crop of the spec's size at a random place."""

    def __call__(
        self, image: ImageSource, annotation: Annotated, spec: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Annotated]:
        """Read and resize, or crop, an image."""
        if spec.native:
            place = list(numbers[-2:]) or [0.5, 0.5]
            own = [0.5] * (2 * _ATTEMPTS) + place + [0.5] * (_CROP.draws - 2 * _ATTEMPTS - 2)
            return _CROP(image, annotation, spec, [*own, *numbers])
        transform = spec.eval_transform()
        return as_tensor(preprocess(image, transform)), annotation.resize(transform.place(image.size).covers)


def as_tensor(pixels: Pixels) -> Tensor:
    """(H, W, C) to (C, H, W)."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@dataclass(frozen=True)
class RandomTransform(Augmentation):
    """Crop, flip, rotate, shift, change colors, erase, in this order; one warp and one color matrix.

    Args:
        scale: Minimum and maximum share of the area that the crop keeps.
        ratio: Minimum and maximum width / height of the crop.
        flip: Probability of a flip from left to right.
        vertical_flip: Probability of a flip upside down.
        degrees: Maximum rotation to either side.
        translate: Maximum shift, as a share of height and width, 0..1.
        brightness: Maximum change of brightness: 0.2 draws factors from 0.8 to 1.2.
        contrast: Maximum change of contrast.
        saturation: Maximum change of saturation.
        hue: Maximum change of hue, in turns, 0..0.5.
        erase: Probability of erasing a rectangle (Zhong et al. 2017).
        policy: trivialaugment (Mueller and Hutter 2021) or randaugment (Cubuk et al. 2019), applied last.

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
        check_amounts(self, {"degrees": 180.0, "hue": 0.5}, {"scale": 1.0, "ratio": math.inf}, ("policy",))
        if self.policy not in (None, "trivialaugment", "randaugment"):
            raise InputError(f"augment_args.policy is {self.policy!r}, expected trivialaugment, randaugment or null")

    @property
    def mirrors(self) -> bool:  # type: ignore[override]
        """Whether images may be flipped, left to right or upside down."""
        return bool(self.flip or self.vertical_flip or self.degrees > 90)

    def __call__(
        self, image: ImageSource, annotation: Annotated, spec: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Annotated]:
        """Read an image and augment it with its annotation."""
        drawn = iter(numbers)
        height, width = spec.size
        share = height * width / math.prod(image.size) if spec.native else 1.0
        scale = [value * share for value in self.scale]
        ratio = [value * width / height for value in self.ratio] if spec.stretch else self.ratio
        crop = random_box([next(drawn) for _ in range(2 * _ATTEMPTS + 2)], image.size, scale, ratio)
        crop = annotation.move_crop(crop, numbers[self.draws :])
        whole = Geometry(
            crop,
            flip=next(drawn) < self.flip,
            upside_down=next(drawn) < self.vertical_flip,
            angle=self.degrees * signed(drawn),
            shift=(round(height * self.translate * signed(drawn)), round(width * self.translate * signed(drawn))),
        )
        pixels = image.read(spec.channels, at_least=decode_size(image.size, crop, spec.size))
        geometry = whole._replace(box=scale_box(pixels.shape, image.size, crop))
        color = draw_color(drawn, self.brightness, self.contrast, self.saturation, self.hue)
        # Read-only pixels are copied: torch warns about sharing such memory.
        source = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self.degrees or self.translate:
            source, geometry = _shrink_to_size(source, geometry, spec.size)
            levels = warp(source, geometry, spec.size, spec.fill)
            result = to_bytes(recolor(levels, color) if self._colors else levels)
            fill_shifted(result, geometry.shift, spec.fill)
        else:
            result = _resized(source, geometry, spec.size)
            if self._colors:
                result = to_bytes(recolor(result.to(torch.float32), color))
        if self.policy:
            result = _apply_policy(self.policy, result, next(drawn), spec.fill)
        annotation = annotation.warp(whole, spec.size)
        if next(drawn) < self.erase:
            box = random_box([next(drawn) for _ in range(10)], spec.size, (0.02, 0.33), (0.3, 3.3))
            top, left, rows, columns = map(int, box)
            result[:, top : top + rows, left : left + columns] = spec.fill.to(torch.uint8).view(-1, 1, 1)
            annotation = annotation.erase(box)
        return result, annotation

    @property
    def _colors(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


def check_amounts(
    transform: Any, limits: Mapping[str, float], pairs: Mapping[str, float], others: Sequence[str]
) -> None:
    """Check the fields of a transform, which are numbers of 0 or more.

    Args:
        transform: A dataclass.
        limits: The largest numbers, by name, if not 1.
        pairs: The fields that are two ascending numbers above 0, with their largest number.
        others: The fields that are something else.

    Raises:
        InputError: If a field is out of range.
    """
    for field in dataclasses.fields(transform):
        value = getattr(transform, field.name)
        if field.name in pairs:
            low, high = value
            if not 0 < low <= high <= pairs[field.name]:
                raise InputError(f"augment_args.{field.name} is {[low, high]}, expected two ascending numbers above 0")
        elif field.name not in others:
            if not isinstance(value, (int, float)):
                raise InputError(f"augment_args.{field.name} is {value!r}, expected a number")
            if not 0 <= value <= limits.get(field.name, 1.0):
                raise InputError(f"augment_args.{field.name} is {value}, expected 0 to {limits.get(field.name, 1.0):g}")


def draw_color(drawn: Iterator[float], brightness: float, contrast: float, saturation: float, hue: float) -> Color:
    """Draw changes of color: see RandomTransform.

    Args:
        drawn: Numbers, uniform in [0, 1), of which five are used.
        brightness: The maximum change.
        contrast: The maximum change.
        saturation: The maximum change.
        hue: The maximum change.
    """
    return Color(
        brightness=1 + brightness * signed(drawn),
        contrast=1 + contrast * signed(drawn),
        saturation=1 + saturation * signed(drawn),
        hue=hue * signed(drawn),
        order=_ORDERS[int(next(drawn) * len(_ORDERS))],
    )


def signed(drawn: Iterator[float]) -> float:
    """The next number, mapped to -1..1."""
    return 2 * next(drawn) - 1


def scale_box(shape: Sequence[int], size: tuple[int, int], box: Box) -> Box:
    """Convert a box from pixels of the whole image to pixels of the decoded image."""
    down, right = shape[0] / size[0], shape[1] / size[1]
    return Box(box.top * down, box.left * right, box.height * down, box.width * right)


def _shrink_to_size(pixels: Tensor, geometry: Geometry, size: tuple[int, int]) -> tuple[Tensor, Geometry]:
    """Crop the box and shrink it with antialiasing, if the warp would shrink it by more than 2.

    JPEG is the only format that can be decoded at a smaller size, so other images need this.
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
    """Seed torch's CPU generator by a number in [0, 1), and restore its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int(number * 2**53))
    try:
        yield
    finally:
        torch.set_rng_state(state)


_CROP = RandomTransform(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
