"""Losses for values: standardized values, with or without a spread, and ordered levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.errors import InputError, nearest
from cnnlab.losses.parts import PartsLoss, at_least_float, scale_of_known

_LARGEST_LOG_VARIANCE = 15.0
"""The limit, to both sides, for standardized values: beyond it a variance is meaningless, its inverse out of range."""


def _gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    mean, log_variance = outputs.chunk(2, dim=1)
    variance = log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE).exp()
    return F.gaussian_nll_loss(mean, targets, variance)


VALUE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "gaussian_nll": _gaussian_nll,
}
"""Losses of standardized values by name; gaussian_nll (Nix and Weigend 1994) also learns a spread for each value."""


class ValueLoss(PartsLoss):
    """A loss of values, standardized by the training's mean and standard deviation; the mean over the known values.

    Args:
        name: A name in VALUE_LOSSES.
        mean: Each value's mean in training.
        std: Each value's standard deviation in training, above 0.

    Raises:
        InputError: If there is no such loss.

    >>> ValueLoss("l1", [10.0], [2.0])(torch.tensor([[1.0]]), torch.tensor([[16.0]])).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if name not in VALUE_LOSSES:
            raise InputError(f"there is no loss {name!r} of values: {nearest(name, VALUE_LOSSES)}")
        self.name = name
        # Not persistent: the checkpoint has them in the hyperparameters.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (B, V), or (B, 2V) with gaussian_nll, and values (B, V) in their own units, NaN where unknown."""
        known = ~targets.isnan()
        # All losses, and their gradients, are 0 where outputs and target are 0.
        standardized = ((targets - self.mean) / self.std).masked_fill(~known, 0.0)
        counted = at_least_float(outputs).masked_fill(~known.repeat(1, outputs.shape[1] // targets.shape[1]), 0.0)
        return (VALUE_LOSSES[self.name](counted, standardized) * scale_of_known(known))[None]

    def counts(self, targets: Tensor) -> Tensor:
        """See PartsLoss."""
        return (~targets.isnan()).sum()[None].float()


class OrdinalLoss(PartsLoss):
    """Binary cross-entropy of a level being above each one but the highest (Frank and Hall 2001), summed over them.

    The mean over the images whose level is known.

    Args:
        lowest: The number of the lowest level.
        levels: The number of levels, 2 or more.
    """

    def __init__(self, lowest: int, levels: int) -> None:
        super().__init__()
        self.lowest = lowest
        self.levels = levels

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, levels - 1) and levels (B, 1), NaN where unknown."""
        steps = torch.arange(1, self.levels, device=targets.device)
        above = (targets - self.lowest >= steps).float()
        each = F.binary_cross_entropy_with_logits(at_least_float(outputs), above, reduction="none").sum(dim=1)
        known = ~targets[:, 0].isnan()
        return (each.masked_fill(~known, 0.0).mean() * scale_of_known(known))[None]

    def counts(self, targets: Tensor) -> Tensor:
        """See PartsLoss."""
        return (~targets[:, 0].isnan()).sum()[None].float()
