"""SimpleCNN: a small network for small gray images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution (padding 1), batch norm, ReLU: (B, inputs, H, W) to (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class SimpleCNN(nn.Module):
    """Three conv-BN-ReLU blocks of 32, 64 and 128 channels with two 2x2 max pools between them, then a head.

    The head is a global average pool, 256 units with dropout and the classifier. It is meant for 28x28 images and
    takes any size from 4x4. 128,714 parameters for one channel and 10 classes.

    Args:
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0..1.
        widths: The channels of the blocks, from the first to the last.
        hidden: The units of the head.

    >>> import torch
    >>> network = SimpleCNN(num_classes=10)
    >>> sum(p.numel() for p in network.parameters())
    128714
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 1,
        dropout: float = 0.5,
        widths: Sequence[int] = (32, 64, 128),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(f"simple_cnn has three blocks, and widths are {list(widths)}: give three numbers")
        first, second, third = widths
        check_positive(num_classes=num_classes, channels=channels, widths=min(widths), hidden=hidden)
        self.features = nn.Sequential(
            _block(channels, first), nn.MaxPool2d(2), _block(first, second), nn.MaxPool2d(2), _block(second, third)
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(third, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, channels, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
