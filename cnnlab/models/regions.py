"""The features of an image inside boxes, from the map of a pyramid that fits a box's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

_CANONICAL = (224, 4)
"""A box of 224 x 224 pixels belongs to the map of stride 2 ** 4 (Lin et al. 2017, arXiv:1612.03144, equation 1)."""


def pool_regions(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, images: Tensor, side: int, sampling: int = 2
) -> Tensor:
    """The features inside boxes, as grids.

    Args:
        maps: The maps of a pyramid, (B, C, h, w), the finest first.
        strides: Their strides, each twice the one before.
        boxes: (R, 4), x1, y1, x2, y2 in pixels of the input; finite, or else roi_align ends the process.
        images: (R,), the image of each box.
        side: Height and width of a grid.
        sampling: The points, along each axis, that a cell is the mean of.

    Returns:
        (R, C, side, side) float32: in half precision, coordinates would be off by pixels.
    """
    rows = torch.cat([images[:, None].float(), boxes.float()], dim=1)
    first, last = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    level = LevelMapper(first, last, *_CANONICAL)([boxes.float()])
    branchless = torch.compiler.is_exporting() or boxes.is_meta
    pooled = rows.new_zeros(rows.shape[0], maps[0].shape[1], side, side)
    for place, (one, stride) in enumerate(zip(maps, strides, strict=True)):
        own = level == place
        # A file has no branches: it pools each box from all maps.
        chosen = rows if branchless else rows[own]
        part = roi_align(one.float(), chosen, side, 1 / stride, sampling)
        pooled = pooled + part * own[:, None, None, None] if branchless else pooled.index_put((own,), part)
    return pooled


def image_numbers(boxes: Tensor) -> Tensor:
    """The image (B R,) int64 of each of the boxes (B, R, 4).

    >>> image_numbers(torch.zeros(2, 3, 4))
    tensor([0, 0, 0, 1, 1, 1])
    """
    return torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(boxes.shape[:2]).flatten()
