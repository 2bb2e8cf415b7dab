"""The mean of the batches' losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

_UNIT = 2**22
_MOST = 2.0**18


class MeanLoss(Metric):
    """The mean of batches' losses, each weighted with its number of samples.

    Losses are summed up as whole numbers of 2^-22, so that the sum does not depend on their order or on the processes
    that have met them. The mean is not a number where one of them is not, or is beyond 2^18: so the sum of 8 million
    samples has room. (torchmetrics' MeanMetric leaves the weights out where it is told not to look for such values.)

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
        """Take in the mean loss of so many samples."""
        usable = loss.abs() <= _MOST
        self.total += (torch.where(usable, loss, 0).float() * _UNIT).round().long() * samples
        self.samples += samples
        self.unusable += (~usable).long()

    def compute(self) -> Tensor:
        """The mean, a scalar; not a number before the first sample."""
        mean = self.total.cpu().double() / _UNIT / self.samples.cpu()
        return torch.where(self.unusable.cpu() > 0, torch.nan, mean)
