"""PathAggregation: features of several strides that know of each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.models.blocks import conv_bn


def separable(inputs: int, outputs: int, kernel: int = 5, stride: int = 1) -> nn.Sequential:
    """A depthwise convolution and a 1x1 convolution, each with batch norm and SiLU."""
    return nn.Sequential(
        *conv_bn(inputs, inputs, kernel, stride, groups=inputs), nn.SiLU(), *conv_bn(inputs, outputs, 1), nn.SiLU()
    )


class PathAggregation(nn.Module):
    """A pyramid with a way down and a way back up (PANet, Liu et al. 2018, arXiv:1803.01534), of separable layers.

    Args:
        widths: The channels of the features, the finest first.
        width: The channels of the result, the same for all strides.

    >>> neck = PathAggregation([8, 16, 32], 12)
    >>> [tuple(level.shape) for level in neck([torch.zeros(1, 8, 16, 8), torch.zeros(1, 16, 8, 4),
    ...     torch.zeros(1, 32, 4, 2)])]
    [(1, 12, 16, 8), (1, 12, 8, 4), (1, 12, 4, 2)]
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        pairs = len(widths) - 1
        self.lateral = nn.ModuleList(nn.Sequential(*conv_bn(inputs, width, 1), nn.SiLU()) for inputs in widths)
        self.down = nn.ModuleList(separable(2 * width, width) for _ in range(pairs))
        self.halve = nn.ModuleList(separable(width, width, stride=2) for _ in range(pairs))
        self.up = nn.ModuleList(separable(2 * width, width) for _ in range(pairs))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps, the finest first, each of half the size, to maps of the same sizes."""
        maps = [layer(one) for layer, one in zip(self.lateral, features, strict=True)]
        for place in reversed(range(len(self.down))):
            coarse = F.interpolate(maps[place + 1], size=maps[place].shape[-2:], mode="nearest")
            maps[place] = self.down[place](torch.cat([maps[place], coarse], dim=1))
        for place, (halve, merge) in enumerate(zip(self.halve, self.up, strict=True)):
            maps[place + 1] = merge(torch.cat([maps[place + 1], halve(maps[place])], dim=1))
        return maps
