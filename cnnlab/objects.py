"""Objects: the boxes of a batch's images, packed: the targets of detection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Padded(NamedTuple):
    """The objects of a batch, as many places for each image as the image with the most objects has."""

    boxes: Tensor
    """(B, M, 4) float32; zeros where there is no object."""
    labels: Tensor
    """(B, M) int64; 0 where there is no object."""
    exists: Tensor
    """(B, M) bool: whether the place holds an object that counts, which a crowd does not."""
    crowd: Tensor
    """(B, M) bool: whether the place holds a crowd, whose area is neither object nor background."""


class Truth(NamedTuple):
    """The objects of one image as the data have them."""

    boxes: npt.NDArray[np.float64]
    """(M, 4), x1, y1, x2, y2 in pixels of the upright original image."""
    labels: npt.NDArray[np.int64]
    """(M,), 0..K-1."""
    crowd: npt.NDArray[np.bool_]
    """(M,), whether it is a crowd of objects."""
    areas: npt.NDArray[np.float64]
    """(M,), in original pixels."""
    size: tuple[int, int]
    """Height and width of the original image."""
    covers: tuple[int, int]
    """Height and width of the part of the network's input that shows the image."""
    shapes: Sequence[Any] | None = None
    """For each object its rings (P, 2) of x and y, or COCO's text of its mask; None if the data have boxes only."""


class Objects:
    """The objects of B images, packed: those of an image lie together.

    Args:
        boxes: (M, 4) float32, x1, y1, x2, y2 in pixels of the network's input.
        labels: (M,) int64, 0..K-1.
        crowd: (M,) bool.
        counts: (B,) int64, the number of each image's objects; -1 if they are unknown.
        truths: Each image's objects in its original pixels, for evaluation; empty in training.
        masks: (M, S, S) uint8 0..255, each object's mask as a grid over its box; None without masks.
    """

    def __init__(
        self,
        boxes: Tensor,
        labels: Tensor,
        crowd: Tensor,
        counts: Tensor,
        truths: Sequence[Truth | None] = (),
        masks: Tensor | None = None,
    ) -> None:
        self.boxes = boxes
        self.labels = labels
        self.crowd = crowd
        self.counts = counts
        self.truths = truths
        self.masks = masks

    @property
    def device(self) -> torch.device:
        """The device of the boxes."""
        return self.boxes.device

    def __len__(self) -> int:
        """B."""
        return len(self.counts)

    def __getitem__(self, place: int | slice) -> Self:
        """The objects of some neighboring images; of one image, if the place is a number."""
        images = place if isinstance(place, slice) else slice(place, place + 1)
        first, end, step = images.indices(len(self))
        if step != 1:
            raise ValueError(f"objects can be sliced with a step of 1, not {step}")
        known = self.counts.clamp(min=0)
        begin = int(known[:first].sum())
        own = slice(begin, begin + int(known[first:end].sum()))
        masks = None if self.masks is None else self.masks[own]
        packed = (self.boxes[own], self.labels[own], self.crowd[own])
        return type(self)(*packed, self.counts[first:end], self.truths[first:end], masks)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        """Each image's objects as an array: see arrays(); behind them, if there are masks, their grids (M, S * S)."""
        if self.masks is None:
            return iter(self.arrays())
        grids = torch.split(self.masks.flatten(1).cpu(), self.counts.clamp(min=0).tolist())
        both = zip(self.arrays(), grids, strict=True)
        return (np.concatenate([rows, own], axis=1) if len(rows) == len(own) else rows for rows, own in both)

    def arrays(self) -> list[npt.NDArray[np.float32]]:
        """Each image's objects, (M, 6) x1, y1, x2, y2, label, crowd; one row of NaN if they are unknown."""
        rows = torch.cat([self.boxes, self.labels[:, None], self.crowd[:, None]], dim=1).float().cpu()
        parts: Sequence[Tensor] = torch.split(rows, self.counts.clamp(min=0).tolist())
        unknown = np.full((1, 6), np.nan, dtype=np.float32)
        return [unknown if count < 0 else part.numpy() for count, part in zip(self.counts.tolist(), parts, strict=True)]

    def padded(self) -> Padded:
        """The objects with a dimension for the images."""
        counts = self.counts.clamp(min=0)
        # At least one place, so that nobody has to handle none.
        most = max(int(counts.max()), 1)
        there = torch.arange(most, device=self.device) < counts[:, None]
        boxes = self.boxes.new_zeros(len(counts), most, 4)
        labels = self.labels.new_zeros(len(counts), most)
        crowd = torch.zeros_like(there)
        boxes[there], labels[there], crowd[there] = self.boxes, self.labels, self.crowd
        return Padded(boxes, labels, there & ~crowd, crowd)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The objects on a device."""
        return self._changed("to", *args, **kwargs)

    def pin_memory(self) -> Self:
        """The objects in page-locked memory."""
        return self._changed("pin_memory")

    def _changed(self, method: str, *args: Any, **kwargs: Any) -> Self:
        parts = (self.boxes, self.labels, self.crowd, self.counts)
        boxes, labels, crowd, counts = (getattr(part, method)(*args, **kwargs) for part in parts)
        masks = None if self.masks is None else getattr(self.masks, method)(*args, **kwargs)
        return type(self)(boxes, labels, crowd, counts, self.truths, masks)
