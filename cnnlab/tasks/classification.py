"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)

from cnnlab.errors import InputError
from cnnlab.tasks.base import Difficulty, Stage, VisionTask
from cnnlab.tasks.calibration import Calibration
from cnnlab.tasks.mean_loss import MeanLoss


class ExactAccuracy(MulticlassAccuracy):
    """The share of samples whose class is among the k most probable, as a float64 quotient of two counts.

    float32 would round it, and a table of predictions could not be compared with it to the last digit. Where a
    sample's target is a mixture (Mixup, CutMix), the weight of the classes that are hit counts.
    """

    mixed_hits: Tensor
    mixed_count: Tensor

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes=num_classes, top_k=top_k, average="micro", validate_args=False)

        self.add_state("mixed_hits", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("mixed_count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in scores (B, num_classes), and classes (B,) or weights of classes (B, num_classes)."""
        if target.ndim == 1:
            super().update(preds, target)
            return
        chosen = preds.topk(self.top_k, dim=1).indices
        self.mixed_hits += target.gather(1, chosen).sum()
        self.mixed_count += len(target)

    def compute(self) -> Tensor:
        """A scalar in 0..1."""
        # With k above 1 the counts come class by class.
        hits, misses = (torch.as_tensor(count).sum().cpu() for count in (self.tp, self.fn))
        mixed = self.mixed_hits.cpu().double()
        return (hits.double() + mixed) / (hits + misses + self.mixed_count.cpu())


class Predictions(NamedTuple):
    """What a prediction step returns."""

    probabilities: Tensor
    """(B, num_classes); each row sums to 1 where an image has one class."""
    targets: Tensor
    """(B,) int64, -1 where the truth is not known; (B, num_classes) float where images have several classes."""
    indices: Tensor
    """(B,) int64, each image's place in the data set."""
    paths: list[str]
    """Each image's file, or ""."""


class Classification(VisionTask):
    """Train a network to tell classes apart with cross-entropy.

    Metrics: loss and accuracy in training; also top-k accuracy, macro F1, the expected calibration error (15 bins) and
    the confusion matrix (rows are the truth) in validation and test.

    Args:
        network: See VisionTask.
        num_classes: See VisionTask.
        channels: See VisionTask.
        class_names: See VisionTask.
        mean: See VisionTask.
        std: See VisionTask.
        dropout: See VisionTask.
        network_args: See VisionTask.
        weights: See VisionTask.
        head: See VisionTask.
        group_norm: See VisionTask.
        pruned: See VisionTask.
        checkpoint_stages: See VisionTask.
        label_smoothing: The share of each target that is spread over all classes, 0..1.
        top_k: The k of the top-k accuracy; 5 if None and there are more than 5 classes.
        multi_label: Whether an image may have any number of classes; the data say.
        optimizer: See VisionTask.
        lr: See VisionTask.
        weight_decay: See VisionTask.
        layer_decay: See VisionTask.
        lr_scaling: See VisionTask.
        lr_batch_size: See VisionTask.
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
    kind: ClassVar[Literal["classification", "segmentation"] | None] = "classification"

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
        weights: str | None = None,
        head: str | None = None,
        group_norm: bool = False,
        pruned: str | list[Any] | None = None,
        checkpoint_stages: list[str] | None = None,
        label_smoothing: float = 0.0,
        top_k: int | None = None,
        multi_label: bool = False,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        lr_scaling: str | None = None,
        lr_batch_size: int = 256,
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
        if multi_label and (top_k is not None or label_smoothing):
            raise InputError(
                "model.top_k and model.label_smoothing are for images of one class, and these have several: set "
                "model.top_k to null and model.label_smoothing to 0"
            )
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label
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
            weights=weights,
            head=head,
            group_norm=group_norm,
            pruned=pruned,
            checkpoint_stages=checkpoint_stages,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            lr_scaling=lr_scaling,
            lr_batch_size=lr_batch_size,
            optimizer_args=optimizer_args,
            schedule=schedule,
            warmup=warmup,
            schedule_args=schedule_args,
            compile=compile,
            channels_last=channels_last,
            init_from=init_from,
        )

    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """Cross-entropy of logits (B, num_classes) and classes (B,) or soft targets (B, num_classes).

        With several classes an image it is the binary one of each class by itself.
        """
        if self.multi_label:
            return nn.BCEWithLogitsLoss()
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)

    def configure_metrics(self, stage: Stage) -> MetricCollection:
        """The stage's metrics; in training only what costs next to nothing."""
        count = self.num_classes
        if self.multi_label:
            return self._multi_label_metrics(stage)
        metrics: dict[str, Any] = {"loss": MeanLoss(), "accuracy": ExactAccuracy(count)}
        if stage != "train":
            if self.top_k is not None:
                metrics[f"accuracy_top{self.top_k}"] = ExactAccuracy(count, self.top_k)
            metrics["f1"] = MulticlassF1Score(count, average="macro", validate_args=False)
            metrics["calibration"] = Calibration()
            metrics["confusion_matrix"] = MulticlassConfusionMatrix(count, validate_args=False)
        return MetricCollection(metrics, compute_groups=False)

    def _multi_label_metrics(self, stage: Stage) -> MetricCollection:
        count = self.num_classes
        metrics: dict[str, Any] = {"loss": MeanLoss(), "accuracy": MultilabelAccuracy(count, average="micro")}
        if stage != "train":
            metrics["f1"] = MultilabelF1Score(count, average="macro")
            metrics["average_precision"] = MultilabelAveragePrecision(count, average="macro")
            metrics["counts"] = MultilabelStatScores(count, average="none")
        return MetricCollection(metrics, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, predictions: Tensor, targets: Any, loss: Tensor) -> None:
        """Take in logits (B, num_classes) and classes (B,), or targets (B, num_classes)."""
        metrics["loss"].update(loss, len(predictions))
        # Of raw logits torchmetrics would take some batches for probabilities.
        exact = self.multi_label or "calibration" in metrics
        probabilities = self.probabilities(predictions) if exact else predictions.float()
        if self.multi_label:
            targets = (targets > 0.5).long()
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            # Of no images only lists are told, whose shape the other processes expect.
            some = len(targets) or any(isinstance(state, list) for state in metric.metric_state.values())
            if name != "loss" and some:
                metric.update(probabilities, targets)

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """Softmax; sigmoid where an image may have several classes."""
        return "sigmoid" if self.multi_label else "softmax"

    def difficulty(self, predictions: Tensor, targets: Any) -> Difficulty:
        """By cross-entropy, and by the predicted class's probability; with several labels by the mean over classes."""
        probabilities = self.probabilities(predictions)
        if self.multi_label:
            errors = binary_cross_entropy_with_logits(predictions.float(), targets.float(), reduction="none")
            return Difficulty(errors.mean(dim=1), 1 - (2 * probabilities - 1).abs().mean(dim=1))
        return Difficulty(
            cross_entropy(predictions.float(), targets, reduction="none"), 1 - probabilities.max(dim=1).values
        )

    def predict_step(self, batch: Any, batch_idx: int) -> Predictions:
        """Images, alone or in a data.PredictionBatch, to Predictions on the device."""
        images, targets, indices, paths = batch
        return Predictions(self.probabilities(self(images)), targets, indices, paths)
