"""InstanceDecoder: a detector's raw outputs to a fixed number of objects with masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.models.box_decoder import BoxDecoder, keep_best, taken
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
        scores, labels = outputs["found_scores"].float() * certainty, outputs["found_labels"]
        boxes = torch.where(area[..., None] > 0, _tight(probabilities, regions), outputs["found_boxes"].float())
        masks = (probabilities * 255).round().to(torch.uint8)
        # In the order of outputs.Instances.arrays.
        found = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks, "regions": regions}
        if "windows" in outputs:
            # Each tile has its own objects, and an object may be in several.
            found["scores"] = scores * keep_best(boxes, scores, labels, self.iou)
            found["windows"] = outputs["windows"]
        order = found["scores"].topk(min(self.count, scores.shape[1]), dim=1).indices
        return {name: taken(value, order) for name, value in found.items()}


def _tight(probabilities: Tensor, regions: Tensor) -> Tensor:
    """The boxes (B, N, 4) around the parts of masks (B, N, S, S) that are at least 0.5, in the pixels of regions.

    An edge lies where the largest probability of each row or column, linear between their centers, crosses 0.5. So a
    small change of the mask moves it by little.
    """
    side = probabilities.shape[-1]
    places = torch.arange(side, device=regions.device)
    ends = []
    for axis in (2, 3):  # x, then y.
        framed = F.pad(probabilities.amax(dim=axis), (1, 1))
        inside = framed[..., 1:-1] >= 0.5
        first = torch.where(inside, places, side - 1).amin(dim=-1, keepdim=True)
        last = torch.where(inside, places, 0).amax(dim=-1, keepdim=True)
        low = first + 0.5 - _beyond(framed, first + 1, first)
        high = last + 0.5 + _beyond(framed, last + 1, last + 2)
        ends.append((low[..., 0] / side, high[..., 0] / side))
    start, extent = regions[..., :2], regions[..., 2:] - regions[..., :2]
    low, high = (torch.stack([ends[0][i], ends[1][i]], dim=-1) for i in (0, 1))
    return torch.cat([start + low * extent, start + high * extent], dim=-1)


def _beyond(values: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """How far from a cell that is at least 0.5 to its neighbor that is less the values (B, N, S) reach 0.5, 0..1."""
    near, far = values.gather(-1, inner), values.gather(-1, outer)
    return (near - 0.5) / (near - far).clamp(min=_TINY)
