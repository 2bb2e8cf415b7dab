"""Regression: one or more values for each image, or one of several ordered levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.loggers import Row
from cnnlab.losses import OrdinalLoss, ValueLoss
from cnnlab.losses.parts import scale_of_known
from cnnlab.models.decoding import Answers, Decoder, OrdinalDecoder, ValueDecoder
from cnnlab.outputs import Values
from cnnlab.outputs.table import distinct
from cnnlab.tasks.base import VisionTask
from cnnlab.tasks.metrics import MeanLoss, ValueScores
from cnnlab.tasks.steps import Stage

_SCORES = ("mae", "rmse", "r2", "spearman")


class Regression(VisionTask):
    """Train a network to predict one or more values of an image, in the units of the table.

    Targets are standardized internally by the training's mean and standard deviation; answers are in the original
    units. Metrics: mean absolute error, and in validation and test also RMSE, R2 and Spearman's rank correlation (see
    ValueScores); for ordered levels also accuracy and quadratic-weighted kappa.

    Args:
        network: See VisionTask.
        value_names: The names of the values; taken from the data.
        value_mean: Each value's mean in training; taken from the data.
        value_std: Each value's standard deviation in training; taken from the data.
        value_levels: Each value's distinct levels in training, if they are integers; taken from the data.
        loss: A name in losses.VALUE_LOSSES: mse, l1, smooth_l1 (of standardized values), or gaussian_nll, with which
            the network also predicts the uncertainty of each value.
        ordinal: Whether the value is one of several ordered levels, such as a grade from 0 to 4. The network predicts
            for each level the probability of a higher one (Frank and Hall 2001), and its answer is a level.
        **kwargs: See VisionTask.

    Raises:
        InputError: If a name is unknown or an argument is out of range.
    """

    monitor: str = "val/mae"
    mode: ClassVar[Literal["min", "max"]] = "min"
    lower_is_better: ClassVar[Sequence[str]] = ("loss", "mae", "rmse")
    kind: ClassVar[str | None] = "values"
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "Mean absolute error": ["train/mae", "val/mae"],
        "R2": ["val/r2"],
        "Rank correlation": ["val/spearman"],
    }
    key_metrics: ClassVar[Sequence[str]] = ("val/mae", "test/mae", "test/r2")

    def __init__(
        self,
        network: str = "simple_cnn",
        value_names: Sequence[str] | None = None,
        value_mean: Sequence[float] | None = None,
        value_std: Sequence[float] | None = None,
        value_levels: list[list[int] | None] | None = None,
        loss: str = "mse",
        ordinal: bool = False,
        **kwargs: Any,
    ) -> None:
        self.value_names = ["value"] if value_names is None else list(value_names)
        self.value_mean = [0.0] * len(self.value_names) if value_mean is None else list(value_mean)
        self.value_std = [1.0] * len(self.value_names) if value_std is None else list(value_std)
        self.has_spread = ordinal or loss == "gaussian_nll"
        self.levels = _levels(self.value_names, value_levels) if ordinal else None
        if ordinal and loss != "mse":
            raise InputError(f"model.loss is {loss!r}, and model.ordinal has a loss of its own: leave one of them out")
        if not len(self.value_names) == len(self.value_mean) == len(self.value_std):
            raise InputError(
                "model.value_names, value_mean and value_std differ in length: one of each for every value"
            )
        self._loss = loss
        super().__init__(network=network, **kwargs)

    def setup(self, stage: str) -> None:
        """Reject levels with gaps, before training.

        Raises:
            InputError: If there is a gap; the message names table and row, if the data provide them.
        """
        gap = getattr(getattr(self.trainer, "datamodule", None), "level_gap", None)
        if stage == "fit" and self.levels is not None and callable(gap) and (message := gap()) is not None:
            raise InputError(f"model.ordinal needs levels without gaps: {message}")

    @property
    def num_outputs(self) -> int:
        """One for each value; two with a spread; for ordered levels, one for each but the highest."""
        if self.levels is not None:
            return self.levels[1] - 1
        return len(self.value_names) * (2 if self.has_spread else 1)

    def configure_loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss by name; for ordered levels, their own loss."""
        if self.levels is not None:
            return OrdinalLoss(*self.levels)
        return ValueLoss(self._loss, self.value_mean, self.value_std)

    def configure_decoder(self) -> Decoder:
        """Values in their own units; ordered levels."""
        if self.levels is not None:
            return OrdinalDecoder(*self.levels)
        return ValueDecoder(self.value_mean, self.value_std, self.has_spread)

    def configure_output(self) -> Values:
        """The values."""
        lowest = None if self.levels is None else self.levels[0]
        return Values(self.value_names, self.has_spread, self.value_mean, self.value_std, lowest)

    def configure_metrics(self, stage: Stage) -> dict[str, Metric]:
        """The stage's metrics; in training only cheap ones."""
        if stage == "train":
            return {"mae": MeanLoss()}
        return {"scores": ValueScores(self.value_std, None if self.levels is None else self.levels[1])}

    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update with values (B, V) and targets (B, V)."""
        values = answers["values"]
        if "scores" in metrics:
            metrics["scores"].update(values, batch.targets, batch.indices)
        elif len(batch):
            unit = values.new_tensor(self.value_std) if len(self.value_std) > 1 else 1.0
            known = ~batch.targets.isnan()
            errors = ((values - batch.targets).abs() / unit).masked_fill(~known, 0.0)
            metrics["mae"].update(errors.mean() * scale_of_known(known), known.sum())

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """values: the scores of each value in its own unit; value_pairs: the target and prediction of each image."""
        if f"{stage}/by_value" not in self.tables:
            return {}
        scores, pairs = (self.tables[f"{stage}/{name}"].tolist() for name in ("by_value", "pairs"))
        columns = distinct([f"{kind} {name}" for kind in ("target", "predicted") for name in self.value_names], "value")
        return {
            "values": [
                {"value": name, **dict(zip(_SCORES, map(_short, row), strict=True)), "images": int(images)}
                for name, (*row, images) in zip(self.value_names, scores, strict=True)
            ],
            "value_pairs": [dict(zip(columns, map(_short, row), strict=True)) for row in pairs],
        }


def _levels(names: Sequence[str], known: Sequence[Sequence[int] | None] | None) -> tuple[int, int]:
    """The lowest level, and the number of levels up to the highest."""
    if len(names) != 1 or not known or not known[0] or len(known[0]) < 2:
        raise InputError(
            f"model.ordinal is for one value of whole numbers, two or more of them; the data have {', '.join(names)}: "
            "choose one such column with data.values, or leave model.ordinal out"
        )
    return min(known[0]), max(known[0]) - min(known[0]) + 1


def _short(value: float) -> float:
    return float(f"{value:.6g}")
