"""Layers compared and measured: kinds of convolution and of normalization, and a network's initialization."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from cnnlab.analysis.meta import first_tensor
from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive


class DeformableConv2d(nn.Module):
    """Deformable convolution: a second convolution predicts an offset for each tap (Dai et al. 2017).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: The kernel's size, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(inputs, 2 * kernel**2, kernel, padding=kernel // 2)
        self.convolution = DeformConv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        result: Tensor = self.convolution(features, self.offsets(features))
        return result


class Convolution(NamedTuple):
    """A kind of convolution and its cost for one image."""

    name: str
    parameters: int
    multiply_adds: int
    output: tuple[int, int, int]
    """Channels, height, width."""
    relative: float
    """Multiply-adds relative to the standard convolution."""


def convolutions(
    inputs: int = 64, outputs: int = 128, kernel: int = 3, size: int = 56, groups: int = 4
) -> list[Convolution]:
    """Compare the kinds of convolution.

    Args:
        inputs: Channels in.
        outputs: Channels out; the depthwise convolution keeps the channels in.
        kernel: The kernel's size, odd.
        size: Height and width of the input.
        groups: Groups of the grouped convolution.

    Raises:
        InputError: If a number is below 1, the kernel even, or the groups do not divide the channels.

    >>> [(kind.name, kind.parameters) for kind in convolutions(64, 128)[:3]]
    [('standard', 73728), ('1x1', 8192), ('depthwise', 576)]
    """
    check_positive(inputs=inputs, outputs=outputs, kernel=kernel, size=size, groups=groups)
    if kernel % 2 == 0:
        raise InputError(f"kernel is {kernel}, expected an odd number, so that height and width stay")
    if inputs % groups or outputs % groups:
        raise InputError(f"groups is {groups}, expected a divisor of {inputs} and {outputs} channels")

    def convolution(inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
        padding = dilation * (kernel // 2)
        return nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)

    kinds: dict[str, Callable[[], nn.Module]] = {
        "standard": lambda: convolution(inputs, outputs, kernel),
        "1x1": lambda: convolution(inputs, outputs, 1),
        "depthwise": lambda: convolution(inputs, inputs, kernel, groups=inputs),
        "depthwise-separable": lambda: nn.Sequential(
            convolution(inputs, inputs, kernel, groups=inputs), convolution(inputs, outputs, 1)
        ),
        "grouped": lambda: convolution(inputs, outputs, kernel, groups=groups),
        "dilated": lambda: convolution(inputs, outputs, kernel, dilation=2),
        "transposed, stride 2": lambda: nn.ConvTranspose2d(
            inputs, outputs, kernel, stride=2, padding=kernel // 2, output_padding=1, bias=False
        ),
        "deformable": lambda: DeformableConv2d(inputs, outputs, kernel),
    }
    deformable = {torch.ops.torchvision.deform_conv2d: _deform_flops}
    rows = []
    standard = 0
    for name, build in kinds.items():
        with torch.device("meta"), FlopCounterMode(display=False, custom_mapping=deformable) as counter:
            layer = build()
            result = layer(torch.empty(1, inputs, size, size))
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        multiply_adds = counter.get_total_flops() // 2
        standard = standard or multiply_adds
        channels, height, width = result.shape[1:]
        rows.append(Convolution(name, parameters, multiply_adds, (channels, height, width), multiply_adds / standard))
    return rows


def _deform_flops(
    features: tuple[int, ...], weight: tuple[int, ...], *args: object, out_shape: tuple[int, ...], **kwargs: object
) -> int:
    """The operations of a deformable convolution's products, without the interpolation between pixels."""
    return 2 * math.prod(weight) * out_shape[0] * math.prod(out_shape[2:])


class Normalization(NamedTuple):
    """A kind of normalization, for features (N, C, H, W)."""

    name: str
    axes: str
    """The axes that mean and variance are taken over."""
    statistics: int
    """The number of means."""
    parameters: int
    depends_on_batch: bool
    """Whether the other images of a batch change an image's result in training; measured."""
    same_in_evaluation: bool
    """Whether the results in evaluation and in training are equal; measured."""


def normalizations(shape: tuple[int, int, int, int] = (8, 32, 14, 14), groups: int = 8) -> list[Normalization]:
    """Compare the normalization layers (Wu and He 2018, fig. 2).

    Args:
        shape: The features' shape: images, channels, height, width.
        groups: Groups of the group norm.

    Raises:
        InputError: If there are fewer than two images, or the groups do not divide the channels.

    >>> [kind.name for kind in normalizations() if kind.depends_on_batch]
    ['batch']
    """
    from timm.layers import LayerNorm2d

    images, channels, height, width = shape
    if images < 2:
        raise InputError(f"shape is {shape}, expected two images or more")
    if groups < 1 or channels % groups:
        raise InputError(f"groups is {groups}, expected a divisor of {channels} channels")
    kinds: list[tuple[str, str, int, Callable[[], nn.Module]]] = [
        ("batch", "N, H, W", channels, lambda: nn.BatchNorm2d(channels)),
        ("layer", "C, H, W", images, lambda: nn.GroupNorm(1, channels)),
        ("layer, of each position", "C", images * height * width, lambda: LayerNorm2d(channels)),
        ("instance", "H, W", images * channels, lambda: nn.InstanceNorm2d(channels, affine=True)),
        ("group", "C / groups, H, W", images * groups, lambda: nn.GroupNorm(groups, channels)),
    ]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator)
    other_batch = torch.cat([features[:1], 3 * torch.randn((images - 1, *shape[1:]), generator=generator)])
    rows = []
    for name, axes, statistics, build in kinds:
        layer = build().train()
        with torch.no_grad():
            result, in_other_batch = layer(features)[0], layer(other_batch)[0]
            evaluated = layer.eval()(features)[0]
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        depends = not torch.allclose(result, in_other_batch, atol=1e-5)
        same = torch.allclose(result, evaluated, atol=1e-5)
        rows.append(Normalization(name, axes, statistics, parameters, depends, same))
    return rows


