"""The kinds of convolution compared: the cost of each for the same input and output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from cnnlab.analysis.convolution import output_size
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
    torch_multiply_adds: int
    """The same multiply-adds by torch's FLOP counter."""


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
    rows = []
    standard = 0
    for name, build in kinds.items():
        with torch.device("meta"):
            layer = build()
            counter = FlopCounterMode(
                display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_flops}
            )
            with counter:
                result = layer(torch.empty(1, inputs, size, size))
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        multiply_adds = _multiply_adds(layer, size)
        standard = standard or multiply_adds
        channels, height, width = result.shape[1:]
        relative = multiply_adds / standard
        output = (channels, height, width)
        rows.append(Convolution(name, parameters, multiply_adds, output, relative, counter.get_total_flops() // 2))
    return rows


def _multiply_adds(layer: nn.Module, size: int) -> int:
    """From the layers' shapes: each weight is used once per output position.

    A transposed convolution uses each weight once per input position.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight.numel() * size**2
    if isinstance(layer, (nn.Conv2d, DeformConv2d)):
        kernel, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
        return layer.weight.numel() * output_size(size, kernel, stride, int(layer.padding[0]), dilation) ** 2
    return sum(_multiply_adds(child, size) for child in layer.children())


def _deform_flops(
    features: tuple[int, ...], weight: tuple[int, ...], *args: object, out_shape: tuple[int, ...], **kwargs: object
) -> int:
    """The operations of a deformable convolution's products, without the interpolation between pixels."""
    return 2 * math.prod(weight) * out_shape[0] * math.prod(out_shape[2:])
