"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelStatScores,
)

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.loggers import Row
from cnnlab.losses import ClassLoss, LabelsLoss
from cnnlab.models.decoding import Answers, LabelDecoder
from cnnlab.outputs import Labels
from cnnlab.tasks.classes import ClassTask
from cnnlab.tasks.metrics import Calibration, ExactAccuracy, LabelAveragePrecision, LabelF1
from cnnlab.tasks.steps import Stage


class Classification(ClassTask):
    """Train a network to classify images with cross-entropy.

    Metrics: loss and accuracy in training; also top-k accuracy, macro F1, the expected calibration error (15 bins) and
    the confusion matrix (rows are the true classes) in validation and test. With several classes for each image: macro
    F1 and the mean average precision, which is then what callbacks monitor: with rare classes, an accuracy is high if
    none is predicted.

    Args:
        network: See VisionTask.
        num_classes: See ClassTask.
        label_smoothing: The share of each target that is spread over all classes, 0..1.
        top_k: The k of the top-k accuracy; 5 if None and there are more than 5 classes.
        multi_label: Whether an image may have any number of classes; taken from the data.
        **kwargs: See ClassTask and VisionTask.

    Raises:
        InputError: If a name is unknown or an argument is out of range.
    """

    monitor: str = "val/accuracy"
    mode: ClassVar[Literal["min", "max"]] = "max"
    lower_is_better: ClassVar[Sequence[str]] = ("loss", "calibration_error")
    kind: ClassVar[str | None] = "labels"
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "Accuracy": ["train/accuracy", "val/accuracy", "val/accuracy_top5"],
        "F1": ["val/f1"],
        "Calibration error": ["val/calibration_error"],
    }
    key_metrics: ClassVar[Sequence[str]] = ("val/accuracy", "test/accuracy", "test/f1")
    dashboard_pictures: ClassVar[Sequence[str]] = (
        *("val/gradcam", "val/errors", "val/confusion_matrix"),
        *("test/errors", "test/confusion_matrix"),
    )

    def __init__(
        self,
        network: str = "simple_cnn",
        num_classes: int = 10,
        label_smoothing: float = 0.0,
        top_k: int | None = None,
        multi_label: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing is {label_smoothing}, expected 0..1")
        if top_k is not None and not 1 <= top_k < num_classes:
            raise InputError(f"top_k is {top_k}, expected from 1 to {num_classes - 1} for {num_classes} classes")
        if multi_label and (top_k is not None or label_smoothing):
            raise InputError(
                "model.top_k and model.label_smoothing are for images of one class, and these have several: set "
                "model.top_k to null and model.label_smoothing to 0"
            )
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label
        if multi_label:
            self.monitor = "val/average_precision"
        self.top_k = (5 if num_classes > 5 else None) if top_k is None else top_k
        super().__init__(network=network, num_classes=num_classes, **kwargs)

    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """Cross-entropy of logits (B, num_classes) and classes (B,) or soft targets (B, num_classes).

        With several classes per image, it is the binary cross-entropy of each class. Unknown classes (-1, or NaN) are
        left out.
        """
        return LabelsLoss() if self.multi_label else ClassLoss(self.label_smoothing)

    def configure_evaluation_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """The loss without label smoothing, so that runs with different smoothing can be compared."""
        return LabelsLoss() if self.multi_label else ClassLoss()

    def configure_decoder(self) -> LabelDecoder:
        """Softmax; sigmoid if an image may have several classes."""
        return LabelDecoder(self.multi_label)

    def configure_output(self) -> Labels:
        """The classes."""
        return Labels(self.class_names, self.multi_label)

    def configure_metrics(self, stage: Stage) -> dict[str, Metric]:
        """The stage's metrics; in training only cheap ones."""
        count = self.num_classes
        metrics: dict[str, Metric]
        if self.multi_label:
            metrics = {"accuracy": MultilabelAccuracy(count, average="micro", ignore_index=-1, validate_args=False)}
            if stage != "train":
                metrics["f1"] = LabelF1(count)
                metrics["average_precision"] = LabelAveragePrecision(count)
                metrics["counts"] = MultilabelStatScores(count, average="none", ignore_index=-1, validate_args=False)
            return metrics
        metrics = {"accuracy": ExactAccuracy(count)}
        if stage != "train":
            if self.top_k is not None:
                metrics[f"accuracy_top{self.top_k}"] = ExactAccuracy(count, self.top_k)
            metrics["f1"] = MulticlassF1Score(count, average="macro", validate_args=False)
            metrics["calibration"] = Calibration()
            metrics["confusion_matrix"] = MulticlassConfusionMatrix(count, validate_args=False)
        return metrics

    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update with probabilities (B, num_classes) and classes (B,), or targets (B, num_classes)."""
        targets, probabilities = batch.targets, answers["probabilities"]
        if self.multi_label:
            targets = torch.where(targets.isnan(), -1, (targets > 0.5).long())
        elif batch.has_unknown:
            known = targets >= 0
            targets, probabilities = targets[known], probabilities[known]
        for metric in metrics.values():
            # Metrics with list states get empty batches too, since the other processes expect a list of that shape.
            if len(targets) or any(isinstance(state, list) for state in metric.metric_state.values()):
                metric.update(probabilities, targets)

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """The tables of ClassTask, and the reliability of the probabilities."""
        tables = super().result_tables(stage)
        if f"{stage}/reliability" in self.tables:
            bins = self.tables[f"{stage}/reliability"].tolist()
            tables["reliability"] = [
                {
                    "from": f"{place / len(bins):.4g}",
                    "to": f"{(place + 1) / len(bins):.4g}",
                    "images": int(count),
                    "probability": f"{probability:.6g}" if count else "",
                    "accuracy": f"{accuracy:.6g}" if count else "",
                }
                for place, (count, probability, accuracy) in enumerate(bins)
            ]
        return tables

    def class_counts(self, stage: Stage) -> list[list[int]] | None:
        """See ClassTask; with several labels from torchmetrics' MultilabelStatScores."""
        counts = self.tables.get(f"{stage}/counts")
        if counts is None:
            return super().class_counts(stage)
        return [[hits, hits + false, true] for hits, false, _, _, true in counts.tolist()]
