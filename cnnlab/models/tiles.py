"""Detection in large images: overlapping tiles, whose raw outputs become those of the whole image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError

_MULTIPLE = 32
"""Tiles start at multiples of it, and so at places of the coarsest stride."""
_AT_ONCE = 16
"""Tiles that are processed together."""
_WITH_BOXES = ("boxes", "found_boxes", "regions", "proposals", "proposal_boxes")
_WITH_CENTERS = ("places", "proposal_places")
_MAPS = ("fine",)
"""Outputs that are maps of the image."""
_Raw = Mapping[str, Tensor]


class Tiles(nn.Module):
    """A detector that finds objects in overlapping tiles of an image.

    Args:
        network: Standardized images (B, C, size, size) to raw outputs.
        size: Height and width of a tile, a multiple of 32.
        overlap: The share of a tile that its neighbor shows too, at least; 0 up to (not including) 1.
    """

    def __init__(self, network: nn.Module, size: int, overlap: float) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.overlap = overlap

    def forward(self, images: Tensor) -> _Raw:
        """Standardized images (B, C, H, W) to raw outputs: see detect_in_tiles."""
        outputs: _Raw = detect_in_tiles(self.network, images, self.size, self.overlap)
        return outputs


def check_tiles(size: int | None, overlap: float) -> None:
    """Check a tile's size and overlap.

    Raises:
        InputError: If they are out of range.
    """
    if size is not None and (size < _MULTIPLE or size % _MULTIPLE):
        raise InputError(f"model.tile is {size}, expected a multiple of {_MULTIPLE}")
    if not 0 <= overlap < 1:
        raise InputError(f"model.tile_overlap is {overlap}, expected 0 up to 1")


def tile_starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the tiles of an axis start: evenly spaced multiples of 32, the last one at the end.

    Args:
        length: The axis in pixels; above ``size``, it differs from it by a multiple of 32.
        size: The tiles' length.
        overlap: See Tiles.

    >>> tile_starts(160, 64, 0.25)
    [0, 32, 64, 96]
    >>> tile_starts(160, 64, 0.0)
    [0, 32, 96]
    """
    if length <= size:
        return [0]
    step = max(_MULTIPLE, int(size * (1 - overlap)) // _MULTIPLE * _MULTIPLE)
    last = length - size
    count = -(-last // step)
    return [place * last // count // _MULTIPLE * _MULTIPLE for place in range(count)] + [last]


def detect_in_tiles(network: Callable[[Tensor], Any], images: Tensor, size: int, overlap: float) -> Any:
    """Detect objects tile by tile.

    Args:
        network: Standardized images (B, C, h, w) to raw outputs, such as those of models.detector.Detector.
        images: (B, C, H, W).
        size: See Tiles.
        overlap: See Tiles.

    Returns:
        The raw outputs of all tiles, as if a network with many places had seen the whole image; and windows (B, P, 4),
        the tile of each place. If one tile covers the image, the network's own outputs.
    """
    height, width = images.shape[-2:]
    if height <= size and width <= size:
        return network(images)
    padding = [-(side - size) % _MULTIPLE if side > size else 0 for side in (width, height)]
    images = F.pad(images, (0, padding[0], 0, padding[1]))
    height, width = images.shape[-2:]
    rows, columns = min(size, height), min(size, width)
    starts = [(top, left) for top in tile_starts(height, size, overlap) for left in tile_starts(width, size, overlap)]
    tiles = torch.cat([images[..., top : top + rows, left : left + columns] for top, left in starts])
    found = _by_parts(network, tiles)
    offsets = tiles.new_tensor([[left, top, left, top] for top, left in starts], dtype=torch.float32)
    joined: dict[str, Tensor] = {}
    for name, value in found.items():
        of_tile = torch.unflatten(value, 0, (len(starts), -1))
        if name in _MAPS:
            joined[name] = _stitched(of_tile, starts, columns, (height, width))
            continue
        if name in _WITH_BOXES or name in _WITH_CENTERS:
            moves = offsets if name in _WITH_BOXES else F.pad(offsets[:, :2], (0, 1))
            of_tile = of_tile + moves[:, None, None].to(value.dtype)
        joined[name] = of_tile.transpose(0, 1).flatten(1, 2)
    count = found.get("found_scores", found["logits"]).shape[1]
    windows = offsets + offsets.new_tensor([0, 0, columns, rows])
    joined["windows"] = windows.repeat_interleave(count, dim=0).expand(images.shape[0], -1, 4)
    return joined


def _by_parts(network: Callable[[Tensor], Any], tiles: Tensor) -> dict[str, Tensor]:
    """The raw outputs of many tiles, some at a time; all at once in an exported file, which so stays small."""
    if torch.compiler.is_exporting():
        return dict(network(tiles))
    parts = [network(part) for part in torch.split(tiles, _AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _stitched(parts: Tensor, starts: list[tuple[int, int]], side: int, size: tuple[int, int]) -> Tensor:
    """The feature map of the whole image from those of the tiles (T, B, C, h, w)."""
    stride = side // parts.shape[-1]
    whole = parts.new_zeros(*parts.shape[1:3], size[0] // stride, size[1] // stride)
    for part, (top, left) in zip(parts, starts, strict=True):
        rows, columns = part.shape[-2:]
        whole[..., top // stride : top // stride + rows, left // stride : left // stride + columns] = part
    return whole