class LayerInit(NamedTuple):
    """The initialization of one layer with weights."""

    name: str
    kind: str
    scheme: str
    """The known schemes whose spread the weights have, joined by "or"; "other" if there is none."""
    weights: float
    """The weights' standard deviation."""
    activations: float
    """The output's standard deviation."""
    gradients: float
    """The standard deviation of the loss's gradient with respect to the output."""


def initialization(network: nn.Module, images: Tensor) -> list[LayerInit]:
    """Measure how a network's layers are initialized, in training mode, from the input to the head.

    The loss is cross-entropy; the images get the classes 0, 1, 2 and so on. The network is not changed.

    Args:
        network: Images to logits (B, classes).
        images: Standardized images (B, C, H, W); a few are enough.

    >>> from cnnlab.models import SmallResNet
    >>> layers = initialization(SmallResNet(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    >>> layers[0].scheme
    'Kaiming (fan out) or Xavier'
    """
    outputs: dict[str, Tensor] = {}
    # A copy: training mode changes batch norm's statistics.
    own = copy.deepcopy(network).train().requires_grad_()

    def keep_output(module: nn.Module, args: object, output: Tensor, name: str) -> Tensor:
        output.retain_grad()
        outputs[name] = output
        return output.clone()  # An in-place activation may change it.

    for name, module in own.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(functools.partial(keep_output, name=name))
    with torch.enable_grad():
        logits = first_tensor(own(images))
        assert logits is not None
        targets = torch.arange(len(images), device=images.device) % logits.shape[1]
        targets = targets.reshape(-1, *[1] * (logits.ndim - 2)).expand(len(images), *logits.shape[2:])
        nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
    layers = []
    for name, output in outputs.items():
        layer = network.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if output.grad is None:  # The output of an auxiliary head.
            continue
        spreads = [float(tensor.detach().std()) for tensor in (weight, output, output.grad)]
        layers.append(LayerInit(name, type(layer).__name__, _scheme(weight, getattr(layer, "groups", 1)), *spreads))
    return layers


def _scheme(weight: Tensor, groups: int) -> str:
    spread = float(weight.detach().std())
    taps = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * taps, weight.shape[0] * taps
    known = {
        "Kaiming (fan in)": math.sqrt(2 / fan_in),
        "Kaiming (fan out)": math.sqrt(2 / fan_out),
        "Xavier": math.sqrt(2 / (fan_in + fan_out)),
        "PyTorch's default": math.sqrt(1 / (3 * fan_in)),
        "truncated normal, 0.02": 0.02,
        "zero": 0.0,
    }
    if groups > 1:
        known["Kaiming (fan out of a group)"] = math.sqrt(2 * groups / fan_out)
    # The spread of few weights is a rough estimate.
    tolerance = max(0.05, 4 / math.sqrt(2 * weight.numel()))
    return " or ".join(name for name, value in known.items() if abs(spread - value) <= tolerance * value) or "other"
