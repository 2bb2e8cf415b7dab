"""Scores of predicted values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ValueScores(Metric):
    """Mean absolute error, root mean squared error, R2 and Spearman's rank correlation of values.

    With one value, the errors are in its own unit. With several, the scores are means over the values, and the errors
    are in standard deviations of the training. All pairs are kept and sorted by the images' order, so that batches and
    processes do not change a digit.

    Args:
        std: Each value's standard deviation in training, V of them.
        levels: The number of ordered levels, if the values are levels: accuracy and quadratic-weighted kappa (Cohen
            1968) are then measured too.

    >>> scores = ValueScores([1.0])
    >>> scores.update(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]), torch.arange(3))
    >>> {name: round(value.item(), 3) for name, value in scores.compute().items() if not value.ndim}
    {'mae': 0.333, 'rmse': 0.577, 'r2': 0.5, 'spearman': 1.0}
    """

    full_state_update = False
    predicted: list[Tensor]
    true: list[Tensor]
    places: list[Tensor]

    def __init__(self, std: Sequence[float], levels: int | None = None) -> None:
        super().__init__()
        self.std = list(std)
        self.levels = levels
        for name in ("predicted", "true", "places"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, true: Tensor, places: Tensor) -> None:
        """Update with predicted values (B, V), true values (B, V), and the images' indices (B,)."""
        self.predicted.append(predicted.detach())
        self.true.append(true)
        self.places.append(places)

    def compute(self) -> dict[str, Tensor]:
        """The scores, float64 scalars; by_value (V, 4): those of each value; pairs (N, 2V): true and predicted."""
        order = dim_zero_cat(self.places).cpu().argsort(stable=True)
        predicted, true = (dim_zero_cat(one).cpu().double()[order] for one in (self.predicted, self.true))
        errors = predicted - true
        spread = (true - true.mean(dim=0)).square().sum(dim=0)
        mae, rmse = errors.abs().mean(dim=0), errors.square().mean(dim=0).sqrt()
        r2 = torch.where(spread > 0, 1 - errors.square().sum(dim=0) / spread, torch.nan)
        spearman = torch.stack([rank_correlation(*pair) for pair in zip(predicted.T, true.T, strict=True)])
        unit = torch.tensor(self.std if len(self.std) > 1 else [1.0], dtype=torch.float64)
        scores = {"mae": mae / unit, "rmse": rmse / unit, "r2": r2, "spearman": spearman}
        found = {name: value.mean() for name, value in scores.items()}
        if self.levels is not None:
            found |= {"accuracy": (errors == 0).double().mean(), "kappa": quadratic_kappa(predicted, true)}
        by_value = torch.stack([mae, rmse, r2, spearman], dim=1)
        return found | {"by_value": by_value, "pairs": torch.cat([true, predicted], dim=1)}


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two columns (N,): equal values share their mean rank; NaN if one is constant.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 2.0, 1.0])).item()
    -1.0
    """
    ranks = [_mean_ranks(column) for column in (first, second)]
    centered = [rank - rank.mean() for rank in ranks]
    length = (centered[0].square().sum() * centered[1].square().sum()).sqrt()
    return torch.where(length > 0, (centered[0] * centered[1]).sum() / length, torch.nan)


def _mean_ranks(values: Tensor) -> Tensor:
    _, groups, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(dim=0).double() - (counts - 1) / 2
    return ranks[groups]


def quadratic_kappa(predicted: Tensor, true: Tensor) -> Tensor:
    """Cohen's kappa of levels (N, 1) with quadratic weights: 1 - mean squared distance / that expected by chance.

    >>> quadratic_kappa(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [2.0]])).item()
    1.0
    """
    predicted, true = predicted.double(), true.double()
    by_chance = predicted.square().mean() + true.square().mean() - 2 * predicted.mean() * true.mean()
    observed = (predicted - true).square().mean()
    return torch.where(by_chance > 0, 1 - observed / by_chance, torch.nan)
