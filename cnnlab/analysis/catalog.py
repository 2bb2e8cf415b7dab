"""Influential architectures with year, size, cost, accuracy and main idea; and EfficientNet's compound scaling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.meta import build_on_meta
from cnnlab.errors import InputError, nearest
from cnnlab.models.factory import create_network
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
    name: str
    year: int
    idea: str
    network: str
    """One of torchvision's, without its prefix, or one in _COUNTED."""
    weights: str = "DEFAULT"


_ENTRIES = (
    _Entry("LeNet-5", 1998, "convolution and pooling, learned from end to end", "lenet5"),
    _Entry("AlexNet", 2012, "deep convolutions with ReLU and dropout, trained on GPUs", "alexnet"),
    _Entry("VGG-16", 2014, "nothing but 3x3 convolutions, and many", "vgg16"),
    _Entry("GoogLeNet", 2014, "branches of several kernel sizes, 1x1 convolutions before them", "googlenet"),
    _Entry("ResNet-50", 2015, "shortcuts: layers learn what to add", "resnet50"),
    _Entry("ResNeXt-50", 2016, "groups: many narrow paths in a block", "resnext50_32x4d"),
    _Entry("SENet-154", 2017, "channels weighed by what the whole image holds", "legacy_senet154"),
    _Entry("EfficientNet-B0", 2019, "inverted bottlenecks, found by search", "efficientnet_b0"),
    _Entry("EfficientNet-B7", 2019, "depth, width and resolution scaled together", "efficientnet_b7"),
    # Trained on ImageNet alone.
    _Entry("ViT-B/16", 2020, "patches as tokens, attention instead of convolution", "vit_b_16", "IMAGENET1K_V1"),
    _Entry("ConvNeXt-T", 2022, "a ResNet rebuilt with all that transformers taught", "convnext_tiny"),
    _Entry("ConvNeXt-L", 2022, "the same, larger", "convnext_large"),
)


class _Counted(NamedTuple):
    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    top1: float | None = None
    source: str | None = None


_COUNTED = {
    "lenet5": _Counted(LeNet5, (1, 28, 28)),
    "legacy_senet154": _Counted(
        functools.partial(create_network, "legacy_senet154", 1000, 3),
        (3, 224, 224),
        81.308,
        "results-imagenet.csv of github.com/huggingface/pytorch-image-models (legacy_senet154.in1k)",
    ),
}
"""Networks that torchvision does not have; cnnlab counts their costs."""


@functools.cache
def catalog() -> dict[str, Architecture]:
    """The architectures by name, from the oldest to the newest.

    Parameters, multiply-adds and accuracies are torchvision's metadata, except for networks that it lacks.
    """
    import torchvision

    known = {}
    for name, year, idea, network, version in _ENTRIES:
        if (own := _COUNTED.get(network)) is not None:
            cost = network_cost(build_on_meta(own.build), own.image)
            figures = (network, own.image, cost.parameters, cost.multiply_adds, own.top1, own.source)
        else:
            weights = torchvision.models.get_model_weights(network)[version]
            size = weights.transforms().crop_size[0]
            multiply_adds = round(weights.meta["_ops"] * 1e9)
            top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            parameters, source = weights.meta["num_params"], f"torchvision, {weights}"
            figures = (f"torchvision/{network}", (3, size, size), parameters, multiply_adds, top1, source)
        known[name] = Architecture(name, year, idea, *figures)
    return known


def instantiate(architecture: str) -> nn.Module:
    """Build one of the catalog's networks on the meta device.

    Raises:
        InputError: If the catalog has no such architecture.
    """
    known = catalog()
    if architecture not in known:
        raise InputError(f"the catalog has no {architecture!r}: {nearest(architecture, known)}")
    network = known[architecture].network.removeprefix("torchvision/")
    if network in _COUNTED:
        return build_on_meta(_COUNTED[network].build)
    import torchvision

    settings = {"aux_logits": False, "init_weights": False} if network == "googlenet" else {}
    return build_on_meta(lambda: torchvision.models.get_model(network, weights=None, **settings))


class Coefficients(NamedTuple):
    """A network's size relative to EfficientNet-B0."""

    depth: float
    """Factor for the blocks of each stage, rounded up."""
    width: float
    """Factor for the channels, rounded to a multiple of 8."""
    resolution: int
    """Height and width of the images."""


RELEASED = {
    0: Coefficients(1.0, 1.0, 224),
    1: Coefficients(1.1, 1.0, 240),
    2: Coefficients(1.2, 1.1, 260),
    3: Coefficients(1.4, 1.2, 300),
    4: Coefficients(1.8, 1.4, 380),
    5: Coefficients(2.2, 1.6, 456),
    6: Coefficients(2.6, 1.8, 528),
    7: Coefficients(3.1, 2.0, 600),
}
"""B0 to B7 as released (efficientnet_builder.py of github.com/tensorflow/tpu); they differ from the formula."""


def compound_scaling(phi: float) -> Coefficients:
    """The paper's formula: depth 1.2^phi, width 1.1^phi, resolution 224 x 1.15^phi.

    Tan and Le 2019, equation 3 with the constants of section 3.3. The cost grows with depth x width^2 x resolution^2,
    which is then close to 2^phi.

    >>> compound_scaling(1)
    Coefficients(depth=1.2, width=1.1, resolution=258)
    """
    if phi < 0:
        raise InputError(f"phi is {phi}, expected 0 or more")
    return Coefficients(1.2**phi, 1.1**phi, round(224 * 1.15**phi))


class ScaledNetwork(NamedTuple):
    """One of EfficientNet-B0 to B7."""

    name: str
    formula: Coefficients
    released: Coefficients
    parameters: int
    multiply_adds: int
    relative: float
    """Multiply-adds relative to B0."""
    expected: float
    """Multiply-adds relative to B0 by the formula: 2^phi."""


def efficientnet_family() -> list[ScaledNetwork]:
    """B0 to B7: the formula's coefficients, the released ones, and the cost of timm's networks."""
    import timm

    networks: list[ScaledNetwork] = []
    for number, released in RELEASED.items():
        network = build_on_meta(functools.partial(timm.create_model, f"tf_efficientnet_b{number}"))
        cost = network_cost(network, (3, released.resolution, released.resolution))
        relative = cost.multiply_adds / networks[0].multiply_adds if networks else 1.0
        costs = (cost.parameters, cost.multiply_adds, relative, 2.0**number)
        networks.append(ScaledNetwork(f"B{number}", compound_scaling(number), released, *costs))
    return networks
