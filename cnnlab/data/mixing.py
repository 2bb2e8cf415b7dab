"""Mixup and CutMix: two neighbors in a batch become one image, with labels weighted by their shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.errors import InputError, nearest


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), each image with its neighbor in the batch.

    Images 0 and 1 are partners, then 2 and 3, and so on: neighbors in the order of the epoch. So the number of
    processes does not matter if each has an even batch. The last image of an odd number is not mixed. Each pair has
    its own share, the same for both images.

    Args:
        mixup: The alpha of Beta(alpha, alpha), from which mixup's shares are drawn; 0 for no mixup.
        cutmix: The same for CutMix; 0 for no CutMix.
        switch: The probability of CutMix if both are on.
        probability: The probability that a pair is mixed at all.

    Raises:
        InputError: If a number is out of range.
    """

    mixup: float = 0.2
    cutmix: float = 1.0
    switch: float = 0.5
    probability: float = 1.0

    draws = 5
    """The number of uniform random numbers that an image needs."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise InputError(f"mixing.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("switch", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"mixing.{name} is {getattr(self, name)}, expected 0 to 1")
        if not self.mixup and not self.cutmix:
            raise InputError("mixing.mixup and mixing.cutmix are both 0: set data.mixing to null instead")

    def __call__(
        self, images: Tensor, targets: Tensor, numbers: npt.NDArray[np.float64], num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W), uint8.
            targets: (B,) int64 classes, or (B, K) float.
            numbers: (B, 5), uniform in [0, 1).
            num_classes: K.

        Returns:
            Images (B, C, H, W) uint8, and targets (B, K) float, weighted by the actual shares of the pixels.
        """
        soft = targets if targets.ndim == 2 else F.one_hot(targets, num_classes).to(torch.float32)
        mixed, shares = images.clone(), torch.ones(len(images))
        for i in range(len(images) // 2 * 2):
            # Both images of a pair are mixed with the same numbers, so that no part of either is lost.
            wanted, kind, share, down, right = numbers[i // 2 * 2]
            if wanted >= self.probability:
                continue
            partner = images[i ^ 1]
            if self.cutmix and (not self.mixup or kind < self.switch):
                kept = beta_quantile(share, self.cutmix)
                shares[i] = _paste(mixed[i], partner, kept, (down, right))
            else:
                kept = beta_quantile(share, self.mixup)
                blend = torch.lerp(partner.to(torch.float32), images[i].to(torch.float32), kept)
                mixed[i] = blend.round_().to(torch.uint8)
                shares[i] = kept
        paired = torch.arange(len(images)) ^ 1
        paired[paired >= len(images)] = len(images) - 1
        weights = shares[:, None]
        return mixed, weights * soft + (1 - weights) * soft[paired]


def _paste(image: Tensor, partner: Tensor, kept: float, place: Sequence[float]) -> float:
    """Paste a rectangle of the partner into an image, in place; return the share of the image that is left."""
    height, width = image.shape[-2:]
    side = math.sqrt(1 - kept)
    center_y, center_x = place[0] * height, place[1] * width
    top, bottom = (round(min(max(center_y + sign * side * height / 2, 0), height)) for sign in (-1, 1))
    left, right = (round(min(max(center_x + sign * side * width / 2, 0), width)) for sign in (-1, 1))
    image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)


def beta_quantile(share: float, alpha: float) -> float:
    """The quantile function of Beta(alpha, alpha), which turns a uniform random number into a draw from it.

    >>> beta_quantile(0.25, 1.0)
    0.25
    >>> round(beta_quantile(0.5, 0.2), 3)
    0.5
    """
    if alpha == 1:
        return share
    grid, cumulated = _beta_table(alpha)
    return float(np.interp(share, cumulated, grid))


@cache
def _beta_table(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # With x = u^(1/alpha) / 2 the density's pole at 0 disappears, so the integrand is smooth.
    u = np.linspace(0, 1, 4097)
    x = u ** (1 / alpha) / 2
    density = (1 - x) ** (alpha - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(u))])
    half = area / area[-1] / 2
    return np.concatenate([x, 1 - x[-2::-1]]), np.concatenate([half, 1 - half[-2::-1]])


def create_mixing(settings: bool | dict[str, float] | None, kind: type[Any] = Mixing) -> Any:
    """Create a Mixing, or another kind of it, from true or from its arguments; None from false or nothing.

    Raises:
        InputError: If an argument is unknown or out of range.
    """
    if not settings:
        return None
    given = settings if isinstance(settings, dict) else {}
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"data.mixing has no {unknown[0]!r}: {nearest(unknown[0], known)}")
    return kind(**given)
