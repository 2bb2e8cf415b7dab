"""A backbone with a new head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

HEADS = ("linear", "mlp")
_HIDDEN = 512


class TransferModel(nn.Module):
    """A backbone that returns features, with a new head.

    With the head "mlp" (dropout 0.5, 512 units, ReLU, dropout 0.3) a ResNet-50 has 24,559,685 parameters for 5
    classes, of which the head has 1,051,653.

    Args:
        backbone: Standardized images (B, C, H, W) to features (B, features).
        features: The number of the backbone's features.
        num_classes: The number of classes.
        head: linear (dropout 0, one layer) or mlp.
        dropout: Dropout rate at the start of the head, 0..1; the head's default if None.

    >>> head = TransferModel(nn.Identity(), features=2048, num_classes=5).head
    >>> sum(parameter.numel() for parameter in head.parameters())
    1051653
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        num_classes: int,
        head: Literal["linear", "mlp"] = "mlp",
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if head == "mlp":
            self.head = nn.Sequential(
                nn.Dropout(0.5 if dropout is None else dropout),
                nn.Linear(features, _HIDDEN),
                nn.ReLU(inplace=True),
                nn.Dropout(0.3),
                nn.Linear(_HIDDEN, num_classes),
            )
        else:
            self.head = nn.Sequential(nn.Dropout(dropout or 0.0), nn.Linear(features, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits
