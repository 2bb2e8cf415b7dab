"""DetectionLoss: which places of a detector answer for which object, and how wrong they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import generalized_box_iou_loss

from cnnlab.errors import InputError
from cnnlab.losses.parts import PartsLoss
from cnnlab.objects import Objects, Padded

_TINY = 1e-9


class Assignment(NamedTuple):
    """What each of the P places of B images answers for."""

    objects: Tensor
    """(B, P) int64, the object's place among those of its image; -1 for background."""
    scores: Tensor
    """(B, P) float32, the score that the object's class should get, 0..1; 0 for background."""
    ignored: Tensor
    """(B, P) bool: the place lies in a crowd, and is neither object nor background."""


class DetectionLoss(PartsLoss):
    """The loss of cnnlab's detectors: quality focal loss of the scores, and GIoU loss of the boxes.

    At first an object gets the places near its center, at the stride that fits its size (FCOS, Tian et al. 2019,
    arXiv:1904.01355). Later it gets the places that already answer best for it, by score and IoU (TOOD, Feng et al.
    2021, arXiv:2108.07755); from the beginning, that would leave small and rare objects without any. A place should
    score as high as its box is right (Li et al. 2020, arXiv:2006.04388).

    Of a detector in two stages, the first stage is measured so, with one class. A proposal of the second stage answers
    for the object that it overlaps most, if their IoU is at least 0.5 (Ren et al. 2015, arXiv:1506.01497); an object
    without such a proposal gets the one that overlaps it most.

    Both parts are sums over all places, divided by the number of objects and images; so a batch without objects has a
    loss, too.

    Args:
        static_share: The share of the run in which the assignment is static, 0..1.
        box_weight: The weight of the boxes' part.
        radius: How far the places of an object may be from its center at first, in strides.
        candidates: How many places an object gets later, at most.
        class_weights: K weights of the classes, 0 or more, of both parts; 1 if None. They scale the sums.

    Raises:
        InputError: If static_share or a weight is out of range.
    """

    class_weights: Tensor | None

    num_parts = 2

    def __init__(
        self,
        static_share: float = 0.35,
        box_weight: float = 2.0,
        radius: float = 1.5,
        candidates: int = 13,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if class_weights is not None and not all(0 <= weight < math.inf for weight in class_weights):
            raise InputError(f"model.class_weights are {list(class_weights)}, expected numbers from 0 on")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        if not 0 <= static_share <= 1:
            raise InputError(f"model.static_share is {static_share}, expected 0 to 1")
        self.static_share = static_share
        self.box_weight = box_weight
        self.radius = radius
        self.candidates = candidates
        self.place_in_run = 1.0
        """The share of the run that is over, 0..1; the task sets it before each step."""

    def counts(self, targets: Objects) -> Tensor:
        """Objects and images, for both parts."""
        known = targets.counts >= 0
        number = (targets.counts * known).sum() + known.sum()
        return number.float().expand(2)

    def parts(self, outputs: Mapping[str, Tensor], targets: Objects) -> Tensor:
        """The two parts.

        Args:
            outputs: The raw outputs of models.detector.Detector or models.two_stage.TwoStageDetector.
            targets: The objects of B images.
        """
        padded, known = targets.padded(), targets.counts >= 0
        if "proposals" in outputs:
            kindless = padded._replace(labels=torch.zeros_like(padded.labels))
            first = {name: outputs[f"proposal_{name}"] for name in ("logits", "boxes", "places")}
            sums = self._dense_sums(first, kindless, known, None)
            logits, boxes = outputs["logits"].float(), outputs["boxes"].float()
            with torch.no_grad():
                found = assign_by_overlap(outputs["proposals"], boxes, outputs["places"], padded)
            sums = sums + self._sums(logits, boxes, found, padded, known, self.class_weights)
        else:
            sums = self._dense_sums(outputs, padded, known, self.class_weights)
        return sums / self.counts(targets)[:2].clamp(min=1.0)

    def _dense_sums(
        self, outputs: Mapping[str, Tensor], objects: Padded, known: Tensor, weights: Tensor | None
    ) -> Tensor:
        """The sums of a one-stage detector's two parts: see _sums."""
        logits, boxes, places = outputs["logits"].float(), outputs["boxes"].float(), outputs["places"][0]
        with torch.no_grad():
            if self.place_in_run < self.static_share:
                found = assign_static(boxes, places, objects, self.radius)
            else:
                found = assign_by_quality(logits.sigmoid(), boxes, places, objects, self.candidates)
        return self._sums(logits, boxes, found, objects, known, weights)

    def _sums(
        self,
        logits: Tensor,
        boxes: Tensor,
        found: Assignment,
        objects: Padded,
        known: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        """The sums (2,) of the parts over all places, of images whose objects are known (B,)."""
        counted = ~found.ignored & known[:, None]
        image, place = (found.objects >= 0).nonzero(as_tuple=True)
        number = found.objects[image, place]
        wanted = torch.zeros_like(logits)
        score = found.scores[image, place]
        wanted[image, place, objects.labels[image, number]] = score
        errors = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        focus = (wanted - logits.sigmoid()).square().detach()
        if weights is not None:
            errors = errors * weights
            score = score * weights[objects.labels[image, number]]
        of_class = (errors * focus * counted[..., None]).sum()
        # Of no places the sum is 0, with gradients of 0, so that all processes have the same gradients.
        misfit = generalized_box_iou_loss(boxes[image, place], objects.boxes[image, number], reduction="none")
        of_box = self.box_weight * (misfit * score).sum() + 0.0 * boxes.sum()
        return torch.stack([of_class, of_box])


def assign_static(boxes: Tensor, places: Tensor, objects: Padded, radius: float) -> Assignment:
    """Assign to each object the places near its center, at the stride that fits its size.

    Args:
        boxes: (B, P, 4), the predicted boxes, whose IoU is the wanted score.
        places: (P, 3), x, y, stride.
        objects: The objects.
        radius: The largest distance from the center, in strides.
    """
    fits = _fits_stride(objects.boxes, places) & objects.exists[..., None]
    center = (objects.boxes[..., :2] + objects.boxes[..., 2:]) / 2
    apart = (places[:, :2] - center[:, :, None]).abs().amax(dim=-1) / places[:, 2]
    taken = fits & (apart < radius) & _inside(objects.boxes, places)
    # An object smaller than the places' distance gets the nearest place.
    nearest = apart.masked_fill(~fits, torch.inf).argmin(dim=-1, keepdim=True)
    alone = ~taken.any(dim=-1, keepdim=True) & objects.exists[..., None]
    taken = taken.scatter(-1, nearest, taken.gather(-1, nearest) | alone)
    area = _areas(objects.boxes)[..., None].expand_as(taken)
    chosen = _choose(area.masked_fill(~taken, torch.inf), largest=False)
    quality = _iou_of(boxes, objects, chosen)
    return Assignment(chosen, (0.5 + 0.5 * quality) * (chosen >= 0), _in_crowd(objects, places) & (chosen < 0))


def assign_by_quality(
    scores: Tensor, boxes: Tensor, places: Tensor, objects: Padded, candidates: int, power: float = 6.0
) -> Assignment:
    """Assign to each object the places whose score times IoU ** power is highest.

    Args:
        scores: (B, P, K), 0..1.
        boxes: (B, P, 4), the predicted boxes.
        places: (P, 3), x, y, stride.
        objects: The objects.
        candidates: How many places an object gets, at most.
        power: The exponent of the IoU.
    """
    iou = box_iou(objects.boxes, boxes)
    labels = objects.labels[:, None].expand(-1, scores.shape[1], -1)
    of_class = scores.gather(2, labels).transpose(1, 2)
    inside = _inside(objects.boxes, places) & objects.exists[..., None]
    alignment = of_class * iou**power * inside
    count = min(candidates, alignment.shape[-1])
    best = alignment.topk(count, dim=-1)
    taken = torch.zeros_like(inside).scatter(-1, best.indices, best.values > _TINY)
    chosen = _choose((iou + _TINY).masked_fill(~taken, -torch.inf), largest=True)
    own = torch.zeros_like(taken).scatter(1, chosen.clamp(min=0)[:, None], (chosen >= 0)[:, None])
    alignment, iou = alignment * own, iou * own
    # An object's best place should score as high as its best IoU.
    scale = iou.amax(dim=-1, keepdim=True) / alignment.amax(dim=-1, keepdim=True).clamp(min=_TINY)
    wanted = (alignment * scale).amax(dim=1)
    return Assignment(chosen, wanted, _in_crowd(objects, places) & (chosen < 0))


def assign_by_overlap(
    proposals: Tensor, boxes: Tensor, places: Tensor, objects: Padded, least: float = 0.5
) -> Assignment:
    """Assign to each object the proposals that overlap it, or at least the one that overlaps it most.

    Args:
        proposals: (B, R, 4).
        boxes: (B, R, 4), the boxes that were made of them. The wanted score is their IoU, or that of the proposals if
            that is larger: a box that has lost its object has to find it again.
        places: (B, R, 3), the center of each proposal, and its longer side.
        objects: The objects.
        least: The smallest IoU of a proposal and its object.
    """
    iou = box_iou(objects.boxes, proposals) * objects.exists[..., None]
    best = iou.max(dim=-1, keepdim=True)
    most = torch.zeros_like(iou, dtype=torch.bool).scatter(-1, best.indices, best.values > 0)
    chosen = _choose(iou.masked_fill((iou < least) & ~most, -torch.inf), largest=True)
    quality = torch.maximum(_iou_of(boxes, objects, chosen), _iou_of(proposals, objects, chosen)) * (chosen >= 0)
    return Assignment(chosen, quality, _in_crowd(objects, places) & (chosen < 0))


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """The IoU of each pair of boxes, (B, N, 4) and (B, M, 4) to (B, N, M); 0 for boxes without an area.

    >>> box_iou(torch.tensor([[[0.0, 0, 2, 2]]]), torch.tensor([[[1.0, 0, 3, 2], [5, 5, 6, 6]]]))
    tensor([[[0.3333, 0.0000]]])
    """
    low = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    high = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (_areas(first)[:, :, None] + _areas(second)[:, None] - shared).clamp(min=_TINY)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def _inside(boxes: Tensor, places: Tensor) -> Tensor:
    """Whether each place (P, 3) or (B, P, 3) lies in each box, (B, M, P)."""
    point = places[..., None, :, :2]
    return ((point > boxes[:, :, None, :2]) & (point < boxes[:, :, None, 2:])).all(dim=-1)


def _fits_stride(boxes: Tensor, places: Tensor) -> Tensor:
    """Whether a place's stride fits a box's longer side, (B, M, P): 4 to 8 strides, but for the finest and coarsest."""
    longest = (boxes[..., 2:] - boxes[..., :2]).amax(dim=-1)[..., None]
    stride = places[:, 2]
    finest, coarsest = stride.min(), stride.max()
    return ((longest > 4 * stride) | (stride == finest)) & ((longest <= 8 * stride) | (stride == coarsest))


def _choose(values: Tensor, largest: bool) -> Tensor:
    """The object (B, P) with the largest or smallest finite value (B, M, P) of each place; -1 if there is none."""
    best, chosen = values.max(dim=1) if largest else values.min(dim=1)
    return torch.where(best.isfinite(), chosen, -1)


def _iou_of(boxes: Tensor, objects: Padded, chosen: Tensor) -> Tensor:
    """The IoU of each predicted box and its object, (B, P)."""
    iou = box_iou(objects.boxes, boxes)
    return iou.gather(1, chosen.clamp(min=0)[:, None])[:, 0]


def _in_crowd(objects: Padded, places: Tensor) -> Tensor:
    """Whether each place lies in a crowd, (B, P)."""
    return (_inside(objects.boxes, places) & objects.crowd[..., None]).any(dim=1)
