"""TwoStageDetector: a one-stage detector whose best boxes are looked at a second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive
from cnnlab.models.box_decoder import keep_best, taken
from cnnlab.models.detector import Detector
from cnnlab.models.factory import Encoder
from cnnlab.models.instance_detector import InstanceDetector
from cnnlab.models.regions import image_numbers, pool_regions

_SIDE = 7
"""Height and width of the grid of features of a proposal."""
_CANDIDATES = 3
"""How many times as many boxes are compared as proposals are wanted."""
_LARGEST_STEP = 2.0
"""The logarithm of a box's side changes by no more than this, so that its exponential stays finite."""


class TwoStageDetector(Detector):
    """A detector in two stages: proposals without a class, then the class and a better box of each proposal.

    The proposals are those of a one-stage detector with one class, object. The second stage sees the features inside
    each proposal. Its output corrects the first stage's score of being an object, so that both count (Zhou et al.
    2021, arXiv:2103.07461); it moves and scales the proposal (Ren et al. 2015, arXiv:1506.01497).

    Args:
        features: See Detector.
        num_classes: See Detector.
        proposals: The number of proposals of an image, the same in training.
        proposal_nms: Of proposals with a larger IoU, only the one with the highest score is kept; above 0, to 1.
        hidden: The width of the two layers of the second stage.
        dropout: Dropout rate before the last layers, 0 up to (not including) 1.
        **kwargs: See Detector.

    Raises:
        InputError: If a number is out of range.
    """

    output_layers: tuple[str, ...] = ("classify", "regress", "region_classes", "region_boxes")

    def __init__(
        self,
        features: Encoder,
        num_classes: int,
        proposals: int = 300,
        proposal_nms: float = 0.7,
        hidden: int = 256,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_positive(num_classes=num_classes, proposals=proposals, hidden=hidden)
        if not 0 < proposal_nms <= 1:
            raise InputError(f"model.network_args.proposal_nms is {proposal_nms}, expected above 0, to 1")
        super().__init__(features, 1, dropout=dropout, **kwargs)
        width = self.classify.in_channels
        self.proposals = proposals
        self.proposal_nms = proposal_nms
        self.region_layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(width * _SIDE**2, hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout)),
        )
        self.region_classes = _no_change(hidden, num_classes)
        self.region_boxes = _no_change(hidden, 4)

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """See Detector; the second stage belongs to the head."""
        groups = dict(super().layer_groups())
        head = groups.pop("head")
        return {**groups, "head": ("region_layers", "region_classes", "region_boxes", *head)}

    def answers(self, maps: Sequence[Tensor], images: int) -> dict[str, Tensor]:
        """The maps of the pyramid to raw outputs.

        Returns:
            logits (B, R, K), boxes (B, R, 4) and places (B, R, 3) of R proposals, as forward() says; proposals
            (B, R, 4), the boxes of which they were made; and of the first stage proposal_logits (B, P, 1),
            proposal_boxes (B, P, 4) and proposal_places (B, P, 3).
        """
        first = super().answers(maps, images)
        size = (maps[0].shape[-2] * self.strides[0], maps[0].shape[-1] * self.strides[0])
        with torch.no_grad():
            # roi_align ends the process at a box that is not finite.
            finite = {"logits": first["logits"], "boxes": clip_boxes_to_image(first["boxes"].nan_to_num(), size)}
            proposals, scores = self._proposals(finite)
        pooled = pool_regions(maps, self.strides, proposals.flatten(0, 1), image_numbers(proposals), _SIDE)
        hidden = self.region_layers(pooled)
        classes, steps = (
            layer(hidden).float().unflatten(0, (-1, proposals.shape[1]))
            for layer in (self.region_classes, self.region_boxes)
        )
        center, extent = (proposals[..., :2] + proposals[..., 2:]) / 2, proposals[..., 2:] - proposals[..., :2]
        return {
            "logits": scores + classes,
            "boxes": moved(proposals, steps),
            "places": torch.cat([center, extent.amax(dim=-1, keepdim=True)], dim=-1),
            "proposals": proposals,
            **{f"proposal_{name}": value for name, value in first.items()},
        }

    def _proposals(self, first: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The best boxes (B, R, 4) of the first stage, and their logits (B, R, 1).

        Those that overlap a better one come last, where there are not enough others.
        """
        logits = first["logits"].float()[..., 0]
        best, index = logits.topk(min(_CANDIDATES * self.proposals, logits.shape[1]), dim=1)
        boxes = taken(first["boxes"], index)
        kept = keep_best(boxes, best, torch.zeros_like(index), self.proposal_nms)
        count = best.shape[1]
        late = torch.arange(count, device=best.device) + count * (1 - kept)
        order = late.topk(min(self.proposals, count), dim=1, largest=False).indices
        return taken(boxes, order), taken(best, order)[..., None]


class TwoStageInstanceDetector(InstanceDetector, TwoStageDetector):
    """A detector in two stages, with a mask for each object: see InstanceDetector and TwoStageDetector."""

    output_layers = (*TwoStageDetector.output_layers, "mask_head.6")


def moved(boxes: Tensor, steps: Tensor) -> Tensor:
    """Boxes that are moved and scaled.

    Args:
        boxes: (..., 4), x1, y1, x2, y2.
        steps: (..., 4): the way of the center, x and y, in widths and heights of the box, and the logarithms of the
            factors of width and height.

    >>> moved(torch.tensor([0.0, 0, 10, 20]), torch.tensor([0.1, 0, 0, 0]))
    tensor([ 1.,  0., 11., 20.])
    """
    extent = boxes[..., 2:] - boxes[..., :2]
    center = (boxes[..., :2] + boxes[..., 2:]) / 2 + steps[..., :2] * extent
    half = extent * steps[..., 2:].clamp(-_LARGEST_STEP, _LARGEST_STEP).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def _no_change(inputs: int, outputs: int) -> nn.Linear:
    """A layer that begins with small weights, so that its outputs begin near 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
