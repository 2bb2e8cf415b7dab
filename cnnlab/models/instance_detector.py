"""InstanceDetector: a one-stage detector with a mask for each object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cnnlab.errors import InputError
from cnnlab.models.blocks import conv_bn
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.detector import Detector
from cnnlab.models.factory import Encoder
from cnnlab.models.regions import image_numbers

MASK_SIDE = 28
"""Height and width of a mask: a grid over the object's region."""
GROWTH = 1.25
"""A mask's region is larger than the object's box, so that a box that is too small does not cut it off."""
_GROUPS = 4


class InstanceDetector(Detector):
    """A one-stage detector with a head that predicts a mask in the region of each box (Mask R-CNN, He et al. 2017).

    The regions are cut out of one fine map, which joins the finest map of the pyramid and one of the backbone's.

    Args:
        features: See Detector.
        num_classes: See Detector.
        channels: See Detector.
        strides: See Detector; a finer one finds more of the small objects that masks are often wanted for.
        mask_stride: The stride of the map that masks are cut out of, one of the backbone's.
        mask_width: The channels of that map.
        detections: The number of objects of an image, at most.
        nms: See BoxDecoder.
        **kwargs: See Detector.

    Raises:
        InputError: If the backbone has no such stride.
    """

    def __init__(
        self,
        features: Encoder,
        num_classes: int,
        channels: int = 3,
        strides: Sequence[int] = (4, 8, 16, 32),
        mask_stride: int = 2,
        mask_width: int = 32,
        detections: int = 100,
        nms: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(features, num_classes, channels=channels, strides=strides, **kwargs)
        if mask_stride not in features.strides or mask_stride > strides[0]:
            raise InputError(
                f"model.network_args.mask_stride is {mask_stride}, expected one of {features.strides}, up to "
                f"{strides[0]}"
            )
        self.mask_stride = mask_stride
        self._fine = features.strides.index(mask_stride)
        width = self.classify.in_channels
        self.mask_lateral = nn.Sequential(*conv_bn(features.widths[self._fine], mask_width, 1), nn.SiLU())
        self.mask_coarse = nn.Sequential(*conv_bn(width, mask_width, 1), nn.SiLU())
        self.mask_merge = nn.Sequential(*conv_bn(mask_width, mask_width, 3), nn.SiLU())
        last = nn.Conv2d(mask_width, 1, 1)
        assert last.bias is not None
        nn.init.ones_(last.bias)  # Not all cells at the limit of 0.5, where rounding would decide.
        self.mask_head = nn.Sequential(*_head_layer(mask_width), *_head_layer(mask_width), last)
        self.select = BoxDecoder(detections, nms)

    output_layers: tuple[str, ...] = ("classify", "regress", "mask_head.6")

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """See Detector; the masks' layers are a group before the head."""
        groups = dict(super().layer_groups())
        head = groups.pop("head")
        return {**groups, "masks": ("mask_lateral", "mask_coarse", "mask_merge", "mask_head"), "head": head}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Standardized images (B, C, H, W) to raw outputs.

        Returns:
            See Detector; and fine (B, mask_width, h, w), the map of mask_logits(). In evaluation also, of the objects
            that are found, found_boxes (B, N, 4), found_scores (B, N), found_labels (B, N), regions (B, N, 4) and
            mask_logits (B, N, 28, 28).
        """
        features, maps = self.pyramid(images)
        outputs = self.answers(maps, images.shape[0])
        finest = features[self._fine]
        coarse = F.interpolate(self.mask_coarse(maps[0]), size=finest.shape[-2:], mode="bilinear")
        outputs["fine"] = self.mask_merge(self.mask_lateral(finest) + coarse)
        return outputs if self.training else outputs | objects_with_masks(self, outputs)

    def mask_regions(self, boxes: Tensor) -> Tensor:
        """The regions (..., 4) in which the masks of objects with these boxes (..., 4) are looked for."""
        return grown(boxes)

    def mask_logits(self, outputs: Mapping[str, Tensor], regions: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The masks of regions.

        Args:
            outputs: With fine (B, mask_width, h, w), from forward().
            regions: (R, 4), x1, y1, x2, y2 in pixels of the input.
            images: (R,) int64, the image of each.
            labels: (R,) int64, the class of each, on which these masks do not depend.

        Returns:
            (R, 28, 28) float32, a grid over each region.
        """
        # In half precision, coordinates would be off by pixels.
        rows = torch.cat([images[:, None].float(), regions.float()], dim=1)
        cut = roi_align(outputs["fine"].float(), rows, MASK_SIDE, 1 / self.mask_stride, sampling_ratio=2, aligned=True)
        logits: Tensor = self.mask_head(cut)[:, 0].float()
        return logits


def objects_with_masks(network: Any, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The objects that are found, and their masks: see InstanceDetector.forward.

    Args:
        network: With select, a BoxDecoder, and InstanceDetector's methods mask_regions and mask_logits.
        outputs: Its raw outputs.
    """
    found: dict[str, Tensor] = network.select(outputs)
    regions = network.mask_regions(found["boxes"])
    logits = network.mask_logits(outputs, regions.flatten(0, 1), image_numbers(regions), found["labels"].flatten())
    named = {f"found_{name}": value for name, value in found.items()}
    return {**named, "regions": regions, "mask_logits": logits.unflatten(0, (-1, regions.shape[1]))}


def grown(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) that are larger by GROWTH around their centers.

    >>> grown(torch.tensor([8.0, 8.0, 16.0, 24.0]))
    tensor([ 7.,  6., 17., 26.])
    """
    center, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) * (GROWTH / 2)
    return torch.cat([center - half, center + half], dim=-1)


def _head_layer(width: int) -> list[nn.Module]:
    """A 3x3 convolution with a norm that does not depend on the number of regions, which may be 0."""
    return [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.SiLU()]
