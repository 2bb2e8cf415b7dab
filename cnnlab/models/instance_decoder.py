"""InstanceDecoder: a detector's raw outputs to a fixed number of objects with masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.decoding import Answers

_TINY = 1e-6


class InstanceDecoder(BoxDecoder):
    """Raw outputs of models.instance_detector.InstanceDetector to boxes, scores, labels, masks and regions.

    ``masks`` (B, N, 28, 28), uint8 0..255, are grids over ``regions`` (B, N, 4); 128 and more is the object. A box is
    the tight box of its mask, and the score is multiplied by the mean probability of the mask's inner part. So a box is
    better, and an object whose mask is doubtful comes later.
    """

    def forward(self, outputs: Mapping[str, Tensor]) -> Answers:
        """Decode a batch; in training, where no objects were found, only boxes."""
        if "mask_logits" not in outputs:
            return super().forward(outputs)
        probabilities = outputs["mask_logits"].float().sigmoid()
        regions = outputs["regions"].float()
        inside = (probabilities >= 0.5).to(probabilities.dtype)
        area = inside.sum(dim=(2, 3))
        certainty = (probabilities * inside).sum(dim=(2, 3)) / area.clamp(min=1.0)
        scores, order = (outputs["found_scores"].float() * certainty).topk(certainty.shape[1], dim=1)
        boxes = torch.where(area[..., None] > 0, _tight(inside, regions), outputs["found_boxes"].float())
        masks = (probabilities * 255).round().to(torch.uint8)
        return {
            "boxes": boxes.gather(1, order[..., None].expand(-1, -1, 4)),
            "scores": scores,
            "labels": outputs["found_labels"].gather(1, order),
            "masks": masks.gather(1, order[..., None, None].expand(-1, -1, *masks.shape[2:])),
            "regions": regions.gather(1, order[..., None].expand(-1, -1, 4)),
        }


def _tight(inside: Tensor, regions: Tensor) -> Tensor:
    """The boxes (B, N, 4) around the cells (B, N, S, S) that are 1, in the pixels of their regions (B, N, 4)."""
    side = inside.shape[-1]
    places = torch.arange(side, device=inside.device, dtype=inside.dtype)
    ends = []
    for axis in (2, 3):  # x, then y.
        present = inside.amax(dim=axis)
        first = torch.where(present > 0, places, float(side)).amin(dim=-1)
        last = torch.where(present > 0, places + 1, 0.0).amax(dim=-1)
        ends.append((first / side, last / side))
    start, extent = regions[..., :2], regions[..., 2:] - regions[..., :2]
    low, high = (torch.stack([ends[0][i], ends[1][i]], dim=-1) for i in (0, 1))
    return torch.cat([start + low * extent, start + high * extent], dim=-1)
