"""Modules that decode a network's raw outputs to answers; evaluation uses them, and exported files include them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

Answers = dict[str, Tensor]
"""Named arrays of a batch, B first; outputs.Output.arrays has their names."""


class Difficulty(NamedTuple):
    """How difficult each image of a batch is."""

    error: Tensor
    """(B,) the error of each answer, higher is worse; NaN if the target is unknown."""
    uncertainty: Tensor | None
    """(B,) the uncertainty of each answer; None if the network does not estimate it."""


class Decoder(nn.Module, ABC):
    """Raw outputs to named arrays."""

    @abstractmethod
    def forward(self, outputs: Any) -> Answers:
        """Decode a batch."""

    def difficulty(self, answers: Answers, targets: Any) -> Difficulty | None:
        """How difficult each image is, for showing the hardest ones; None if it is not defined.

        Args:
            answers: The result of forward().
            targets: The targets of the batch.
        """
        return None

    def compact(self, answers: Answers) -> Answers:
        """The part of the answers that images and descriptions need, if it is much smaller."""
        return answers

    def undo(self, answers: Answers) -> Any:
        """Raw outputs that forward() decodes to these answers, for the loss of exported files; None if undefined."""
        return None

    def scores(self, outputs: Any) -> Tensor:
        """The scores that explanations explain: (B, N), or (B, N, H, W), one for each of the output's names."""
        scores: Tensor = outputs
        return scores


class LabelDecoder(Decoder):
    """Logits (B, K) to ``probabilities`` (B, K), float32.

    Args:
        multi_label: Whether each class has its own probability; otherwise those of an image sum to 1.
    """

    def __init__(self, multi_label: bool = False) -> None:
        super().__init__()
        self.multi_label = multi_label

    def forward(self, outputs: Tensor) -> Answers:
        """Decode a batch."""
        logits = outputs.float()
        return {"probabilities": logits.sigmoid() if self.multi_label else logits.softmax(dim=1)}

    def undo(self, answers: Answers) -> Tensor:
        """Logits with these probabilities."""
        logits = _log(answers["probabilities"])
        return logits - _log(1 - answers["probabilities"]) if self.multi_label else logits

    def difficulty(self, answers: Answers, targets: Tensor) -> Difficulty:
        """Cross-entropy, and uncertainty of the predicted class; with several labels, means over the classes."""
        probabilities = answers["probabilities"]
        if self.multi_label:
            uncertainty = 1 - (2 * probabilities - 1).abs().mean(dim=1)
            if targets.ndim == 1:
                return Difficulty(torch.full_like(uncertainty, torch.nan), uncertainty)
            errors = binary_cross_entropy(probabilities, targets.float(), reduction="none")
            return Difficulty(errors.mean(dim=1), uncertainty)
        of_truth = probabilities.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        errors = torch.where(targets >= 0, -of_truth.log(), torch.nan)
        return Difficulty(errors, 1 - probabilities.max(dim=1).values)


class MaskDecoder(Decoder):
    """Logits (B, K, H, W) to ``probabilities`` (B, K, H, W), float32, which sum to 1 for each pixel.

    Args:
        ignore_index: The target of ignored pixels.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, outputs: Tensor) -> Answers:
        """Decode a batch."""
        return {"probabilities": outputs.float().softmax(dim=1)}

    def undo(self, answers: Answers) -> Tensor:
        """Logits with these probabilities."""
        return _log(answers["probabilities"])

    def difficulty(self, answers: Answers, targets: Tensor) -> Difficulty:
        """The share of wrong pixels among those that are not ignored, and their mean uncertainty."""
        counted = targets != self.ignore_index
        probability, classes = answers["probabilities"].max(dim=1)
        count = counted.sum(dim=(1, 2))
        wrong = ((classes != targets) & counted).sum(dim=(1, 2)) / count  # NaN if all pixels are ignored.
        everywhere = counted | (count == 0)[:, None, None]
        uncertainty = ((1 - probability) * everywhere).sum(dim=(1, 2)) / everywhere.sum(dim=(1, 2))
        return Difficulty(wrong, uncertainty)

    def compact(self, answers: Answers) -> Answers:
        """Only the classes (B, H, W)."""
        return {"classes": answers["probabilities"].argmax(dim=1)}


class ValueDecoder(Decoder):
    """Standardized values (B, V) to ``values`` (B, V), float32, in their own units.

    Args:
        mean: Each value's mean in training.
        std: Each value's standard deviation in training, above 0.
        spread: Whether outputs (B, 2V) also have the logarithm of each standardized variance. The answers then have
            ``spreads`` (B, V), the standard deviation of each value.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], spread: bool = False) -> None:
        super().__init__()
        self.spread = spread
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Answers:
        """Decode a batch."""
        outputs, count = outputs.float(), len(self.mean)
        answers = {"values": outputs[:, :count] * self.std + self.mean}
        return answers | ({"spreads": (outputs[:, count:] / 2).exp() * self.std} if self.spread else {})

    def undo(self, answers: Answers) -> Tensor:
        """Standardized values, and the logarithms of their variances."""
        values = (answers["values"] - self.mean) / self.std
        return torch.cat([values, 2 * _log(answers["spreads"] / self.std)], dim=1) if self.spread else values

    def difficulty(self, answers: Answers, targets: Tensor) -> Difficulty:
        """The mean absolute error and the mean spread, each in the value's standard deviations."""
        errors = (answers["values"] - targets).abs() / self.std
        spreads = answers.get("spreads")
        return Difficulty(errors.nanmean(dim=1), None if spreads is None else (spreads / self.std).mean(dim=1))


class OrdinalDecoder(Decoder):
    """Logits (B, L - 1), of the level being above each one but the highest, to ``values`` and ``spreads`` (B, 1).

    The predicted level is the number of levels that are exceeded with a probability of at least 0.5 (Frank and Hall
    2001); its spread is the standard deviation of the levels' distribution.

    Args:
        lowest: The number of the lowest level.
        levels: L.
    """

    def __init__(self, lowest: int, levels: int) -> None:
        super().__init__()
        self.lowest = lowest
        self.levels = levels

    def forward(self, outputs: Tensor) -> Answers:
        """Decode a batch."""
        above = outputs.float().sigmoid()
        mean = above.sum(dim=1, keepdim=True)
        steps = torch.arange(1, self.levels, device=above.device, dtype=above.dtype)
        variance = (above * (2 * steps - 1)).sum(dim=1, keepdim=True) - mean**2
        chosen = (above >= 0.5).sum(dim=1, keepdim=True)
        return {"values": self.lowest + chosen.float(), "spreads": variance.clamp(min=0).sqrt()}

    def difficulty(self, answers: Answers, targets: Tensor) -> Difficulty:
        """The error in levels, and the spread."""
        return Difficulty((answers["values"] - targets).abs()[:, 0], answers["spreads"][:, 0])

    def scores(self, outputs: Tensor) -> Tensor:
        """The sum of the logits, (B, 1), which is greater for higher levels."""
        return outputs.sum(dim=1, keepdim=True)


def _log(values: Tensor) -> Tensor:
    """Logarithms; zeros are replaced by a very small number."""
    return values.clamp(min=torch.finfo(values.dtype).tiny).log()
