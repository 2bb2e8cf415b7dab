"""torchvision's detectors: torchvision's own answers and losses, gradients, weights of files, exported files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from cnnlab.deploy.export import Pipeline, differences, export, load_onnx
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.errors import InputError
from cnnlab.losses import NetworkLoss
from cnnlab.models import create_detector, layer_groups
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.objects import Objects
from cnnlab.outputs import Boxes
from cnnlab.tasks import Detection

SIZES = {"ssdlite320_mobilenet_v3_large": 320}
SLOW = [name for name in TORCHVISION_DETECTORS if "resnet50" in name]
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TORCHVISION_DETECTORS]
CLASSES = 3


def side(name: str) -> int:
    return SIZES.get(name, 96)


def images_of(name: str, count: int) -> Tensor:
    """Standardized images with some structure, so that places differ."""
    torch.manual_seed(1)
    size = side(name)
    coarse = torch.randn(count, 3, size // 8, size // 8)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear") + 0.3 * torch.randn(count, 3, size, size)


def detector(name: str, lively: bool = True, **kwargs: Any) -> Any:
    """A network with random weights whose scores and boxes differ from place to place."""
    torch.manual_seed(0)
    network: Any = create_detector(name, CLASSES, **kwargs)
    if not lively:
        return network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    spreads: dict[nn.Module, Tensor] = {}
    lasts = {module: own for own, module in network.named_modules() if is_last(own, module)}
    for module in lasts:
        module.register_forward_hook(lambda layer, _, output: spreads.setdefault(layer, output.std()) and None)
    network.train()
    with torch.no_grad():
        network(images_of(name, 4))
        network.eval()
        spreads.clear()
        network(images_of(name, 4))
        for module, own in lasts.items():
            of_box = "bbox_pred" in own or "bbox_reg" in own or "regression_head" in own
            module.weight.mul_((0.4 if of_box else 2.0) / spreads[module])  # type: ignore[operator]
    return network.eval()


def is_last(name: str, module: nn.Module) -> bool:
    """Whether a layer returns scores or boxes."""
    names = ("cls_logits", "cls_score", "bbox_reg", "bbox_pred", "bbox_ctrness")
    return isinstance(module, (nn.Conv2d, nn.Linear)) and (
        name.endswith(names) or ("head.module_list" in name and name.endswith(".1"))
    )


def objects(*images: list[list[float]], crowd: bool = False) -> Objects:
    """Objects of images: x1, y1, x2, y2, label each."""
    rows = torch.tensor([row for image in images for row in image]).reshape(-1, 5)
    flags = torch.full((len(rows),), crowd)
    return Objects(rows[:, :4], rows[:, 4].long(), flags, torch.tensor([len(image) for image in images]))


def original(network: Any, name: str) -> Any:
    """torchvision's network with the same weights, which neither resizes nor standardizes."""
    size = side(name)
    outputs = CLASSES + network.first_label
    own = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs)
    own.load_state_dict(network.model.state_dict())
    own.transform.image_mean, own.transform.image_std = [0.0] * 3, [1.0] * 3
    if name not in SIZES:
        own.transform.min_size, own.transform.max_size = (size,), size
    return own.eval()


def packed(found: list[dict[str, Tensor]], first_label: int, count: int) -> dict[str, np.ndarray]:
    arrays = {
        "boxes": np.zeros((len(found), count, 4), np.float32),
        "scores": np.zeros((len(found), count), np.float32),
        "labels": np.zeros((len(found), count), np.int64),
    }
    for i, one in enumerate(found):
        for key, array in arrays.items():
            values = one[key] - first_label if key == "labels" else one[key]
            array[i, : len(values)] = values.detach().numpy()
    return arrays


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_torchvisions(name: str) -> None:
    network = detector(name)
    own, images = original(network, name), images_of(name, 2)
    settings = own.roi_heads if hasattr(own, "roi_heads") else own
    settings.score_thresh = 0.05
    settings.topk_candidates = settings.detections_per_img = 3000
    with torch.no_grad():
        expected = packed(own(list(images)), network.first_label, 3000)
        outputs = network(images)
        answers = BoxDecoder(3000, settings.nms_thresh, candidates=100_000)(outputs)
    found = {key: value.numpy() for key, value in answers.items()}
    found["scores"] = found["scores"] * (found["scores"] > 0.05)
    found = {
        key: np.pad(value, [(0, 0), (0, 3000 - value.shape[1])] + [(0, 0)] * (value.ndim - 2))
        for key, value in found.items()
    }
    # Where scores are nearly equal, rounding decides which box suppresses the other.
    shown = (expected["scores"] > 0).sum(axis=1)
    print(name, shown, expected["scores"][:, :3], Boxes("abc", count=3000).difference(expected, found))
    assert shown.min() > 5
    assert abs(shown - (found["scores"] > 0).sum(axis=1)).max() <= 1
    assert Boxes("abc", count=3000).difference(expected, found) < 1e-3
