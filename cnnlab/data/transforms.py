"""Augmentation of whole batches; each sample has its own random numbers, passed in by the caller."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.errors import InputError


class RandomAffine:
    """Rotate, shift and scale each image of a batch by its own random amounts, in one warp.

    Pixels from outside the image are 0 (black); interpolation is bilinear.

    Args:
        degrees: Maximum rotation to either side, in degrees.
        translate: Maximum shift, as a share of height and width, 0..1.
        scale: Maximum change of size: 0.1 draws factors from 0.9 to 1.1.

    Raises:
        InputError: If an amount is negative, or if scale is not below 1.
    """

    draws = 4
    """The number of uniform random numbers that an image needs."""

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: float = 0.0) -> None:
        for name, value, limit in (("degrees", degrees, 181.0), ("translate", translate, 1.0), ("scale", scale, 1.0)):
            if not 0 <= value < limit:
                raise InputError(f"{name} is {value}, expected a number from 0 up to (not including) {limit:g}")
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    @property
    def is_identity(self) -> bool:
        """Whether all amounts are 0, so that images do not change."""
        return not (self.degrees or self.translate or self.scale)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Warp a batch.

        Args:
            images: (B, C, H, W), uint8 0..255.
            draws: (B, 4), uniform in [0, 1).

        Returns:
            (B, C, H, W), uint8 0..255.
        """
        centered = draws.to(torch.float32) * 2 - 1
        angle = centered[:, 0] * math.radians(self.degrees)
        factor = 1 + centered[:, 1] * self.scale
        shift = centered[:, 2:4] * 2 * self.translate
        height, width = images.shape[-2:]
        cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
        # affine_grid maps output to input positions in -1..1, so the rotation of an image that is not square needs its
        # aspect ratio.
        theta = torch.stack(
            [
                torch.stack([cos, -sin * height / width, shift[:, 0]], dim=1),
                torch.stack([sin * width / height, cos, shift[:, 1]], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        warped = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", align_corners=False)
        return warped.round_().to(torch.uint8)
