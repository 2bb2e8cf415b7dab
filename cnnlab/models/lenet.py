"""LeNet5, the first widely used convolutional network."""

from __future__ import annotations

from torch import Tensor, nn

from cnnlab.models.blocks import check_positive


class LeNet5(nn.Module):
    """Three 5x5 convolutions of 6, 16 and 120 channels with poolings between them, and two linear layers.

    LeNet-5 (LeCun et al. 1998, fig. 2) as it is taught today: average pooling without weights, full connections between
    the first feature maps, a linear classifier. It takes 28x28 images, padded to the paper's 32x32; for larger images,
    the last feature maps are averaged. 61,706 parameters for one channel and 10 classes.

    Args:
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0..1; the paper has no dropout.

    Raises:
        InputError: If num_classes or channels is below 1.

    >>> import torch
    >>> network = LeNet5()
    >>> sum(p.numel() for p in network.parameters())
    61706
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, channels=channels)
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 6, kernel_size=5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, kernel_size=5), nn.Tanh(), nn.AvgPool2d(2)),
            nn.Sequential(nn.Conv2d(16, 120, kernel_size=5), nn.Tanh()),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, channels, H, W), 28x28 or larger, to logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
