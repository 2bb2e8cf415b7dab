"""PartsLoss: losses that say what they count, so that sums over several batches and processes are divided once."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


class PartsLoss(nn.Module, ABC):
    """A loss that is a sum of parts, each the mean over what it counts: images, pixels, or known values.

    The counts depend on the targets only. So the loss of several batches together is exactly the sum over its parts of
    (sum of mean times count) / (sum of counts).
    """

    num_parts: int = 1
    """P, the number of parts."""

    @abstractmethod
    def parts(self, outputs: Any, targets: Any) -> Tensor:
        """The parts (P,) of a batch's loss; a part that counts nothing is 0."""

    @abstractmethod
    def counts(self, targets: Any) -> Tensor:
        """What each part is the mean over, (P,), 0 or more."""

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        """Raw outputs and targets of a batch to a scalar."""
        return total(self.parts(outputs, targets))


def total(parts: Tensor) -> Tensor:
    """The sum of parts (P,), added in their order."""
    return reduce(operator.add, parts.unbind())


def images_of(targets: Tensor) -> Tensor:
    """The number of targets, as a scalar on their device."""
    return torch.tensor(float(len(targets)), device=targets.device)


def scale_of_known(known: Tensor) -> Tensor:
    """The factor between a mean over all of a mask and over what is True in it, a float scalar; 0 if nothing is."""
    count = known.sum()
    return known.numel() / count.clamp(min=1) * (count > 0)


def at_least_float(outputs: Tensor) -> Tensor:
    """Outputs in half precision as float32; others as they are."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
