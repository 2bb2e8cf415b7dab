"""Losses for labels: cross-entropy of one class, or of each of several, without the unknown ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.losses.parts import PartsLoss, images_of, scale_of_known


class ClassLoss(PartsLoss):
    """Cross-entropy of one class for each image, the mean over the images whose class is known.

    Args:
        label_smoothing: The share of each target that is spread over all classes, 0..1.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and classes (B,), -1 if unknown, or soft targets (B, K) of images that are all known."""
        if targets.ndim > 1:
            return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)[None]
        any_known = (targets >= 0).any()
        # A mean over no image would be NaN.
        classes = torch.where(any_known, targets, 0)
        return (F.cross_entropy(outputs, classes, ignore_index=-1, label_smoothing=self.label_smoothing) * any_known)[
            None
        ]

    def counts(self, targets: Tensor) -> Tensor:
        """See PartsLoss."""
        return images_of(targets)[None] if targets.ndim > 1 else (targets >= 0).sum()[None].float()


class LabelsLoss(PartsLoss):
    """Binary cross-entropy of each class, the mean over all images and classes that are known.

    >>> LabelsLoss()(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]])).item()
    0.6931471824645996
    """

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and targets (B, K), NaN where unknown."""
        known = ~targets.isnan()
        weight = known.to(outputs.dtype)
        mean = F.binary_cross_entropy_with_logits(outputs, targets.masked_fill(~known, 0.0), weight)
        return (mean * scale_of_known(known))[None]

    def counts(self, targets: Tensor) -> Tensor:
        """See PartsLoss."""
        return (~targets.isnan()).sum()[None].float()
