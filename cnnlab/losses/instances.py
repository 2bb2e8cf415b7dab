"""InstanceLoss: a loss of boxes, and the loss of the masks of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample

from cnnlab.losses.detection import box_iou
from cnnlab.losses.parts import PartsLoss
from cnnlab.objects import Objects, Padded

_GOOD_IOU = 0.5
"""From this IoU on, a predicted box takes the place of the true one as the region of a mask."""


class Regions(NamedTuple):
    """The boxes whose masks are learned: one for each object that has a mask."""

    boxes: Tensor
    """(R, 4), x1, y1, x2, y2 in pixels of the input; one more that stands for nothing, so that there always is one."""
    images: Tensor
    """(R,) int64, the image of each."""
    labels: Tensor
    """(R,) int64, the class of each."""
    objects: Tensor
    """(R - 1,) int64, the object of each, among all of the batch."""


class InstanceLoss(PartsLoss):
    """A loss of boxes, and the cross-entropy of the pixels of each object's mask, a mean over objects.

    A mask is learned in the predicted box near its object with the highest score, which is the one that will be found
    later; in the true box, if no predicted one is near.

    Args:
        boxes: The loss of scores and boxes.
        mask_weight: The weight of the masks' part.
    """

    def __init__(self, boxes: PartsLoss, mask_weight: float = 2.0) -> None:
        super().__init__()
        self.boxes = boxes
        self.mask_weight = mask_weight
        self.num_parts = boxes.num_parts + 1

    def counts(self, targets: Objects) -> Tensor:
        """Those of the loss of boxes; for the masks, the objects that are no crowds."""
        return torch.cat([self.boxes.counts(targets), (~targets.crowd).sum().float()[None]])

    def parts(self, outputs: Mapping[str, Any], targets: Objects) -> Tensor:
        """The parts of the loss of boxes, and that of the masks.

        Args:
            outputs: What the loss of boxes takes; and mask_regions, of regions(), which may have been grown, and
                region_logits (R, S, S), the masks as grids over them.
            targets: The objects of B images.
        """
        of_boxes = self.boxes.parts(outputs, targets)
        regions, logits = outputs["mask_regions"], outputs["region_logits"].float()
        assert isinstance(regions, Regions)
        assert targets.masks is not None
        wanted = masks_in(targets.masks, targets.boxes, regions, logits.shape[-1])
        errors = binary_cross_entropy_with_logits(logits[:-1], wanted, reduction="none").mean(dim=(1, 2))
        of_masks = self.mask_weight * errors.sum() / max(len(errors), 1) + 0.0 * logits.sum()
        return torch.cat([of_boxes, of_masks[None]])

    @torch.no_grad()
    def regions(self, outputs: Mapping[str, Tensor], targets: Objects) -> Regions:
        """The boxes whose masks are learned.

        Args:
            outputs: Raw outputs with logits (B, P, K), and boxes (B, P, 4) or (B, P, K, 4).
            targets: The objects of B images.
        """
        padded, boxes = targets.padded(), outputs["boxes"].float()
        image, number = padded.exists.nonzero(as_tuple=True)
        true, labels = padded.boxes[image, number], padded.labels[image, number]
        if len(image):
            of_class = padded.labels[:, None].expand(-1, boxes.shape[1], -1)
            scores = outputs["logits"].float().sigmoid().gather(2, of_class).transpose(1, 2)
            near = _iou_of_class(padded, boxes) >= _GOOD_IOU
            best, place = (value[image, number] for value in scores.masked_fill(~near, -1.0).max(dim=-1))
            found = boxes[image, place] if boxes.ndim == 3 else boxes[image, place, labels]
            true = torch.where((best >= 0)[:, None], found, true)
        nothing, first = boxes.new_tensor([[0.0, 0, 8, 8]]), image.new_zeros(1)
        objects = (~targets.crowd).nonzero()[:, 0]
        return Regions(torch.cat([true, nothing]), torch.cat([image, first]), torch.cat([labels, first]), objects)


def _iou_of_class(objects: Padded, boxes: Tensor) -> Tensor:
    """The IoU (B, M, P) of each object and each place's box, which may be another one for each class."""
    if boxes.ndim == 3:
        return box_iou(objects.boxes, boxes)
    batch, places = boxes.shape[:2]
    of_class = objects.labels[..., None, None].expand(-1, -1, places, 4)
    own = boxes.transpose(1, 2).gather(1, of_class)
    return box_iou(objects.boxes.flatten(0, 1)[:, None], own.flatten(0, 1)).view(batch, -1, places)


def masks_in(masks: Tensor, boxes: Tensor, regions: Regions, side: int) -> Tensor:
    """The masks of objects as grids over other boxes, float 0..1.

    Args:
        masks: (M, S, S) uint8 0..255, grids over their objects' boxes.
        boxes: (M, 4) the objects' boxes.
        regions: R - 1 of which are of objects.
        side: Height and width of the result.

    Returns:
        (R - 1, side, side).
    """
    own, wanted = boxes[regions.objects], regions.boxes[:-1]
    center, half = (wanted[:, :2] + wanted[:, 2:]) / 2, (wanted[:, 2:] - wanted[:, :2]) / 2
    steps = (torch.arange(side, device=boxes.device) + 0.5) * (2 / side) - 1
    points = center[:, None] + half[:, None] * steps[None, :, None]
    extent = (own[:, 2:] - own[:, :2]).clamp(min=1e-6)
    at = 2 * (points - own[:, None, :2]) / extent[:, None] - 1
    grid = torch.stack([at[:, None, :, 0].expand(-1, side, -1), at[:, :, None, 1].expand(-1, -1, side)], dim=-1)
    source = masks[regions.objects][:, None].float() / 255
    return grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
