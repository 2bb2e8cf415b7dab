"""Building blocks of CNNs: residual, bottleneck, inverted bottleneck and ConvNeXt blocks, and their parts.

All take and return feature maps (B, channels, H, W). Their parameters have the same order as in torchvision's blocks of
the same kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cnnlab.errors import InputError


def check_positive(**sizes: int) -> None:
    """Reject sizes below 1.

    Raises:
        InputError: If a size is below 1; the message names it.

    >>> check_positive(inputs=64, stride=0)
    Traceback (most recent call last):
    cnnlab.errors.InputError: stride is 0, expected 1 or more
    """
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}, expected 1 or more")


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, and batch norm, which has one; with stride 1, an odd kernel keeps H and W."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class DropPath(StochasticDepth):  # type: ignore[misc]  # torchvision has no types.
    """Stochastic depth: in training, drop a residual branch for random samples of the batch (Huang et al. 2016).

    A sample's branch is zero with probability ``rate``, otherwise divided by 1 - rate, which keeps its expectation. In
    eval mode it is the identity.

    Args:
        rate: The probability of dropping, 0 up to (not including) 1.

    Raises:
        InputError: If the rate is outside its range.

    >>> branch = DropPath(0.75)(torch.ones(100, 2, 1, 1))
    >>> branch.unique().tolist()
    [0.0, 4.0]
    >>> bool((branch[:, 0] == branch[:, 1]).all())
    True
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__(rate, "row")
        if not 0 <= rate < 1:
            raise InputError(f"the drop_path rate is {rate}, expected 0 up to (not including) 1")


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: weigh channels by global features of the image (Hu et al. 2018).

    Global average, 1x1 convolution to fewer channels, activation, 1x1 convolution back, sigmoid: one weight in 0..1
    for each sample and channel.

    Args:
        channels: Channels in and out.
        squeezed: Channels between the two convolutions.
        activation: Builds the activation between the two.

    Raises:
        InputError: If a number of channels is below 1.

    >>> layer = SqueezeExcitation(64, 16)
    >>> sum(p.numel() for p in layer.parameters())
    2128
    >>> layer(torch.zeros(2, 64, 7, 5)).shape
    torch.Size([2, 64, 7, 5])
    """

    def __init__(self, channels: int, squeezed: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        check_positive(channels=channels, squeezed=squeezed)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, kernel_size=1),
            activation(),
            nn.Conv2d(squeezed, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        weights: Tensor = self.gate(features)
        return features * weights


class _ResNetBlock(nn.Module):
    """ReLU of shortcut plus residual; the shortcut is a 1x1 convolution with batch norm if the shape changes."""

    def __init__(self, residual: nn.Sequential, inputs: int, outputs: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.residual = residual
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
        self.drop_path = DropPath(drop_path)
        # Not in place, unlike those after batch norm: hooks, such as Grad-CAM's, keep the unchanged sum.
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W') with H' = ceil(H / stride), W' likewise."""
        result: Tensor = self.relu(self.shortcut(features) + self.drop_path(self.residual(features)))
        return result


