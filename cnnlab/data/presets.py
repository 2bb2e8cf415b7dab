"""Augmentation presets."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from cnnlab.data.albumentations import Albumentations
from cnnlab.data.augmentation import Augmentation, NoAugmentation, RandomTransform
from cnnlab.data.object_augmentation import ObjectTransform
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
# Their scale is that of the whole image: smaller objects are as useful as larger ones.
_OF_BOXES: dict[str, dict[str, Any]] = {
    "light": {"scale": (0.8, 1.25), **dict.fromkeys(_COLORS, 0.0), "hue": 0.0},
    "standard": {},
    "strong": {"scale": (0.25, 2.0), **dict.fromkeys(_COLORS, 0.4), "hue": 0.05, "degrees": 5.0},
}
_TRANSFORMS: dict[str, tuple[type[RandomTransform | ObjectTransform], dict[str, dict[str, Any]]]] = {
    "fixed": (RandomTransform, _RANDOM),
    "masks": (RandomTransform, _RANDOM_WITH_MASKS),
    "boxes": (ObjectTransform, _OF_BOXES),
}
PRESETS = ("none", *_RANDOM, "albumentations")


def create_augmentation(
    name: str, args: dict[str, Any] | None = None, annotations: Literal["fixed", "masks", "boxes"] = "fixed"
) -> Augmentation:
    """Create an augmentation.

    Args:
        name: none; light (random resized crop of 0.8 to 1 of the area, flip); standard (light, rotation 15 degrees,
            shift 0.1, colors 0.2, 0.2, 0.2, 0.1, erasing 0.2); strong (crop of 0.35 to 1, flip, TrivialAugment,
            erasing 0.25); albumentations (see data.albumentations).
        args: Changes to the preset: arguments of RandomTransform (of ObjectTransform for boxes), or of
            data.albumentations.Albumentations. none has no use for them: a line says so, since they may be those of a
            recipe.
        annotations: What the images have: fixed targets, masks, or boxes. With masks, strong is a crop of 0.25 to 1 and
            stronger changes of geometry and color, since TrivialAugment would transform the image without its mask.
            With boxes, light, standard and strong are ObjectTransform's, with more and more changes of scale.

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
    transform, presets = _TRANSFORMS[annotations]
    known = {field.name for field in dataclasses.fields(transform)}
    if unknown := sorted(set(args) - known):
        raise InputError(f"augmentation {name!r} has no {unknown[0]!r}: {nearest(unknown[0], known)}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if annotations == "masks" and settings.get("policy"):
        raise InputError(
            f"augment_args.policy {settings['policy']} would move images without their masks: leave it out"
        )
    try:
        return transform(**{**presets[name], **settings})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"augment_args {args} do not fit: {error}") from error
