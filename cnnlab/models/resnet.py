"""SmallResNet: a residual network for data sets that are too small or too simple for ResNet-18."""

from __future__ import annotations

from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models.blocks import BasicBlock, check_positive, conv_bn


class SmallResNet(nn.Module):
    """7x7 stem and three stages of two residual blocks each, of 64, 128 and 256 channels (He et al. 2016).

    ResNet-18 without its last stage. The stem halves the image twice, and each of the last two stages halves it once.
    Features have 1/16 of the image's height and width, rounded up, so any size works. 2,785,354 parameters for three
    channels and 10 classes. From input to output: ``stem``, the three ``stages``, ``head``.

    Args:
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0 up to (not including) 1.

    Raises:
        InputError: If num_classes or channels is below 1, or the dropout rate outside its range.

    >>> import torch
    >>> network = SmallResNet(num_classes=10)
    >>> sum(p.numel() for p in network.parameters())
    2785354
    >>> network(torch.zeros(2, 3, 64, 48)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, channels=channels)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}, expected 0 up to (not including) 1")
        self.stem = nn.Sequential(
            *conv_bn(channels, 64, kernel=7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.Sequential(_stage(64, 64, stride=1), _stage(64, 128, stride=2), _stage(128, 256, stride=2))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, num_classes)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, channels, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs))