class BasicBlock(_ResNetBlock):
    """Residual block of two 3x3 convolutions (He et al. 2016): conv-BN-ReLU-conv-BN, plus the shortcut, ReLU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Stride of the first convolution, and of the shortcut.
        drop_path: Rate of stochastic depth, 0 up to (not including) 1.

    Raises:
        InputError: If a number of channels or the stride is below 1, or the rate outside its range.

    >>> block = BasicBlock(256, 256)
    >>> sum(p.numel() for p in block.parameters())
    1180672
    >>> BasicBlock(8, 16, stride=2)(torch.zeros(2, 8, 7, 6)).shape
    torch.Size([2, 16, 4, 3])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, drop_path: float = 0.0) -> None:
        check_positive(inputs=inputs, outputs=outputs, stride=stride)
        residual = nn.Sequential(
            *conv_bn(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv_bn(outputs, outputs, 3)
        )
        super().__init__(residual, inputs, outputs, stride, drop_path)


class Bottleneck(_ResNetBlock):
    """Residual block of 1x1, 3x3 and 1x1 convolutions with fewer channels in the middle (He et al. 2016).

    The stride is in the 3x3 convolution (ResNet v1.5). With groups it is ResNeXt's block (Xie et al. 2017):
    ``Bottleneck(256, 4, 256, groups=32)`` is a block of ResNeXt-50 32x4d, with 128 channels in the middle.

    Args:
        inputs: Channels in.
        width: Channels of each group in the middle, which has groups x width.
        outputs: Channels out.
        stride: Stride of the 3x3 convolution, and of the shortcut.
        groups: Groups of the 3x3 convolution.
        drop_path: Rate of stochastic depth, 0 up to (not including) 1.

    Raises:
        InputError: If a number of channels or groups or the stride is below 1, or the rate outside its range.

    >>> block = Bottleneck(256, 64, 256)
    >>> sum(p.numel() for p in block.parameters())
    70400
    >>> Bottleneck(8, 2, 16, stride=2, groups=4)(torch.zeros(2, 8, 7, 6)).shape
    torch.Size([2, 16, 4, 3])
    """

    def __init__(
        self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1, drop_path: float = 0.0
    ) -> None:
        check_positive(inputs=inputs, width=width, outputs=outputs, stride=stride, groups=groups)
        middle = width * groups
        residual = nn.Sequential(
            *conv_bn(inputs, middle, 1),
            nn.ReLU(inplace=True),
            *conv_bn(middle, middle, 3, stride, groups),
            nn.ReLU(inplace=True),
            *conv_bn(middle, outputs, 1),
        )
        super().__init__(residual, inputs, outputs, stride, drop_path)


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation, EfficientNet's block (Tan & Le 2019).

    1x1 expansion, depthwise convolution, squeeze-and-excitation and 1x1 projection, each convolution with batch norm,
    the first two with SiLU, the projection linear. Where input and output have the same shape, the input is added.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Size of the depthwise kernel, odd; EfficientNet has 3 and 5.
        stride: Stride of the depthwise convolution.
        expansion: The factor of channels in the middle; with 1 there is no expansion.
        reduction: The factor by which the squeeze reduces the input's channels.
        drop_path: Rate of stochastic depth, 0 up to (not including) 1. A block that does not add its input ignores it;
            networks raise the rate evenly over all their blocks.

    Raises:
        InputError: If a size is below 1, the kernel even, or the rate outside its range.

    >>> block = MBConv(16, 24, kernel=3, stride=2)
    >>> sum(p.numel() for p in block.parameters())
    6004
    >>> block(torch.zeros(2, 16, 7, 6)).shape
    torch.Size([2, 24, 4, 3])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        expansion: int = 6,
        reduction: int = 4,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(inputs=inputs, outputs=outputs, stride=stride, expansion=expansion, reduction=reduction)
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"kernel is {kernel}, expected an odd number of 1 or more")
        middle = inputs * expansion
        # SiLU is not in place: its gradient needs its input.
        expand = [*conv_bn(inputs, middle, 1), nn.SiLU()] if expansion > 1 else []
        self.residual = nn.Sequential(
            *expand,
            *conv_bn(middle, middle, kernel, stride, groups=middle),
            nn.SiLU(),
            SqueezeExcitation(middle, max(1, inputs // reduction), nn.SiLU),
            *conv_bn(middle, outputs, 1),
        )
        self.adds_input = inputs == outputs and stride == 1
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W') with H' = ceil(H / stride), W' likewise."""
        result: Tensor = self.residual(features)
        return features + self.drop_path(result) if self.adds_input else result


class ConvNeXtBlock(nn.Module):
    """ConvNeXt's block (Liu et al. 2022).

    7x7 depthwise convolution, layer norm over the channels, 4x inverted bottleneck with GELU, a learned scale per
    channel, and the input added.

    Args:
        channels: Channels in and out.
        layer_scale: The learned scale's initial value, above 0.
        drop_path: Rate of stochastic depth, 0 up to (not including) 1.

    Raises:
        InputError: If channels is below 1, layer_scale not above 0, or the rate outside its range.

    >>> block = ConvNeXtBlock(96)
    >>> sum(p.numel() for p in block.parameters())
    79296
    >>> block(torch.zeros(2, 96, 7, 5)).shape
    torch.Size([2, 96, 7, 5])
    """

    def __init__(self, channels: int, layer_scale: float = 1e-6, drop_path: float = 0.0) -> None:
        super().__init__()
        check_positive(channels=channels)
        if not layer_scale > 0:
            raise InputError(f"layer_scale is {layer_scale}, expected a value above 0")
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        # Linear layers serve as 1x1 convolutions: like layer norm, they take channels last.
        self.bottleneck = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        channels_last = self.depthwise(features).permute(0, 2, 3, 1)
        branch = self.bottleneck(channels_last).permute(0, 3, 1, 2)
        result: Tensor = features + self.drop_path(self.layer_scale * branch)
        return result
