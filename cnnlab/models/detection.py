"""Build networks for detection by name: cnnlab's own on any timm backbone, torchvision's, and the user's own."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from cnnlab.errors import InputError, nearest
from cnnlab.imports import by_path
from cnnlab.models.detector import Detector
from cnnlab.models.factory import build, create_features
from cnnlab.models.instance_detector import InstanceDetector
from cnnlab.models.torchvision_detectors import create_torchvision_detector
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.models.two_stage import TwoStageDetector, TwoStageInstanceDetector


class DetectorSize(NamedTuple):
    """One of the sizes of cnnlab's own detectors."""

    kind: type[Detector]
    """The class of the network."""

    encoder: str
    """The timm network that is its backbone, unless another is named."""
    width: int
    """See models.detector.Detector."""
    depth: int
    """See models.detector.Detector."""


DETECTORS = {
    "one_stage_s": DetectorSize(Detector, "mobilenetv3_small_100", 64, 1),
    "one_stage_m": DetectorSize(Detector, "tf_efficientnet_lite0", 96, 2),
    "one_stage_l": DetectorSize(Detector, "resnet50", 160, 3),
    "two_stage_s": DetectorSize(TwoStageDetector, "mobilenetv3_small_100", 64, 1),
    "two_stage_m": DetectorSize(TwoStageDetector, "tf_efficientnet_lite0", 96, 2),
    "two_stage_l": DetectorSize(TwoStageDetector, "resnet50", 160, 3),
    "instances_s": DetectorSize(InstanceDetector, "mobilenetv3_small_100", 64, 1),
    "instances_m": DetectorSize(InstanceDetector, "tf_efficientnet_lite0", 96, 2),
    "instances_l": DetectorSize(InstanceDetector, "resnet50", 160, 3),
    "two_stage_instances_s": DetectorSize(TwoStageInstanceDetector, "mobilenetv3_small_100", 64, 1),
    "two_stage_instances_m": DetectorSize(TwoStageInstanceDetector, "tf_efficientnet_lite0", 96, 2),
    "two_stage_instances_l": DetectorSize(TwoStageInstanceDetector, "resnet50", 160, 3),
}
"""cnnlab's networks for detection, by name."""


def create_detector(
    name: str,
    num_classes: int,
    channels: int = 3,
    encoder: str | None = None,
    weights: str | None = None,
    dropout: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network that returns scores and boxes for images (B, channels, H, W) of any size.

    Args:
        name: A name in DETECTORS or TORCHVISION_DETECTORS (also with the prefix ``torchvision/``), or the import path
            of a user's callable (``package.module.Class``) that takes num_classes and channels, and returns the raw
            outputs of models.detector.Detector. If its class says ``computes_loss = True``, see losses.NetworkLoss.
        num_classes: The number of classes.
        channels: The images' channels.
        encoder: A timm network as the backbone; that of DETECTORS if None.
        weights: The pretrained weights, see weights.find_weights: of the backbone, or of the whole network if it is
            torchvision's; random initialization if None.
        dropout: Dropout rate before the last layers, 0..1; none if None.
        **kwargs: See models.detector.Detector, or torchvision_detectors.create_torchvision_detector.

    Raises:
        InputError: If there is no such network, it does not take these arguments, or its weights cannot be loaded.
    """
    if (own := torchvision_name(name)) is not None:
        given = {"encoder": encoder, "dropout": dropout}
        if wrong := [argument for argument, value in given.items() if value is not None]:
            raise InputError(f"model.{wrong[0]} is not for torchvision's {own}: leave it out")
        return build(name, create_torchvision_detector, own, num_classes, channels, weights, **kwargs)
    if dropout is not None:
        kwargs["dropout"] = dropout
    if name not in DETECTORS:
        if "." not in name:
            known = [*DETECTORS, *TORCHVISION_DETECTORS]
            raise InputError(
                f"there is no network {name!r} for detection: {nearest(name, known)} (model.encoder chooses its "
                "backbone; or give the import path of your own, package.module.Class)"
            )
        return build(name, by_path(name), num_classes=num_classes, channels=channels, **kwargs)
    size = DETECTORS[name]
    features = create_features(size.encoder if encoder is None else encoder, channels, weights)
    settings = {"width": size.width, "depth": size.depth, **kwargs}
    return build(name, size.kind, features, num_classes, channels=channels, **settings)


def encoder_of(name: str, encoder: str | None) -> str | None:
    """The timm backbone of a network for detection; None if it has none."""
    return DETECTORS[name].encoder if encoder is None and name in DETECTORS else encoder


def torchvision_name(name: str) -> str | None:
    """The name of one of torchvision's networks for detection, without a prefix; None for other networks."""
    name = name.removeprefix("torchvision/")
    return name if name in TORCHVISION_DETECTORS else None
