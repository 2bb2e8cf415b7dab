"""The mean of the batches' losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

_UNIT = 2**22
_MOST = 2.0**18


class MeanLoss(Metric):
    """The mean of batches' losses, each weighted with its number of samples.

    Losses are summed as integer multiples of 2^-22, so that the sum does not depend on their order or on the
    processes. The mean is NaN if a loss is NaN or its absolute value is above 2^18, so that the sum of 8 million
    samples does not overflow. (torchmetrics' MeanMetric leaves the weights out if NaN checks are disabled.)

    >>> mean = MeanLoss()
    >>> mean.update(torch.tensor(1.0), 3)
    >>> mean.update(torch.tensor(2.0), 1)
    >>> mean.compute().item()
    1.25
    """

    full_state_update = False
    total: Tensor
    samples: Tensor
    unusable: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples", "unusable"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Update with the mean loss of a number of samples."""
        usable = loss.abs() <= _MOST
        self.total += (torch.where(usable, loss, 0).float() * _UNIT).round().long() * samples
        self.samples += samples
        self.unusable += (~usable).long()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN before the first sample."""
        mean = self.total.cpu().double() / _UNIT / self.samples.cpu()
        return torch.where(self.unusable.cpu() > 0, torch.nan, mean)
