"""torchvision's SSD, RetinaNet and FCOS: see torchvision_parts.TorchvisionDetector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from cnnlab.models.torchvision_parts import (
    TorchvisionDetector,
    anchors_of,
    log_odds,
    places_of,
    targets_of,
    without_empty,
)
from cnnlab.objects import Objects


class _OneStage(TorchvisionDetector):
    """For each anchor of a pyramid, scores of the classes and a box."""

    def forward(self, images: Tensor, objects: Objects | None = None) -> dict[str, Tensor]:
        """See TorchvisionDetector."""
        padded, features = self._features(images)
        maps = list(features.values())
        raw = {name: value.float() for name, value in self.model.head(maps).items()}
        levels = anchors_of(self.model.anchor_generator, padded, maps)
        anchors, places = torch.cat(levels), places_of(levels, padded, maps)
        boxes = self._decode(raw["bbox_regression"], anchors)
        boxes = clip_boxes_to_image(boxes, (images.shape[-2], images.shape[-1]))
        outputs = {
            "logits": without_empty(self._logits(raw), boxes),
            "boxes": boxes,
            "places": places.expand(images.shape[0], *places.shape),
        }
        if objects is not None:
            losses = []
            for i, target in enumerate(targets_of(objects, self.first_label)):
                own = {name: value[i : i + 1] for name, value in raw.items()}
                parts = self._losses(target, own, anchors, [len(level) for level in levels])
                losses.append(torch.stack(list(parts.values())).sum())
            outputs["losses"] = torch.stack(losses)
        return outputs

    def _decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """The boxes (B, P, 4)."""
        every = anchors.expand_as(regression)
        boxes: Tensor = self.model.box_coder.decode_single(regression.flatten(0, 1), every.flatten(0, 1))
        return boxes.view_as(regression)

    def _logits(self, raw: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, P, K)."""
        return raw["cls_logits"]

    @abstractmethod
    def _losses(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, counts: Sequence[int]
    ) -> dict[str, Tensor]:
        """The parts of the loss of one image, from the head's outputs and the number of anchors of each level."""


class RetinaNet(_OneStage):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002)."""

    def _losses(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, counts: Sequence[int]
    ) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.model.compute_loss([target], raw, [anchors])
        return parts


class FCOS(_OneStage):
    """FCOS (Tian et al. 2019, arXiv:1904.01355): a score is the root of the class's times the centerness."""

    def _decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.model.box_coder.decode(regression, anchors.expand_as(regression))
        return boxes

    def _logits(self, raw: Mapping[str, Tensor]) -> Tensor:
        return log_odds((F.logsigmoid(raw["cls_logits"]) + F.logsigmoid(raw["bbox_ctrness"])) / 2)

    def _losses(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, counts: Sequence[int]
    ) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.model.compute_loss([target], raw, [anchors], list(counts))
        return parts


class SSD(_OneStage):
    """SSD (Liu et al. 2016, arXiv:1512.02325): class 0 is the background."""

    first_label = 1

    def _logits(self, raw: Mapping[str, Tensor]) -> Tensor:
        return log_odds(raw["cls_logits"].log_softmax(dim=-1)[..., 1:])

    def _losses(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, counts: Sequence[int]
    ) -> dict[str, Tensor]:
        matches = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        if len(target["boxes"]):
            matches = self.model.proposal_matcher(box_iou(target["boxes"], anchors))
        parts: dict[str, Tensor] = self.model.compute_loss([target], raw, [anchors], [matches])
        return parts
