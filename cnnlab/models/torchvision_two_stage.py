"""torchvision's Faster R-CNN and Mask R-CNN: see torchvision_parts.TorchvisionDetector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from cnnlab.models.box_decoder import BoxDecoder, keep_best
from cnnlab.models.instance_detector import objects_with_masks
from cnnlab.models.regions import image_numbers, pool_regions
from cnnlab.models.torchvision_parts import (
    NO_OBJECT,
    TorchvisionDetector,
    anchors_of,
    log_odds,
    targets_of,
    without_empty,
)
from cnnlab.objects import Objects


class FasterRCNN(TorchvisionDetector):
    """Faster R-CNN (Ren et al. 2015, arXiv:1506.01497): boxes that may hold an object, then their classes and boxes.

    Each image has the same number of proposals; where torchvision would have fewer, the rest score exactly 0. In
    training the answers are those of the proposals that the loss was measured on.
    """

    first_label = 1

    def forward(self, images: Tensor, objects: Objects | None = None) -> dict[str, Tensor]:
        """See TorchvisionDetector."""
        padded, features = self._features(images)
        return self._boxes(padded, features, (images.shape[-2], images.shape[-1]), objects)

    def _boxes(
        self, padded: Tensor, features: Mapping[str, Tensor], size: tuple[int, int], objects: Objects | None
    ) -> dict[str, Tensor]:
        """The raw outputs.

        Args:
            padded: The padded images.
            features: The maps by name.
            size: Height and width of the images.
            objects: Their objects, for the loss.
        """
        maps = list(features.values())
        objectness, deltas = map(list, self.model.rpn.head(maps))
        objectness = [one.float().permute(0, 2, 3, 1).flatten(1) for one in objectness]
        deltas = [one.float().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for one in deltas]
        anchors = anchors_of(self.model.rpn.anchor_generator, padded, maps)
        with torch.no_grad():
            proposals, there = self._propose(objectness, deltas, anchors, size)
        outputs = {}
        if objects is None or not self.training:
            pooled = self._pool(features, padded, proposals)
            scores, shifts = self.model.roi_heads.box_predictor(self.model.roi_heads.box_head(pooled))
            outputs = self._answers(scores, shifts, proposals, there, size)
        if objects is None:
            return outputs
        with _same_choice(padded, not self.training):
            targets = self._targets(objects)
            first = self._proposal_losses(torch.cat(objectness, dim=1), torch.cat(deltas, dim=1), anchors, targets)
            chosen = [own[known] for own, known in zip(proposals, there, strict=True)]
            second, found = self._box_losses(features, padded, chosen, targets, size)
        return {**(outputs or found), "losses": first + second}

    def _targets(self, objects: Objects) -> list[dict[str, Tensor]]:
        return targets_of(objects, self.first_label)

    def _propose(
        self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The boxes (B, R, 4) that may hold an object, and which of them count, (B, R) bool."""
        rpn = self.model.rpn
        boxes, scores = [], []
        for score, delta, anchor in zip(objectness, deltas, anchors, strict=True):
            best, index = score.topk(min(rpn.pre_nms_top_n(), score.shape[1]), dim=1)
            shift = delta.gather(1, index[..., None].expand(-1, -1, 4))
            own = rpn.box_coder.decode_single(shift.flatten(0, 1), anchor[index].flatten(0, 1)).view_as(shift)
            # roi_align ends the process at a box that is not finite.
            own = clip_boxes_to_image(own.nan_to_num(), size)
            chance = best.sigmoid().nan_to_num()
            good = (_sides(own) >= rpn.min_size) & (chance >= rpn.score_thresh)
            kept = keep_best(own, chance, torch.zeros_like(index), rpn.nms_thresh) > 0
            boxes.append(own)
            scores.append(chance.masked_fill(~(good & kept), -1.0))
        every, ranks = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        top, order = ranks.topk(min(rpn.post_nms_top_n(), ranks.shape[1]), dim=1)
        return every.gather(1, order[..., None].expand(-1, -1, 4)), top >= 0

    def _pool(self, features: Mapping[str, Tensor], images: Tensor, boxes: Tensor) -> Tensor:
        """The features inside each box, (B R, C, 7, 7)."""
        pooler = self.model.roi_heads.box_roi_pool
        maps = [one for name, one in features.items() if name in pooler.featmap_names]
        strides = [images.shape[-2] // one.shape[-2] for one in maps]
        side = pooler.output_size[0]
        return pool_regions(maps, strides, boxes.flatten(0, 1), image_numbers(boxes), side, pooler.sampling_ratio)

    def _answers(
        self, scores: Tensor, shifts: Tensor, proposals: Tensor, there: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Raw outputs of R proposals an image.

        Args:
            scores: (B R, 1 + K), of background and classes.
            shifts: (B R, 4 (1 + K)).
            proposals: (B, R, 4).
            there: (B, R), which proposals count.
            size: Height and width of the images.
        """
        boxes = self.model.roi_heads.box_coder.decode_single(shifts.float(), proposals.flatten(0, 1))
        boxes = clip_boxes_to_image(boxes.view(*there.shape, -1, 4)[:, :, 1:], size)
        logits = log_odds(scores.float().log_softmax(dim=-1)[:, 1:]).view(*there.shape, -1)
        center = (proposals[..., :2] + proposals[..., 2:]) / 2
        longest = (proposals[..., 2:] - proposals[..., :2]).amax(dim=-1, keepdim=True)
        return {
            "logits": without_empty(logits.masked_fill(~there[..., None], NO_OBJECT), boxes),
            "boxes": boxes,
            "places": torch.cat([center, longest], dim=-1),
        }

    def _proposal_losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Sequence[Tensor], targets: list[dict[str, Tensor]]
    ) -> Tensor:
        """The losses (B,) of what may hold an object, and of its box."""
        rpn, every = self.model.rpn, [torch.cat(list(anchors))]
        losses = []
        for score, delta, target in zip(objectness, deltas, targets, strict=True):
            labels, matched = rpn.assign_targets_to_anchors(every, [target])
            wanted = rpn.box_coder.encode(matched, every)
            losses.append(torch.stack(rpn.compute_loss(score, delta, labels, wanted)).sum())
        return torch.stack(losses)

    def _box_losses(
        self,
        features: Mapping[str, Tensor],
        images: Tensor,
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
        size: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses (B,) of classes and boxes, and the raw outputs of the proposals that were chosen for it.

        Args:
            features: The maps by name.
            images: The padded images.
            proposals: (R, 4) for each image.
            targets: See targets_of.
            size: Height and width of the images.
        """
        roi = self.model.roi_heads
        chosen, _, labels, wanted = roi.select_training_samples(proposals, targets)
        padded = (images.shape[-2], images.shape[-1])
        scores, shifts = roi.box_predictor(roi.box_head(roi.box_roi_pool(features, chosen, [padded] * len(chosen))))
        counts = [len(own) for own in chosen]
        scores, shifts = scores.float(), shifts.float()
        losses = []
        for score, shift, label, want in zip(scores.split(counts), shifts.split(counts), labels, wanted, strict=True):
            # The mean over no proposals is not a number.
            parts = fastrcnn_loss(score, shift, [label], [want]) if len(label) else (score.sum(), shift.sum())
            losses.append(torch.stack(parts).sum())
        with torch.no_grad():
            there = pad_sequence([torch.ones_like(label, dtype=torch.bool) for label in labels], batch_first=True)
            every, moved = (
                pad_sequence(list(own.split(counts)), batch_first=True).flatten(0, 1) for own in (scores, shifts)
            )
            found = self._answers(every, moved, pad_sequence(chosen, batch_first=True), there, size)
        return torch.stack(losses), found


class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN, and masks in the boxes that it has found.

    Masks are learned in the boxes that losses.InstanceLoss chooses, in which they will be looked for, instead of the
    proposals.

    Args:
        model: torchvision's network.
        multiple: See TorchvisionDetector.
        fixed_norms: See TorchvisionDetector.
        detections: The number of objects of an image, at most.
        nms: See BoxDecoder.
    """

    strides = (4, 8, 16, 32)
    """Those of the maps that masks are cut out of."""

    def __init__(
        self, model: nn.Module, multiple: int, fixed_norms: bool = False, detections: int = 100, nms: float = 0.5
    ) -> None:
        super().__init__(model, multiple, fixed_norms)
        self.select = BoxDecoder(detections, nms)

    def forward(self, images: Tensor, objects: Objects | None = None) -> dict[str, Tensor]:
        """See TorchvisionDetector.

        Returns:
            Also maps_0 to maps_3, of which masks are cut out; and in evaluation what models.instance_detector returns
            of the objects that are found.
        """
        padded, features = self._features(images)
        outputs = self._boxes(padded, features, (images.shape[-2], images.shape[-1]), objects)
        outputs |= {f"maps_{name}": features[name] for name in self.model.roi_heads.mask_roi_pool.featmap_names}
        return outputs if self.training else outputs | objects_with_masks(self, outputs)

    def _targets(self, objects: Objects) -> list[dict[str, Tensor]]:
        # torchvision asks for masks, though it does not use them to choose proposals.
        return [{**own, "masks": own["labels"]} for own in super()._targets(objects)]

    def mask_regions(self, boxes: Tensor) -> Tensor:
        """The regions of masks: the boxes themselves."""
        return boxes

    def mask_logits(self, outputs: Mapping[str, Tensor], regions: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The masks of regions, (R, 28, 28) float32: see models.instance_detector.InstanceDetector.

        Args:
            outputs: From forward().
            regions: (R, 4), x1, y1, x2, y2 in pixels of the input.
            images: (R,) int64, the image of each.
            labels: (R,) int64, the class of each: every class has masks of its own.
        """
        roi = self.model.roi_heads
        pooler = roi.mask_roi_pool
        maps = [outputs[f"maps_{name}"] for name in pooler.featmap_names]
        cut = pool_regions(maps, self.strides, regions, images, pooler.output_size[0], pooler.sampling_ratio)
        logits = roi.mask_predictor(roi.mask_head(cut)).float()
        of_class = (labels + self.first_label)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        own: Tensor = logits.gather(1, of_class)[:, 0]
        return own


def _sides(boxes: Tensor) -> Tensor:
    """The shorter side of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)


@contextlib.contextmanager
def _same_choice(images: Tensor, always: bool) -> Iterator[None]:
    """In evaluation, choose the same proposals each time, and leave the state of the random numbers as it was."""
    if not always:
        yield
        return
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        yield
