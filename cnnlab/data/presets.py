"""Augmentation presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from cnnlab.data.albumentations import Albumentations
from cnnlab.data.augmentation import Augmentation, NoAugmentation, RandomTransform
from cnnlab.errors import InputError, nearest

_COLORS = ("brightness", "contrast", "saturation")
_STANDARD = {"degrees": 15.0, "translate": 0.1, **dict.fromkeys(_COLORS, 0.2), "hue": 0.1, "erase": 0.2}
_RANDOM: dict[str, dict[str, Any]] = {
    "light": {},
    "standard": _STANDARD,
    "strong": {"scale": (0.35, 1.0), "policy": "trivialaugment", "erase": 0.25},
}
# torchvision's policies would transform images without their masks.
_RANDOM_WITH_MASKS: dict[str, dict[str, Any]] = {
    **_RANDOM,
    "strong": {**_STANDARD, **dict.fromkeys(_COLORS, 0.4), "scale": (0.25, 1.0), "erase": 0.25},
}
PRESETS = ("none", *_RANDOM, "albumentations")


def create_augmentation(name: str, args: dict[str, Any] | None = None, masks: bool = False) -> Augmentation:
    """Create an augmentation.

    Args:
        name: none; light (random resized crop of 0.8 to 1 of the area, flip); standard (light, rotation 15 degrees,
            shift 0.1, colors 0.2, 0.2, 0.2, 0.1, erasing 0.2); strong (crop of 0.35 to 1, flip, TrivialAugment,
            erasing 0.25); albumentations (see data.albumentations).
        args: Changes to the preset: arguments of RandomTransform, or of data.albumentations.Albumentations. none has
            no use for them: a line says so, since they may be those of a recipe.
        masks: Whether images have masks; strong is then a crop of 0.25 to 1 and stronger changes of geometry and
            color, since TrivialAugment would transform the image without its mask.

    Raises:
        InputError: If there is no such preset, or if it does not take these arguments.
    """
    args = dict(args or {})
    if name not in PRESETS:
        raise InputError(f"there is no augmentation {name!r}: {nearest(name, PRESETS)}")
    if name == "none":
        if args:
            rank_zero_info(f"data.augment is none: data.augment_args ({', '.join(sorted(args))}) change nothing")
        return NoAugmentation()
    if name == "albumentations":
        if unknown := sorted(set(args) - {"transforms"}):
            raise InputError(f"augmentation 'albumentations' has no {unknown[0]!r}, only transforms")
        return Albumentations(**args)
    known = {field.name for field in dataclasses.fields(RandomTransform)}
    if unknown := sorted(set(args) - known):
        raise InputError(f"augmentation {name!r} has no {unknown[0]!r}: {nearest(unknown[0], known)}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if masks and settings.get("policy"):
        raise InputError(
            f"augment_args.policy {settings['policy']} would move images without their masks: leave it out"
        )
    try:
        return RandomTransform(**{**(_RANDOM_WITH_MASKS if masks else _RANDOM)[name], **settings})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"augment_args {args} do not fit: {error}") from error
