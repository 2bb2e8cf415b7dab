"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from cnnlab.errors import InputError
from cnnlab.tasks.base import Stage, VisionTask, mean_of_loss


class ExactAccuracy(MulticlassAccuracy):
    """The share of samples whose class is among the k most probable, as a float64 quotient of two counts.

    float32 would round it, and a table of predictions could not be compared with it to the last digit.
    """

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes=num_classes, top_k=top_k, average="micro", validate_args=False)

    def compute(self) -> Tensor:
        """A scalar in 0..1."""
        # With k above 1 the counts come class by class.
        hits, misses = (torch.as_tensor(count).sum().cpu() for count in (self.tp, self.fn))
        return hits.double() / (hits + misses)


class Predictions(NamedTuple):
    """What a prediction step returns."""

    probabilities: Tensor
    """(B, num_classes), each row sums to 1."""
    targets: Tensor
    """(B,) int64, -1 where the truth is not known."""
    indices: Tensor
    """(B,) int64, each image's place in the data set."""
    paths: list[str]
    """Each image's file, or ""."""


class Classification(VisionTask):
    """Train a network to tell classes apart with cross-entropy.

    Metrics: loss and accuracy in training; also top-k accuracy, macro F1, the expected calibration error (15 bins,
    Guo et al. 2017) and the confusion matrix (rows are the truth) in validation and test.

    Args:
        network: See VisionTask.
        num_classes: See VisionTask.
        channels: See VisionTask.
        class_names: See VisionTask.
        mean: See VisionTask.
        std: See VisionTask.
        dropout: See VisionTask.
        network_args: See VisionTask.
        label_smoothing: The share of each target that is spread over all classes, 0..1.
        top_k: The k of the top-k accuracy; 5 if None and there are more than 5 classes.
        optimizer: See VisionTask.
        lr: See VisionTask.
        weight_decay: See VisionTask.
        optimizer_args: See VisionTask.
        schedule: See VisionTask.
        warmup: See VisionTask.
        schedule_args: See VisionTask.
        compile: See VisionTask.
        channels_last: See VisionTask.
        init_from: See VisionTask.

    Raises:
        InputError: If a name is unknown or an argument does not fit.
    """

    monitor: ClassVar[str] = "val/accuracy"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        network: str = "simple_cnn",
        num_classes: int = 10,
        channels: int = 3,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dropout: float | None = None,
        network_args: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        top_k: int | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        optimizer_args: dict[str, Any] | None = None,
        schedule: str = "cosine",
        warmup: float | None = None,
        schedule_args: dict[str, Any] | None = None,
        compile: bool = False,
        channels_last: bool = True,
        init_from: str | None = None,
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing is {label_smoothing}, expected 0..1")
        if top_k is not None and not 1 <= top_k < num_classes:
            raise InputError(f"top_k is {top_k}, expected from 1 to {num_classes - 1} for {num_classes} classes")
        self.label_smoothing = label_smoothing
        self.top_k = (5 if num_classes > 5 else None) if top_k is None else top_k
        super().__init__(
            network=network,
            num_classes=num_classes,
            channels=channels,
            class_names=class_names,
            mean=mean,
            std=std,
            dropout=dropout,
            network_args=network_args,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            optimizer_args=optimizer_args,
            schedule=schedule,
            warmup=warmup,
            schedule_args=schedule_args,
            compile=compile,
            channels_last=channels_last,
            init_from=init_from,
        )

    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """Cross-entropy of logits (B, num_classes) and classes (B,) or soft targets (B, num_classes)."""
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)

    def configure_metrics(self, stage: Stage) -> MetricCollection:
        """The stage's metrics; in training only what costs next to nothing."""
        count = self.num_classes
        metrics: dict[str, Any] = {"loss": mean_of_loss(), "accuracy": ExactAccuracy(count)}
        if stage != "train":
            if self.top_k is not None:
                metrics[f"accuracy_top{self.top_k}"] = ExactAccuracy(count, self.top_k)
            metrics["f1"] = MulticlassF1Score(count, average="macro", validate_args=False)
            metrics["calibration_error"] = MulticlassCalibrationError(count, n_bins=15, validate_args=False)
            metrics["confusion_matrix"] = MulticlassConfusionMatrix(count, validate_args=False)
        return MetricCollection(metrics, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, predictions: Tensor, targets: Any, loss: Tensor) -> None:
        """Take in logits (B, num_classes) and classes (B,)."""
        metrics["loss"].update(loss, len(predictions))
        probabilities = predictions.float().softmax(dim=1) if "calibration_error" in metrics else predictions
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name != "loss":
                metric.update(probabilities, targets)

    def predict_step(self, batch: Any, batch_idx: int) -> Predictions:
        """Images, alone or in a data.PredictionBatch, to Predictions on the device."""
        images, targets, indices, paths = batch
        probabilities = self(images).float().softmax(dim=1)
        return Predictions(probabilities, targets, indices, paths)
