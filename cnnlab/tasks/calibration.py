"""Calibration of probabilities: the reliability diagram, and the expected calibration error."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from cnnlab.loggers import Row

_UNIT = 2**24
"""Probabilities are summed as integer multiples of 1/_UNIT, so batches and processes do not change the result."""


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
        self.confidences.scatter_add_(0, place, (confidence * _UNIT).round().long())

    def compute(self) -> dict[str, Tensor]:
        """calibration_error, a scalar in 0..1; reliability (bins, 3): count, mean probability, share of hits."""
        counts, hits = self.counts.cpu().double(), self.hits.cpu().double()
        confidence = self.confidences.cpu().double() / _UNIT
        some = counts.clamp(min=1)
        error = (confidence - hits).abs().sum() / counts.sum()
        return {
            "calibration_error": error,
            "reliability": torch.stack([counts, confidence / some, hits / some], dim=1),
        }


def reliability_rows(bins: list[list[float]]) -> list[Row]:
    """Calibration's reliability as a table: a row for each bin of probabilities."""
    return [
        {
            "from": f"{place / len(bins):.4g}",
            "to": f"{(place + 1) / len(bins):.4g}",
            "images": int(count),
            "probability": f"{probability:.6g}" if count else "",
            "accuracy": f"{accuracy:.6g}" if count else "",
        }
        for place, (count, probability, accuracy) in enumerate(bins)
    ]
