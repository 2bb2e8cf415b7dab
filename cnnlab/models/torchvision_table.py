"""TORCHVISION_DETECTORS: which of torchvision's networks find objects, and for which images they were trained."""

from __future__ import annotations

from typing import NamedTuple

from cnnlab.imaging import Preprocessing

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TorchvisionDetectorInfo(NamedTuple):
    """What is known of one of torchvision's networks for detection without building it."""

    design: str
    """ssd, retinanet, fcos, faster_rcnn or mask_rcnn: the wrapper in torchvision_one_stage or torchvision_two_stage."""
    side: int
    """The shorter side of the pretraining's images, in pixels."""
    scale: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    """Mean and std of the pretraining's pixels, in 0..1."""
    fixed_norms: bool = False
    """Whether the batch norms of the pretrained backbone are fixed in torchvision's own fine-tuning."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the pretraining on COCO."""
        mean, std = self.scale
        return Preprocessing((self.side, self.side), 1.0, "bilinear", list(mean), list(std))


TORCHVISION_DETECTORS = {
    "ssdlite320_mobilenet_v3_large": TorchvisionDetectorInfo("ssd", 320, _HALF),
    "fasterrcnn_mobilenet_v3_large_320_fpn": TorchvisionDetectorInfo("faster_rcnn", 320, fixed_norms=True),
    "fasterrcnn_mobilenet_v3_large_fpn": TorchvisionDetectorInfo("faster_rcnn", 800, fixed_norms=True),
    "fasterrcnn_resnet50_fpn_v2": TorchvisionDetectorInfo("faster_rcnn", 800),
    "fcos_resnet50_fpn": TorchvisionDetectorInfo("fcos", 800, fixed_norms=True),
    "maskrcnn_resnet50_fpn_v2": TorchvisionDetectorInfo("mask_rcnn", 800),
    "retinanet_resnet50_fpn_v2": TorchvisionDetectorInfo("retinanet", 800),
}
"""torchvision's networks for detection, by name."""
