"""NetworkLoss: the loss that a network measures itself, because it needs more than raw outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cnnlab.losses.parts import PartsLoss
from cnnlab.objects import Objects


class NetworkLoss(PartsLoss):
    """The mean over the images of the raw output ``losses`` (B,).

    It is for networks whose class says ``computes_loss = True``: their forward() takes the objects as its second
    argument, and then returns the loss of each image too. Images whose objects are unknown do not count.
    """

    def counts(self, targets: Objects) -> Tensor:
        """The number of images whose objects are known."""
        return (targets.counts >= 0).sum().float().reshape(1)

    def parts(self, outputs: Mapping[str, Tensor], targets: Objects) -> Tensor:
        """One part.

        Args:
            outputs: Raw outputs, with losses (B,).
            targets: The objects of B images.
        """
        losses = torch.where(targets.counts >= 0, outputs["losses"].float(), 0.0)
        return losses.sum() / self.counts(targets).clamp(min=1.0)
