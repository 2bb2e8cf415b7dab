"""Detector: cnnlab's own one-stage detector on the features of any timm network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive
from cnnlab.models.factory import Encoder
from cnnlab.models.groups import layer_groups
from cnnlab.models.pyramid import PathAggregation
from cnnlab.models.unet import pad_to_multiple

_TRIAL = 64
"""The side of the image by which it is found which layers a feature map depends on."""
_PRIOR = 0.01
"""The score of every place and class before training (Lin et al. 2017, arXiv:1708.02002)."""


class _SharedLayer(nn.Module):
    """A separable layer for all strides, each with batch norms of its own, since the strides' statistics differ."""

    def __init__(self, width: int, levels: int, kernel: int = 5) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.depthwise_norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels))
        self.pointwise_norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels))

    def forward(self, features: Tensor, level: int) -> Tensor:
        features = F.silu(self.depthwise_norms[level](self.depthwise(features)))
        return F.silu(self.pointwise_norms[level](self.pointwise(features)))


class Detector(nn.Module):
    """A one-stage detector without anchors: for each place of a pyramid, scores of the classes and a box.

    The backbone may be any timm network with features. The head's layers are shared by all strides, without their batch
    norms. A box is given by the distances from the place to its sides (FCOS, Tian et al. 2019, arXiv:1904.01355).

    Args:
        features: The backbone, which returns a list of feature maps, with their channels and strides.
        num_classes: K.
        channels: The images' channels.
        strides: The strides of the pyramid, each twice the one before; small objects need 4.
        width: The channels of pyramid and head.
        depth: The number of layers of each of the head's two branches.
        dropout: Dropout rate before the last layers, 0 up to (not including) 1.
        frozen_stages: Of how many of the backbone's feature maps, from the finest on, the layers are not trained; their
            batch norms neither.

    Raises:
        InputError: If the backbone has no such strides, or if a number is out of range.
    """

    backbone_prefix = "backbone."
    gradcam_layer = "neck.lateral.0"
    """The finest map, on which all scores depend."""
    output_layers: tuple[str, ...] = ("classify", "regress")
    """The layers whose outputs are the answer, and cannot be pruned."""

    def __init__(
        self,
        features: Encoder,
        num_classes: int,
        channels: int = 3,
        strides: Sequence[int] = (8, 16, 32),
        width: int = 96,
        depth: int = 2,
        dropout: float = 0.0,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width, depth=depth)
        doubled = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
        if not strides or not doubled or not set(strides) <= set(features.strides):
            raise InputError(
                f"model.network_args.strides are {list(strides)}, expected some of {features.strides}, which the "
                "backbone has, each twice the one before"
            )
        if not 0 <= frozen_stages <= len(features.strides):
            raise InputError(
                f"model.network_args.frozen_stages is {frozen_stages}, expected 0 to {len(features.strides)}, the "
                "number of the backbone's feature maps"
            )
        self.backbone = features.network
        self.frozen = _layers_before(features.network, channels, frozen_stages)
        for name in self.frozen:
            self.backbone.get_submodule(name).requires_grad_(False)
        self.strides = list(strides)
        self.multiple = strides[-1]
        self._maps = [features.strides.index(stride) for stride in strides]
        widths = [features.widths[place] for place in self._maps]
        self.neck = PathAggregation(widths, width)
        self.class_branch = nn.ModuleList(_SharedLayer(width, len(strides)) for _ in range(depth))
        self.box_branch = nn.ModuleList(_SharedLayer(width, len(strides)) for _ in range(depth))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _last_layer(width, num_classes, -math.log((1 - _PRIOR) / _PRIOR))
        self.regress = _last_layer(width, 4, 1.0)
        self.scales = nn.Parameter(torch.ones(len(strides)))

    def layer_groups(self) -> Mapping[str, tuple[str, ...]]:
        """One group for each child of the backbone, and for pyramid and head."""
        inner = layer_groups(self.backbone)
        parts = {f"backbone.{group.name}": tuple(f"backbone.{name}" for name in group.modules) for group in inner}
        return {**parts, "neck": ("neck",), "head": ("class_branch", "box_branch", "classify", "regress", "")}

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Standardized images (B, C, H, W) to raw outputs, P places of all strides.

        Returns:
            logits (B, P, K); boxes (B, P, 4), x1, y1, x2, y2 in pixels of the images; places (B, P, 3), x, y and stride
            of each place.
        """
        return self.answers(self.pyramid(images)[1], images.shape[0])

    def pyramid(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All feature maps of the backbone, the finest first, and the maps of the pyramid."""
        features = self.backbone(pad_to_multiple(images, self.multiple))
        return features, self.neck([features[place] for place in self._maps])

    def answers(self, maps: Sequence[Tensor], images: int) -> dict[str, Tensor]:
        """The maps of the pyramid to raw outputs: see forward."""
        logits, boxes, places = [], [], []
        for level, (stride, one) in enumerate(zip(self.strides, maps, strict=True)):
            of_class = of_box = one
            for layer in self.class_branch:
                of_class = layer(of_class, level)
            for layer in self.box_branch:
                of_box = layer(of_box, level)
            of_class, of_box = self.classify(self.dropout(of_class)), self.regress(self.dropout(of_box))
            at = _centers(one, stride)
            # Sums of exponents overflow in half precision.
            distances = F.softplus(of_box.float() * self.scales[level]) * stride
            left, top, right, bottom = distances.flatten(2).unbind(dim=1)
            x, y = at.unbind(dim=1)
            boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], dim=-1))
            logits.append(of_class.flatten(2).transpose(1, 2))
            places.append(torch.cat([at, torch.full_like(at[:, :1], stride)], dim=1))
        every = torch.cat(places)
        return {
            "logits": torch.cat(logits, dim=1),
            "boxes": torch.cat(boxes, dim=1),
            "places": every.expand(images, *every.shape),
        }


def _last_layer(inputs: int, outputs: int, bias: float) -> nn.Conv2d:
    """A 1x1 convolution that begins with small weights, so that its outputs begin near the bias."""
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def _centers(features: Tensor, stride: int) -> Tensor:
    """The centers of a map's places, (P, 2) x and y in pixels of the image."""
    height, width = features.shape[-2:]
    rows, columns = (
        (torch.arange(side, device=features.device, dtype=torch.float32) + 0.5) * stride for side in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _layers_before(network: nn.Module, channels: int, maps: int) -> list[str]:
    """The names of the layers on which the first feature maps of a network depend."""
    if not maps:
        return []
    modes = {module: module.training for module in network.modules()}
    parameters = dict(network.named_parameters())
    first = next(iter(parameters.values()))
    with torch.enable_grad():
        features = network.eval()(torch.zeros(1, channels, _TRIAL, _TRIAL, device=first.device, dtype=first.dtype))
        total = sum(one.sum() for one in features[:maps])
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for module, mode in modes.items():
        module.training = mode
    used = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in used))
