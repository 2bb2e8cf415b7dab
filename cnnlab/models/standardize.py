"""Standardization of pixels as a layer of the model, so that it is part of checkpoints and exported files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError


class Standardize(nn.Module):
    """Standardize pixels: divide uint8 by 255, subtract mean, divide by std.

    Args:
        mean: Per channel, in 0..1.
        std: Per channel, in 0..1, greater than 0.

    Raises:
        InputError: If mean and std differ in length or are empty, or a std is not above 0.

    >>> layer = Standardize([0.5], [0.25])
    >>> layer(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
    2.0
    >>> layer(torch.full((1, 1, 1, 1), 0.5)).item()
    0.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise InputError(f"mean has {len(mean)} and std {len(std)} values, expected one of each for every channel")
        if min(std) <= 0:
            raise InputError(f"std is {list(std)}, expected values above 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 0..255 or float 0..1, to floats of the same shape.

        Raises:
            InputError: If the images have another number of channels than the mean.
        """
        if images.ndim != 4 or images.shape[1] != self.mean.shape[1]:
            raise InputError(
                f"images have the shape {tuple(images.shape)}, but the network was made for {self.mean.shape[1]} "
                f"channel(s): (batch, {self.mean.shape[1]}, height, width); convert the images, or train with "
                "the data set's own number of channels"
            )
        if images.is_floating_point():
            return (images.to(self.mean.dtype) - self.mean) / self.std
        # The float copy is changed in place, which keeps it in the processor's cache.
        return images.to(self.mean.dtype).sub_(self.mean * 255.0).div_(self.std * 255.0)
