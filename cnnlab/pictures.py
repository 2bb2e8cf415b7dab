"""Between torch and pictures: images as pixels, answers and targets as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from cnnlab.imaging import Pixels

_LONGEST = 320
"""The longest side of a thumbnail, in pixels."""


def as_rgb(image: Tensor) -> Pixels:
    """An image (C, H, W), uint8 or float in 0..1, as (H, W, 3) uint8: its first three channels, or its first."""
    shown = (image[:3] if len(image) >= 3 else image[:1]).cpu()
    # NumPy knows no bfloat16.
    levels: npt.NDArray[Any] = shown.numpy() if shown.element_size() == 1 else shown.float().numpy() * 255
    pixels = np.rint(levels).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def numpy_answers(answers: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """A decoder's arrays in NumPy."""
    return {name: value.cpu().numpy() for name, value in answers.items()}


def numpy_targets(targets: Any) -> list[npt.NDArray[Any]]:
    """Each image's target in NumPy."""
    return list(targets.cpu().numpy()) if isinstance(targets, Tensor) else [np.asarray(one) for one in targets]


def thumbnail(pixels: Pixels) -> Pixels:
    """A picture (H, W, 3), shrunk so that it is no higher than 320 pixels and images side by side stay as wide."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((max(_LONGEST, _LONGEST * pixels.shape[1] // pixels.shape[0]), _LONGEST))
    return np.asarray(image)
