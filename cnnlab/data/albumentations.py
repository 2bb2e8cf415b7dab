"""An optional adapter to albumentations (the extra "augment"); no shipped recipe depends on it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.augmentation import Annotated, Augmentation, InputSpec, as_tensor
from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageSource


class Albumentations(Augmentation):
    """Transforms of albumentations 2.0, seeded for each image by (seed, epoch, index).

    The default crops and flips, makes one change of color, one of geometry and one of noise or blur, then cuts holes.

    Args:
        transforms: The transforms, in order: {name: CLASS, ARGUMENT: VALUE, ...} each; "one_of" in place of "name"
            lists transforms of which one is taken (with the probability ``p``, 0.5). The default's if None.
            The result is resized to the network's size. With masks and without data.size it is cropped instead.
            Boxes move with their images.

    Raises:
        InputError: If albumentations is not installed, or if it has no such transform or argument.
    """

    draws = 1

    def __init__(self, transforms: Sequence[dict[str, Any]] | None = None) -> None:
        # albumentations looks for a newer version on the internet when it is imported.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        try:
            import albumentations
        except ImportError as error:
            raise InputError('data.augment albumentations needs it: pip install "cnnlab[augment]"') from error
        self._library: Any = albumentations
        self._given = None if transforms is None else list(transforms)
        self._pipelines: dict[Any, Any] = {}
        self.mirrors = transforms is None or any("Flip" in str(transform) for transform in transforms)
        self._pipeline(InputSpec((32, 32), 3, torch.tensor([127.0]), 1.0, "bilinear"), None)

    def __call__(
        self, image: ImageSource, annotation: Annotated, spec: InputSpec, numbers: Sequence[float]
    ) -> tuple[Tensor, Annotated]:
        """Read an image and augment it with its annotation; pixels outside the image or in a hole are ignored."""
        pipeline = self._pipeline(spec, annotation.ignore_index, annotation.least_visible)
        pipeline.set_random_seed(int(numbers[0] * 2**32))
        result = pipeline(image=image.read(spec.channels), **annotation.to_arrays())
        pixels = result["image"]
        return as_tensor(pixels if pixels.ndim == 3 else pixels[..., None]), annotation.from_arrays(result)

    def _pipeline(self, spec: InputSpec, outside: int | None, least_visible: float | None = None) -> Any:
        key = (spec.size, outside, spec.native, least_visible)
        if key not in self._pipelines:
            fill = tuple(spec.fill.tolist())
            given = default_transforms(spec.size, fill, spec.native) if self._given is None else self._given
            last = {"name": "Resize", "height": spec.size[0], "width": spec.size[1]}
            steps = [
                self._create(step, outside) for step in (*given, _crop_of(spec.size, fill) if spec.native else last)
            ]
            boxes = None
            if least_visible is not None:
                boxes = self._library.BboxParams(
                    "pascal_voc", ["numbers"], min_visibility=least_visible, clip=True, filter_invalid_bboxes=True
                )
            self._pipelines[key] = self._library.Compose(steps, bbox_params=boxes)
        return self._pipelines[key]

    def _create(self, description: dict[str, Any], outside: int | None) -> Any:
        settings = dict(description)
        if "one_of" in settings:
            if unknown := sorted(set(settings) - {"one_of", "p"}):
                raise InputError(f"one_of has no {unknown[0]!r}, only p")
            return self._library.OneOf(
                [self._create(inner, outside) for inner in settings["one_of"]], p=settings.get("p", 0.5)
            )
        name = settings.pop("name", None)
        if not isinstance(name, str) or not hasattr(self._library, name):
            raise InputError(f"albumentations has no transform {name!r}: {nearest(str(name), vars(self._library))}")
        if outside is not None and "fill_mask" in inspect.signature(getattr(self._library, name)).parameters:
            # Otherwise these pixels would be class 0.
            settings.setdefault("fill_mask", outside)
        try:
            with warnings.catch_warnings():
                # albumentations only warns about unknown arguments, and drops them.
                warnings.simplefilter("error")
                return getattr(self._library, name)(**settings)
        except (UserWarning, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"albumentations' {name} does not take these arguments: {reason}") from error


def default_transforms(
    size: tuple[int, int], fill: Sequence[float] = (127.0,), native: bool = False
) -> list[dict[str, Any]]:
    """The default transforms, in the form that Albumentations takes, to a height and width; native only crops.

    ``fill`` is the value of pixels outside the image and in holes, for each channel, 0..255.
    """
    crop: dict[str, Any] = {"name": "RandomResizedCrop", "size": size, "scale": (0.8, 1.0)}
    if native:
        crop = _crop_of(size, fill)
    holes = {"hole_height_range": (0.05, 0.15), "hole_width_range": (0.05, 0.15), "fill": tuple(fill)}
    return [
        crop,
        {"name": "HorizontalFlip", "p": 0.5},
        {
            "one_of": [
                {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2},
                {"name": "HueSaturationValue", "hue_shift_limit": 15, "sat_shift_limit": 25, "val_shift_limit": 15},
                {"name": "RandomGamma", "gamma_limit": (80, 120)},
            ],
            "p": 0.7,
        },
        {
            "one_of": [
                {"name": "Affine", "rotate": (-15, 15), "translate_percent": (-0.1, 0.1), "fill": tuple(fill)},
                {"name": "Perspective", "scale": (0.02, 0.08), "fill": tuple(fill)},
                {"name": "ElasticTransform", "alpha": 30, "sigma": 6, "fill": tuple(fill)},
            ],
            "p": 0.5,
        },
        {
            "one_of": [
                {"name": "GaussNoise", "std_range": (0.02, 0.08)},
                {"name": "GaussianBlur", "blur_limit": (3, 5)},
                {"name": "MotionBlur", "blur_limit": 5},
            ],
            "p": 0.3,
        },
        {"name": "CoarseDropout", "num_holes_range": (1, 4), "p": 0.3, **holes},
    ]


def _crop_of(size: tuple[int, int], fill: Sequence[float]) -> dict[str, Any]:
    return {"name": "RandomCrop", "height": size[0], "width": size[1], "pad_if_needed": True, "fill": tuple(fill)}
