"""U-Net, plain or with a pretrained encoder, with or without attention gates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive, conv_bn


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of a number.

    The operation runs even if nothing is added, so that an exported network takes any size. The result's sides are
    computed as quotients times the multiple: so torch.export knows that halves of them are whole.

    >>> pad_to_multiple(torch.arange(3.0).view(1, 1, 1, 3), 2)
    tensor([[[[0., 1., 2., 2.],
              [0., 1., 2., 2.]]]])
    """
    below, right = ((side + multiple - 1) // multiple * multiple - side for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, below), mode="replicate")


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two blocks of 3x3 convolution, batch norm and ReLU: (B, inputs, H, W) to (B, outputs, H, W)."""
    return nn.Sequential(
        *conv_bn(inputs, outputs, 3), nn.ReLU(inplace=True), *conv_bn(outputs, outputs, 3), nn.ReLU(inplace=True)
    )


class AttentionGate(nn.Module):
    """Attention gate: weigh the skip's features by the decoder's (Oktay et al. 2018, arXiv:1804.03999).

    Two 1x1 convolutions, one of the skip's features and one of the decoder's, are added. ReLU, a 1x1 convolution and
    a sigmoid give a weight in 0..1 for each pixel.

    Args:
        skip: Channels of the skip's features.
        gate: Channels of the decoder's features.
        inner: Channels of the sum; half of the skip's if None.

    >>> gate = AttentionGate(8, 16)
    >>> gate(torch.ones(1, 8, 4, 6), torch.zeros(1, 16, 4, 6)).shape
    torch.Size([1, 8, 4, 6])
    """

    def __init__(self, skip: int, gate: int, inner: int | None = None) -> None:
        super().__init__()
        inner = max(skip // 2, 1) if inner is None else inner
        self.of_skip = nn.Sequential(*conv_bn(skip, inner, 1))
        self.of_gate = nn.Sequential(*conv_bn(gate, inner, 1))
        self.weight = nn.Sequential(nn.ReLU(inplace=True), *conv_bn(inner, 1, 1), nn.Sigmoid())

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Features (B, skip, H, W) and (B, gate, H, W) to (B, skip, H, W)."""
        weights: Tensor = self.weight(self.of_skip(skip) + self.of_gate(gate))
        return skip * weights


class UpBlock(nn.Module):
    """Double height and width, concatenate the skip's features, and convolve twice.

    Args:
        inputs: Channels in.
        skip: Channels of the skip connection, 0 if there is none.
        outputs: Channels out.
        attention: Whether an AttentionGate weighs the skip's features.
        transposed: Whether a transposed convolution doubles the size and halves the channels; otherwise upsampling is
            nearest-neighbor.
    """

    def __init__(self, inputs: int, skip: int, outputs: int, attention: bool, transposed: bool) -> None:
        super().__init__()
        upsampled = inputs // 2 if transposed else inputs
        self.up = nn.ConvTranspose2d(inputs, upsampled, 2, stride=2) if transposed else nn.Upsample(scale_factor=2)
        self.gate = AttentionGate(skip, upsampled) if attention and skip else None
        self.convolutions = double_conv(upsampled + skip, outputs)

    def forward(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) and (B, skip, 2H, 2W) to (B, outputs, 2H, 2W)."""
        features = self.up(features)
        if skip is not None:
            weighted = skip if self.gate is None else self.gate(skip, features)
            features = torch.cat([weighted, features], dim=1)
        result: Tensor = self.convolutions(features)
        return result


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597), with batch norm and padded convolutions.

    Each level has two 3x3 convolutions. Max pools halve the size, transposed convolutions double it, and skip
    connections join equal levels. 31,038,933 parameters for three channels and 21 classes. It takes any size: images
    are padded to a multiple of ``multiple`` by repeating the last row and column, and the result is cropped.

    Args:
        num_classes: The number of classes.
        channels: The images' channels.
        base: Channels of the first level; each further level has twice as many.
        depth: The number of times that the image is halved.
        attention: Whether attention gates weigh the skip connections.
        dropout: Dropout rate before the classifier, 0 up to (not including) 1.

    Raises:
        InputError: If an argument is out of range.

    >>> sum(p.numel() for p in UNet(num_classes=21).parameters())
    31038933
    >>> UNet(num_classes=2, base=4)(torch.zeros(2, 3, 17, 33)).shape
    torch.Size([2, 2, 17, 33])
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        base: int = 64,
        depth: int = 4,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, channels=channels, base=base, depth=depth)
        widths = [base * 2**level for level in range(depth + 1)]
        self.multiple = 2**depth
        self.encoder = nn.ModuleList(map(double_conv, [channels, *widths], widths))
        self.halve = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(
            UpBlock(2 * width, width, width, attention, transposed=True) for width in reversed(widths[:-1])
        )
        self.head = _build_head(base, num_classes, dropout)

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """One group for each encoder level, each decoder level, and the head."""
        down = [f"encoder.{level}" for level in range(len(self.encoder))]
        up = [f"decoder.{level}" for level in range(len(self.decoder))]
        return {name: (name,) for name in (*down, *up, "head")}

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, channels, H, W) to logits (B, num_classes, H, W)."""
        height, width = images.shape[-2:]
        features = pad_to_multiple(images, self.multiple)
        skips: list[Tensor] = []
        for level in self.encoder:
            features = level(self.halve(features) if skips else features)
            skips.append(features)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            features = block(features, skip)
        logits: Tensor = self.head(features)
        return logits[..., :height, :width]


class EncoderUNet(nn.Module):
    """A U-Net's decoder on the features of another network, which may be pretrained.

    Each step doubles the size (nearest neighbor) and convolves twice. Steps without a skip connection
    follow after the encoder's largest features, up to the image's size or to ``stride``.

    Args:
        encoder: Images (B, C, H, W) to a list of features, the largest first, each half as large as the previous one;
            their shape is (B, H, W, C) if its ``output_fmt`` is NHWC.
        widths: The features' channels.
        strides: The features' strides: the factors by which they are smaller than the image.
        num_classes: The number of classes.
        decoder: Channels at the image's size; each earlier step has twice as many, up to 256.
        stride: The stride of the decoder's last features; the logits are resized to the image's size bilinearly. With
            2, the step at the image's own size, which has no skip connection, is left out.
        attention: Whether attention gates weigh the skip connections.
        dropout: Dropout rate before the classifier, 0 up to (not including) 1.

    Raises:
        InputError: If an argument is out of range, or the features do not halve from one to the next.
    """

    def __init__(
        self,
        encoder: nn.Module,
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        decoder: int = 16,
        stride: int = 1,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, decoder=decoder)
        if any(after != 2 * before for before, after in pairwise(strides)) or len(strides) < 2:
            raise InputError(
                f"the encoder's features are {', '.join(map(str, strides))} times smaller than the image, expected "
                "each half as large as the one before: choose a network with stages, such as resnet18 or convnext_tiny"
            )
        # The channels of each step's skip connection by the step's stride, from the deepest on.
        skips = dict(zip(reversed(strides[:-1]), reversed(widths[:-1]), strict=True))
        steps = [strides[-1] // 2**step for step in range(1, strides[-1].bit_length())]
        if stride not in steps:
            raise InputError(f"stride is {stride}, expected one of {', '.join(map(str, reversed(steps)))}")
        steps = steps[: steps.index(stride) + 1]
        self.multiple = strides[-1]
        self.encoder = encoder
        # Some timm networks return (B, H, W, C).
        self._channels_last = str(getattr(encoder, "output_fmt", "")).endswith("NHWC")
        outputs = [min(decoder * step, 256) for step in steps]
        self.decoder = nn.ModuleList(
            UpBlock(inputs, skip, output, attention, transposed=False)
            for inputs, skip, output in zip(
                [widths[-1], *outputs[:-1]], (skips.get(step, 0) for step in steps), outputs, strict=True
            )
        )
        self.head = _build_head(outputs[-1], num_classes, dropout)
        self.enlarge = nn.Upsample(scale_factor=stride, mode="bilinear") if stride > 1 else nn.Identity()

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """One group for each part of the encoder, each decoder level, and the head."""
        down: list[str] = []
        for name, child in self.encoder.named_children():
            parts = [part for part, _ in child.named_children()] if name in ("blocks", "stages") else []
            down += [f"encoder.{name}.{part}" for part in parts] or [f"encoder.{name}"]
        up = [f"decoder.{level}" for level in range(len(self.decoder))]
        return {name: (name,) for name in (*down, *up, "head")}

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, C, H, W) to logits (B, num_classes, H, W)."""
        height, width = images.shape[-2:]
        stages = self.encoder(pad_to_multiple(images, self.multiple))
        if self._channels_last:
            stages = [features.permute(0, 3, 1, 2) for features in stages]
        *skips, features = stages
        for block in self.decoder:
            features = block(features, skips.pop() if skips else None)
        logits: Tensor = self.enlarge(self.head(features))
        return logits[..., :height, :width]


def _build_head(inputs: int, num_classes: int, dropout: float) -> nn.Module:
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}, expected 0 up to (not including) 1")
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(inputs, num_classes, kernel_size=1))
