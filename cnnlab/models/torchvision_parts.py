"""TorchvisionDetector: the common base of torchvision's detectors in cnnlab, and what they share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from cnnlab.models.unet import pad_to_multiple
from cnnlab.objects import Objects

NO_OBJECT = -1e4
"""The logit of what is no object: its sigmoid is exactly 0."""
_LEAST_SIDE = 0.01
"""The sides of the smallest object that is learned or found, in pixels: the logarithms of sides must be finite."""
_LEAST_CHANCE = 1e-7
"""The smallest probability of the opposite that log-odds distinguish from 0."""


class TorchvisionDetector(nn.Module, ABC):
    """A network of torchvision.models.detection for standardized images of one size, which can be exported.

    torchvision's forward() resizes and standardizes lists of images, and returns lists of boxes. This one uses the same
    layers, anchors, coders and losses, with the same names of weights below ``model.``, and returns raw outputs of
    fixed shape for models.box_decoder.BoxDecoder.

    The loss of an image is torchvision's for that image alone, and does not depend on the rest of its batch. Crowds are
    left out, as in torchvision's own training.

    Args:
        model: torchvision's network.
        multiple: Images are padded to multiples of this.
        fixed_norms: Whether the statistics and weights of the backbone's batch norms stay as they are.
    """

    backbone_prefix = "model.backbone."
    computes_loss: ClassVar[bool] = True
    """forward() takes the objects too, and then returns the loss of each image: see losses.NetworkLoss."""
    first_label: ClassVar[int] = 0
    """The number of the first class in the model's outputs: 1 if 0 is the background."""

    def __init__(self, model: nn.Module, multiple: int, fixed_norms: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.model.transform = nn.Identity()
        self.multiple = multiple
        backbone = model.get_submodule("backbone")
        norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
        self.fixed = norms if fixed_norms else []
        for name in self.fixed:
            backbone.get_submodule(name).requires_grad_(False)
        self.gradcam_layer = f"model.backbone.{_deepest(backbone)}"
        """The deepest layers of the backbone, on which the scores of all levels depend."""

    @property
    def output_layers(self) -> Sequence[str]:
        """The layers whose outputs are reshaped, and cannot be pruned: the heads' and the pyramid's."""
        names = [name for name, module in self.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        own = ("model.head.", "model.rpn.", "model.roi_heads.", "model.backbone.fpn.")
        return tuple(name for name in names if name.startswith(own))

    def layer_groups(self) -> Mapping[str, tuple[str, ...]]:
        """One group for each stage of the backbone, for the pyramid or further maps, and for the heads."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, child in self.model.backbone.named_children():
            stages = name in ("body", "features")
            names = [f"{name}.{stage}" for stage, _ in child.named_children()] if stages else [name]
            groups |= {f"backbone.{own}": (f"model.backbone.{own}",) for own in names}
        return {**groups, "head": ("model",)}

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; fixed batch norms stay in evaluation."""
        super().train(mode)
        for name in self.fixed:
            self.model.backbone.get_submodule(name).eval()
        return self

    @abstractmethod
    def forward(self, images: Tensor, objects: Objects | None = None) -> dict[str, Tensor]:
        """Standardized images (B, C, H, W) to raw outputs.

        Args:
            images: The images.
            objects: Their objects, for the loss; without a loss if None.

        Returns:
            logits (B, P, K), whose sigmoids are the scores; boxes (B, P, 4), or (B, P, K, 4) if each class has a box of
            its own, x1, y1, x2, y2 in pixels of the images; places (B, P, 3), the center and stride of each place. With
            objects also losses (B,).
        """

    def _features(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The padded images, and the backbone's maps by name, the finest first."""
        padded = pad_to_multiple(images, self.multiple)
        return padded, self.model.backbone(padded)


def anchors_of(generator: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """The anchors of each map, (P, 4) float32, x1, y1, x2, y2 in pixels.

    Args:
        generator: torchvision's AnchorGenerator or DefaultBoxGenerator.
        images: The padded images.
        maps: The feature maps.
    """
    # Only shapes count, and in half precision anchors would be off by pixels.
    shapes = [one[:1, :1].float() for one in maps]
    # SSD's generator keeps tensors on the CPU.
    with torch.device("cpu") if images.is_meta else contextlib.nullcontext():
        every = generator(ImageList(images[:1], [(images.shape[-2], images.shape[-1])]), shapes)[0]
    each = generator.num_anchors_per_location()  # type: ignore[operator]
    return list(every.split([one.shape[-2] * one.shape[-1] * count for one, count in zip(maps, each, strict=True)]))


def places_of(anchors: Sequence[Tensor], images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The center and stride of each anchor, (P, 3): see anchors_of."""
    places = []
    for own, one in zip(anchors, maps, strict=True):
        center = (own[:, :2] + own[:, 2:]) / 2
        places.append(torch.cat([center, torch.full_like(center[:, :1], images.shape[-2] // one.shape[-2])], dim=1))
    return torch.cat(places)


def targets_of(objects: Objects, first_label: int) -> list[dict[str, Tensor]]:
    """Torchvision's targets for each image: its objects but for crowds, and but for those without an area.

    Args:
        objects: The objects.
        first_label: The number of the first class.
    """
    learned = ~objects.crowd & ((objects.boxes[:, 2:] - objects.boxes[:, :2]).amin(dim=1) > _LEAST_SIDE)
    counts = objects.counts.clamp(min=0).tolist()
    parts = (torch.split(part, counts) for part in (objects.boxes.float(), objects.labels + first_label, learned))
    return [{"boxes": boxes[own], "labels": labels[own]} for boxes, labels, own in zip(*parts, strict=True)]


def without_empty(logits: Tensor, boxes: Tensor) -> Tensor:
    """Logits with a score of exactly 0 for boxes that have no area, such as those outside of the image.

    Args:
        logits: (B, P, K).
        boxes: (B, P, 4) or (B, P, K, 4).
    """
    empty = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1) < _LEAST_SIDE
    return logits.masked_fill(empty if empty.ndim == logits.ndim else empty[..., None], NO_OBJECT)


def log_odds(logarithms: Tensor) -> Tensor:
    """The numbers whose sigmoids are probabilities, from the probabilities' logarithms.

    >>> log_odds(torch.tensor([0.25, 1.0]).log()).sigmoid()
    tensor([0.2500, 1.0000])
    """
    return logarithms - (1 - logarithms.exp()).clamp(min=_LEAST_CHANCE).log()


def _deepest(backbone: nn.Module) -> str:
    """The name of the last stage of a backbone."""
    part = "body" if hasattr(backbone, "body") else "features"
    return f"{part}.{[name for name, _ in backbone.get_submodule(part).named_children()][-1]}"
