"""Influential architectures: year, size, cost, accuracy and main idea."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.meta import build_on_meta
from cnnlab.errors import InputError, nearest
from cnnlab.models.lenet import LeNet5


class Architecture(NamedTuple):
    """An architecture, represented by its best-known network."""

    name: str
    year: int
    idea: str
    network: str
    """The network's name, with the prefix torchvision/ for torchvision's; GoogLeNet is without its auxiliary heads."""
    image: tuple[int, int, int]
    """Channels, height and width of the image that the costs are for."""
    parameters: int
    multiply_adds: int
    top1: float | None
    """Accuracy on ImageNet's validation set, percent."""
    source: str | None
    """The source of the accuracy."""


class _Entry(NamedTuple):
    year: int
    idea: str
    network: str
    weights: str = "DEFAULT"


_TORCHVISION = {
    "AlexNet": _Entry(2012, "deep convolutions with ReLU and dropout, trained on GPUs", "alexnet"),
    "VGG-16": _Entry(2014, "nothing but 3x3 convolutions, and many", "vgg16"),
    "GoogLeNet": _Entry(2014, "branches of several kernel sizes, 1x1 convolutions before them", "googlenet"),
    "ResNet-50": _Entry(2015, "shortcuts: layers learn what to add", "resnet50"),
    "ResNeXt-50": _Entry(2016, "groups: many narrow paths in a block", "resnext50_32x4d"),
    "EfficientNet-B0": _Entry(2019, "inverted bottlenecks, found by search", "efficientnet_b0"),
    "EfficientNet-B7": _Entry(2019, "depth, width and resolution scaled together", "efficientnet_b7"),
    # Trained on ImageNet alone.
    "ViT-B/16": _Entry(2020, "patches as tokens, attention instead of convolution", "vit_b_16", "IMAGENET1K_V1"),
    "ConvNeXt-T": _Entry(2022, "a ResNet rebuilt with all that transformers taught", "convnext_tiny"),
    "ConvNeXt-L": _Entry(2022, "the same, larger", "convnext_large"),
}


@functools.cache
def catalog() -> dict[str, Architecture]:
    """The architectures by name, from the oldest to the newest.

    Parameters, multiply-adds and accuracies are torchvision's metadata. For networks that torchvision lacks, cnnlab
    counts them.
    """
    import torchvision

    architectures = [
        _count_architecture("LeNet-5", 1998, "convolution and pooling, learned from end to end", "lenet5", (1, 28, 28)),
        _count_architecture(
            "SENet-154",
            2017,
            "channels weighed by what the whole image holds",
            "legacy_senet154",
            (3, 224, 224),
            81.308,
            "results-imagenet.csv of github.com/huggingface/pytorch-image-models (legacy_senet154.in1k)",
        ),
    ]
    for name, entry in _TORCHVISION.items():
        weights = torchvision.models.get_model_weights(entry.network)[entry.weights]
        size = weights.transforms().crop_size[0]
        architectures.append(
            Architecture(
                name,
                entry.year,
                entry.idea,
                f"torchvision/{entry.network}",
                (3, size, size),
                weights.meta["num_params"],
                round(weights.meta["_ops"] * 1e9),
                weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
                f"torchvision, {weights}",
            )
        )
    return {architecture.name: architecture for architecture in sorted(architectures, key=lambda one: one.year)}


def _count_architecture(
    name: str,
    year: int,
    idea: str,
    network: str,
    image: tuple[int, int, int],
    top1: float | None = None,
    source: str | None = None,
) -> Architecture:
    cost = network_cost(build_on_meta(_BUILDERS[network]), image)
    return Architecture(name, year, idea, network, image, cost.parameters, cost.multiply_adds, top1, source)


def instantiate(architecture: str) -> nn.Module:
    """Build one of the catalog's networks on the meta device.

    Raises:
        InputError: If the catalog has no such architecture.
    """
    known = catalog()
    if architecture not in known:
        raise InputError(f"the catalog has no {architecture!r}: {nearest(architecture, known)}")
    network = known[architecture].network.removeprefix("torchvision/")
    if network in _BUILDERS:
        return build_on_meta(_BUILDERS[network])
    import torchvision

    settings = {"aux_logits": False, "init_weights": False} if network == "googlenet" else {}
    return build_on_meta(lambda: torchvision.models.get_model(network, weights=None, **settings))


def _senet() -> nn.Module:
    import timm

    return timm.create_model("legacy_senet154")


_BUILDERS: dict[str, Callable[[], nn.Module]] = {"lenet5": LeNet5, "legacy_senet154": _senet}
"""Networks that torchvision does not have."""
