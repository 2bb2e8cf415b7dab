"""BoxDecoder: a detector's raw outputs to a fixed number of boxes, without those that overlap a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from cnnlab.boxes import matched
from cnnlab.errors import InputError
from cnnlab.models.decoding import Answers, Decoder, Difficulty
from cnnlab.objects import Objects

_FOUND_IOU = 0.5
_FOUND_SCORE = 0.3


class BoxDecoder(Decoder):
    """Raw outputs of models.detector.Detector to ``boxes`` (B, N, 4), ``scores`` (B, N) and ``labels`` (B, N).

    Boxes of raw outputs may be (B, P, 4), or (B, P, K, 4) if each class has a box of its own.

    Boxes are x1, y1, x2, y2 in pixels of the network's input. They are sorted by score; a score of 0 stands for no box.
    Of boxes of one class that overlap by more than ``iou``, the one with the highest score stays. If the image was seen
    in tiles, ``windows`` (B, N, 4) are those of the boxes: see models.tiles.

    The suppression is part of exported files: see keep_best.

    Args:
        count: N, 1 or more.
        iou: The largest IoU of two boxes of one class, above 0, to 1.
        candidates: The number of boxes with the highest scores that are compared; 3 N if None.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(self, count: int = 100, iou: float = 0.6, candidates: int | None = None) -> None:
        super().__init__()
        if count < 1:
            raise InputError(f"model.detections is {count}, expected 1 or more")
        if not 0 < iou <= 1:
            raise InputError(f"model.nms is {iou}, expected above 0, to 1")
        self.count = count
        self.iou = iou
        self.candidates = 3 * count if candidates is None else candidates

    def forward(self, outputs: Mapping[str, Tensor]) -> Answers:
        """Decode a batch."""
        scores = outputs["logits"].float().sigmoid()
        _, places, classes = scores.shape
        count = min(self.candidates, places * classes)
        best, index = scores.flatten(1).topk(count, dim=1)
        labels = index % classes
        # Boxes of each class lie in the scores' own order.
        boxes = outputs["boxes"].float()
        boxes, place = (boxes.flatten(1, 2), index) if boxes.ndim == 4 else (boxes, index // classes)
        boxes = taken(boxes, place)
        kept = keep_best(boxes, best, labels, self.iou)
        final, order = (best * kept).topk(min(self.count, count), dim=1)
        # In the order of outputs.Boxes.arrays.
        found = {"boxes": taken(boxes, order), "scores": final, "labels": taken(labels, order)}
        if "windows" in outputs:
            found["windows"] = taken(taken(outputs["windows"], index // classes), order)
        return found

    def difficulty(self, answers: Answers, targets: Objects) -> Difficulty:
        """The objects that are missed, and the sum of the scores of boxes that are none; the sum of doubtful scores.

        An object is found by a box of its class with an IoU of at least 0.5 and a score of at least 0.3.
        """
        arrays = [answers[name].cpu().numpy() for name in ("boxes", "scores", "labels")]
        errors, doubts = [], []
        for truth, boxes, scores, labels in zip(targets.arrays(), *arrays, strict=True):
            doubts.append(float((scores * (1 - scores)).sum()))
            if np.isnan(truth).any():
                errors.append(math.nan)
                continue
            single, kinds = truth[truth[:, 5] == 0], truth[truth[:, 5] == 0, 4].astype(np.int64)
            hits = matched(boxes, single[:, :4], _FOUND_IOU, (labels, kinds))
            found = sum(1 for place, _ in hits.tolist() if scores[place] >= _FOUND_SCORE)
            others = np.setdiff1d(np.arange(len(scores)), hits[:, 0])
            errors.append(len(single) - found + float(scores[others].sum()))
        device = answers["scores"].device
        return Difficulty(torch.tensor(errors, device=device), torch.tensor(doubts, device=device))

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The highest logit of each class, (B, K)."""
        return outputs["logits"].amax(dim=1)


def taken(values: Tensor, order: Tensor) -> Tensor:
    """The values (B, P, ...) at places (B, N)."""
    return values.gather(1, order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:]))


def keep_best(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Which boxes stay if each suppresses those of its image and class that overlap with it and score lower.

    In a file, all go through one call: images lie side by side, and classes below each other, so that their boxes do
    not meet. Moving boxes costs digits. So they are moved outside of files, too: otherwise a file and its network would
    decide differently where an overlap is close to the limit.

    Args:
        boxes: (B, C, 4).
        scores: (B, C).
        labels: (B, C) int64.
        iou: The largest IoU of two boxes that both stay.

    Returns:
        (B, C), 0 or 1.
    """
    batch, count = scores.shape
    if scores.is_meta:
        return torch.ones_like(scores)  # Only shapes are asked for, and suppression needs values.
    low = boxes.amin(dim=(1, 2), keepdim=True)
    span = (boxes.amax(dim=(1, 2), keepdim=True) - low).clamp(min=1e-6)
    image = torch.arange(batch, device=boxes.device)[:, None].expand_as(labels)
    apart = 2.0 * torch.stack([image, labels, image, labels], dim=-1)
    moved = (boxes - low) / span + apart
    if torch.compiler.is_exporting():
        kept = nms(moved.flatten(0, 1), scores.flatten(), iou)
        return torch.zeros_like(scores).flatten().index_fill(0, kept, 1.0).view(batch, count)
    # The time of a call grows with the square of the number of boxes.
    masks = [
        torch.zeros_like(own).index_fill(0, nms(one, own, iou), 1.0) for one, own in zip(moved, scores, strict=True)
    ]
    return torch.stack(masks) if masks else torch.zeros_like(scores)
