"""InstanceLoss: the loss of detection, and of the masks of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample

from cnnlab.losses.detection import DetectionLoss, box_iou
from cnnlab.objects import Objects

_GOOD_IOU = 0.5
"""From this IoU on, a predicted box takes the place of the true one as the region of a mask."""


class Regions(NamedTuple):
    """The boxes whose masks are learned: one for each object that has a mask."""

    boxes: Tensor
    """(R, 4), x1, y1, x2, y2 in pixels of the input; one more that stands for nothing, so that there always is one."""
    images: Tensor
    """(R,) int64, the image of each."""
    objects: Tensor
    """(R - 1,) int64, the object of each, among all of the batch."""


class InstanceLoss(DetectionLoss):
    """The loss of detection, and the cross-entropy of the pixels of each object's mask, a mean over objects.

    A mask is learned in the predicted box near its object with the highest score, which is the one that will be found
    later; in the true box, if no predicted one is near.

    Args:
        mask_weight: The weight of the masks' part.
        **kwargs: See DetectionLoss.
    """

    num_parts = 3

    def __init__(self, mask_weight: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask_weight = mask_weight

    def counts(self, targets: Objects) -> Tensor:
        """Objects and images, for scores and boxes; objects that are no crowds, for masks."""
        return torch.cat([super().counts(targets), (~targets.crowd).sum().float()[None]])

    def parts(self, outputs: Mapping[str, Any], targets: Objects) -> Tensor:
        """The three parts.

        Args:
            outputs: Those of models.instance_detector.InstanceDetector; and mask_regions, of regions(), which may have
                been grown, and region_logits (R, S, S), the masks as grids over them.
            targets: The objects of B images.
        """
        of_boxes = super().parts(outputs, targets)
        regions, logits = outputs["mask_regions"], outputs["region_logits"].float()
        assert isinstance(regions, Regions)
        assert targets.masks is not None
        wanted = masks_in(targets.masks, targets.boxes, regions, logits.shape[-1])
        errors = binary_cross_entropy_with_logits(logits[:-1], wanted, reduction="none").mean(dim=(1, 2))
        of_masks = self.mask_weight * errors.sum() / max(len(errors), 1) + 0.0 * logits.sum()
        return torch.cat([of_boxes, of_masks[None]])

    @torch.no_grad()
    def regions(self, outputs: Mapping[str, Tensor], targets: Objects) -> Regions:
        """The boxes whose masks are learned; they do not depend on anything random."""
        padded, boxes = targets.padded(), outputs["boxes"].float()
        image, number = padded.exists.nonzero(as_tuple=True)
        true = padded.boxes[image, number]
        if len(image):
            labels = padded.labels[:, None].expand(-1, boxes.shape[1], -1)
            scores = outputs["logits"].float().sigmoid().gather(2, labels).transpose(1, 2)
            near = box_iou(padded.boxes, boxes) >= _GOOD_IOU
            best, place = scores.masked_fill(~near, -1.0).max(dim=-1)
            found = boxes[image, place[image, number]]
            true = torch.where((best[image, number] >= 0)[:, None], found, true)
        nothing = boxes.new_tensor([[0.0, 0, 8, 8]])
        objects = (~targets.crowd).nonzero()[:, 0]
        return Regions(torch.cat([true, nothing]), torch.cat([image, image.new_zeros(1)]), objects)


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
