"""The tasks' metrics; those of validation and test do not depend on batches and processes by a digit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

_LOSS_UNIT = 2**22
_LARGEST_LOSS = 2.0**18
_PROBABILITY_UNIT = 2**24
"""Losses and probabilities are summed as integer multiples of 1 / these."""


class MeanLoss(Metric):
    """The mean loss of all batches: the sum over its parts of (sum of mean times count) / (sum of counts).

    Means are summed as integer multiples of 2^-22, and counts as integers, so that the result does not depend on the
    order or on the processes. The mean is NaN if a batch's is NaN or its absolute value is above 2^18, so that the sum
    of 8 million samples does not overflow. (torchmetrics' MeanMetric leaves the weights out if NaN checks are
    disabled.)

    Args:
        parts: P, the number of parts: see losses.PartsLoss.

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

    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        # Runs of older versions, with one part, have scalars in their checkpoints.
        zeros = torch.zeros(() if parts == 1 else (parts,), dtype=torch.int64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("samples", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("unusable", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, means: Tensor, counts: Tensor | int) -> None:
        """Update with the means of a batch, (P,) or a scalar, and with what each is the mean over, (P,) or a number.

        The mean of a part that counts nothing is ignored.
        """
        weights = torch.as_tensor(counts, device=means.device).round().long()
        means, weights = (value.reshape(self.total.shape) for value in (means, weights.expand(means.shape)))
        usable = (means.abs() <= _LARGEST_LOSS) | (weights == 0)
        self.total += (torch.where(usable, means, 0).float() * _LOSS_UNIT).round().long() * weights
        self.samples += weights
        self.unusable += (~usable).long().sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN before the first sample."""
        total, samples = self.total.cpu().double().reshape(-1), self.samples.cpu().reshape(-1)
        means = torch.where(samples > 0, total / _LOSS_UNIT / samples.clamp(min=1), 0.0)
        nothing = (self.unusable.cpu() > 0) | (samples.sum() == 0)
        return torch.where(nothing, torch.nan, means.sum())


class ExactAccuracy(MulticlassAccuracy):
    """The share of samples whose class is among the k most probable, as a float64 quotient of two counts.

    A float32 would round it, and it would differ in the last digit from the accuracy in a table of predictions. If a
    sample's target is a mixture (Mixup, CutMix), the weight of the classes that are hit counts.
    """

    mixed_hits: Tensor
    mixed_count: Tensor

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes=num_classes, top_k=top_k, average="micro", validate_args=False)
        self.add_state("mixed_hits", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("mixed_count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Update with scores (B, num_classes), and known classes (B,) or weights of classes (B, num_classes)."""
        if target.ndim == 1:
            super().update(preds, target)
            return
        chosen = preds.topk(self.top_k, dim=1).indices
        self.mixed_hits += target.gather(1, chosen).sum()
        self.mixed_count += len(target)

    def compute(self) -> Tensor:
        """A scalar in 0..1."""
        # With k above 1 there is a count for each class.
        hits, misses = (torch.as_tensor(count).sum().cpu() for count in (self.tp, self.fn))
        mixed = self.mixed_hits.cpu().double()
        return (hits.double() + mixed) / (hits + misses + self.mixed_count.cpu())


class LabelF1(MultilabelF1Score):
    """Macro F1 of several labels: a label that is neither in the targets nor in the predictions is left out.

    torchmetrics' counts it as 0 (torchmetrics#1494).
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none", ignore_index=-1, validate_args=False)

    def compute(self) -> Tensor:
        """A scalar in 0..1; NaN without any such label."""
        hits, false, missed = (torch.as_tensor(count).cpu().double() for count in (self.tp, self.fp, self.fn))
        return (2 * hits / (2 * hits + false + missed)).nanmean()


class LabelAveragePrecision(MultilabelAveragePrecision):
    """The mean average precision of several labels; a label that is in no target has none, and is left out."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none", ignore_index=-1, validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        """A scalar in 0..1; NaN if no label is in a target."""
        present = (dim_zero_cat(self.target) == 1).any(dim=0)
        with warnings.catch_warnings(action="ignore"):  # Of labels without a target.
            scores = super().compute()
        return torch.where(present, scores, torch.nan).double().nanmean()


class Calibration(Metric):
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3), and the bins behind it.

    Memory does not grow with the number of samples.

    Args:
        bins: The number of bins of equal width for the predicted class's probability; each includes its upper edge.

    >>> calibration = Calibration(bins=2)
    >>> calibration.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.tensor([0, 0]))
    >>> {name: value.tolist() for name, value in calibration.compute().items()}
    {'calibration_error': 0.25, 'reliability': [[0.0, 0.0, 0.0], [2.0, 0.75, 0.5]]}
    """

    full_state_update = False
    counts: Tensor
    hits: Tensor
    confidences: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for name in ("counts", "hits", "confidences"):
            self.add_state(name, torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Update with probabilities (B, K) and classes (B,)."""
        confidence, predicted = probabilities.float().max(dim=1)
        # NaN counts as a wrong prediction with probability 0.
        predicted = torch.where(confidence.isfinite(), predicted, -1)
        confidence = confidence.nan_to_num(0.0)
        place = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        self.counts.scatter_add_(0, place, torch.ones_like(place))
        self.hits.scatter_add_(0, place, (predicted == target).long())
        self.confidences.scatter_add_(0, place, (confidence * _PROBABILITY_UNIT).round().long())

    def compute(self) -> dict[str, Tensor]:
        """calibration_error, a scalar in 0..1; reliability (bins, 3): count, mean probability, share of hits."""
        counts, hits = self.counts.cpu().double(), self.hits.cpu().double()
        confidence = self.confidences.cpu().double() / _PROBABILITY_UNIT
        some = counts.clamp(min=1)
        error = (confidence - hits).abs().sum() / counts.sum()
        return {
            "calibration_error": error,
            "reliability": torch.stack([counts, confidence / some, hits / some], dim=1),
        }


class SegmentationScores(Metric):
    """IoU and Dice of each class, their means, and the accuracy of pixels, over all images at once.

    They are computed from one integer confusion matrix, so that batches and processes change no digit. A class that is
    neither in the targets nor in the predictions has no score (NaN), and the means leave it out.

    Args:
        num_classes: K.
        ignore_index: The target of ignored pixels.

    >>> scores = SegmentationScores(2, ignore_index=255)
    >>> scores.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
    >>> {name: value.tolist() for name, value in scores.compute().items() if name != "confusion_matrix"}
    {'mean_iou': 0.5, 'iou': [0.5, 0.5], 'dice': 0.6666666666666666, 'pixel_accuracy': 0.6666666666666666}
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Update with predicted classes (B, H, W) and true classes (B, H, W)."""
        # Ignored pixels get an extra row, which is left out later: selecting the other pixels would synchronize with
        # the device, and so would bincount.
        row = torch.where(target == self.ignore_index, self.num_classes, target)
        pairs = row.flatten() * self.num_classes + predicted.flatten()
        counted = self.counts.new_zeros(self.num_classes * (self.num_classes + 1))
        counted.scatter_add_(0, pairs, torch.ones_like(pairs))
        self.counts += counted.view(self.num_classes + 1, self.num_classes)[:-1]

    def compute(self) -> dict[str, Tensor]:
        """mean_iou, dice, pixel_accuracy as scalars, iou (K,), confusion_matrix (K, K), rows are the true classes."""
        counts = self.counts.cpu()
        hits = counts.diagonal().double()
        both = counts.sum(dim=0).double() + counts.sum(dim=1).double()
        iou, dice = hits / (both - hits), 2 * hits / both
        return {
            "mean_iou": iou.nanmean(),
            "iou": iou,
            "dice": dice.nanmean(),
            "pixel_accuracy": hits.sum() / counts.sum().double(),
            "confusion_matrix": counts,
        }


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
        """The scores, float64 scalars, of the known values.

        by_value (V, 5): those of each value, and the number of images; pairs (N, 2V): true and predicted.
        """
        order = dim_zero_cat(self.places).cpu().argsort(stable=True)
        predicted, true = (dim_zero_cat(one).cpu().double()[order] for one in (self.predicted, self.true))
        by_value = torch.stack([self._of_value(*pair) for pair in zip(predicted.T, true.T, strict=True)])
        unit = torch.tensor(self.std if len(self.std) > 1 else [1.0], dtype=torch.float64)
        mae, rmse, r2, spearman, _ = by_value.T
        scores = {"mae": mae / unit, "rmse": rmse / unit, "r2": r2, "spearman": spearman}
        found = {name: value[~mae.isnan()].mean() for name, value in scores.items()}
        if self.levels is not None:
            known = ~true.isnan().any(dim=1)
            hits = (predicted[known] == true[known]).double().mean()
            found |= {"accuracy": hits, "kappa": quadratic_kappa(predicted[known], true[known])}
        return found | {"by_value": by_value, "pairs": torch.cat([true, predicted], dim=1)}

    @staticmethod
    def _of_value(predicted: Tensor, true: Tensor) -> Tensor:
        """The scores of one value: MAE, RMSE, R2, Spearman's correlation, and the number of images that have it."""
        known = ~true.isnan()
        predicted, true = predicted[known], true[known]
        errors = predicted - true
        spread = (true - true.mean()).square().sum()
        r2 = torch.where(spread > 0, 1 - errors.square().sum() / spread, torch.nan)
        scores = [errors.abs().mean(), errors.square().mean().sqrt(), r2, rank_correlation(predicted, true)]
        return torch.stack([*scores, known.sum().double()])


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
