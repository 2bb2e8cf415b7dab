"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from cnnlab.errors import InputError
from cnnlab.losses import create_loss
from cnnlab.models.segmentation import create_segmenter, encoder_of, refuse_encoder
from cnnlab.models.windows import predict_in_windows, split_into_windows
from cnnlab.tasks.base import Difficulty, Stage, VisionTask
from cnnlab.tasks.mean_loss import MeanLoss


class SegmentationScores(Metric):
    """IoU and Dice of each class, their means, and the accuracy of pixels, over all images at once.

    From one confusion matrix of whole numbers, so that batches and processes change no digit. A class that is neither
    in the truth nor in a prediction has no score (NaN), and the means leave it out.

    Args:
        num_classes: K.
        ignore_index: Pixels that count for nothing.

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
        """Take in classes (B, H, W) and truths (B, H, W)."""
        # Ignored pixels get a row of their own, which is left out: selecting the others would wait for the device, and
        # so would bincount.
        row = torch.where(target == self.ignore_index, self.num_classes, target)
        pairs = row.flatten() * self.num_classes + predicted.flatten()
        counted = self.counts.new_zeros(self.num_classes * (self.num_classes + 1))
        counted.scatter_add_(0, pairs, torch.ones_like(pairs))
        self.counts += counted.view(self.num_classes + 1, self.num_classes)[:-1]

    def compute(self) -> dict[str, Tensor]:
        """mean_iou, dice and pixel_accuracy as scalars, iou (K,), confusion_matrix (K, K), rows are the truth."""
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


class SegmentationPredictions(NamedTuple):
    """What a prediction step returns."""

    classes: Tensor
    """(B, H, W) int64."""
    probabilities: Tensor
    """(B, K, H, W) float32, in 0..1, which sum to 1 for each pixel."""
    targets: Tensor
    """(B, H, W) int64, ignore_index where the truth is not known."""
    indices: Tensor
    """(B,) each image's place in the data set."""
    paths: list[str]
    """Each image's file."""


class Segmentation(VisionTask):
    """One class for each pixel.

    Args:
        network: A name for models.segmentation.create_segmenter: unet, deeplabv3plus, or the import path of one's own.
        encoder: A timm network that the decoder is built on; the network's own encoder if None.
        num_classes: See VisionTask.
        channels: See VisionTask.
        class_names: See VisionTask.
        mean: See VisionTask.
        std: See VisionTask.
        ignore_index: What targets of pixels that count for nothing are; the data say.
        dropout: See VisionTask.
        network_args: See VisionTask.
        weights: The encoder's pretrained weights: see VisionTask.
        group_norm: See VisionTask.
        pruned: See VisionTask.
        checkpoint_stages: See VisionTask.
        loss: A name in losses.LOSSES: cross_entropy_dice, cross_entropy, dice, tversky, focal.
        loss_args: Further arguments of the loss.
        window: Validation, test and prediction take images that are larger than so many pixels window by window; whole
            if None.
        margin: How much of a window is discarded at each side, where the network sees less than it should. From half
            its receptive field on the result is that of the whole image: 112 for unet of depth 4. Encoders see farther
            (tf_efficientnet_lite0 more than 300 pixels), but hardly heed what is far off.
        flips: Predict each image mirrored as well, and take the mean of both, in test and prediction.
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

    monitor: ClassVar[str] = "val/mean_iou"
    mode: ClassVar[Literal["min", "max"]] = "max"
    kind: ClassVar[Literal["classification", "segmentation"] | None] = "segmentation"

    def __init__(
        self,
        network: str = "unet",
        encoder: str | None = None,
        num_classes: int = 2,
        channels: int = 3,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        ignore_index: int = 255,
        dropout: float | None = None,
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        group_norm: bool = False,
        pruned: str | list[Any] | None = None,
        checkpoint_stages: list[str] | None = None,
        loss: str = "cross_entropy_dice",
        loss_args: dict[str, Any] | None = None,
        window: int | None = None,
        margin: int = 112,
        flips: bool = False,
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
        if 0 <= ignore_index < num_classes:
            raise InputError(f"ignore_index is {ignore_index}, which is one of the {num_classes} classes")
        if encoder_of(network, encoder) is None:
            refuse_encoder(network, encoder, weights)
        weights_given = (loss_args or {}).get("class_weights")
        if weights_given is not None and len(weights_given) != num_classes:
            raise InputError(
                f"loss_args.class_weights are {len(weights_given)}, expected one for each of {num_classes}"
            )
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
        if window is not None:
            # Raises if nothing would be left between the margins.
            split_into_windows(window + 1, window, margin, getattr(self.network, "multiple", 1))

    @property
    def backbone(self) -> str:
        """The encoder, which pretrained weights are for; the network itself if it is built on none."""
        return encoder_of(self.hparams["network"], self.hparams["encoder"]) or str(self.hparams["network"])

    def configure_network(self) -> nn.Module:
        """Make the network: standardised images to logits (B, num_classes, H, W)."""
        hparams = self.hparams
        settings = {name: hparams[name] for name in ("channels", "encoder", "weights", "dropout")}
        return create_segmenter(hparams["network"], self.num_classes, **settings, **(hparams["network_args"] or {}))

    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """The loss by name, of logits (B, num_classes, H, W) and classes (B, H, W)."""
        return create_loss(self.hparams["loss"], self.hparams["ignore_index"], self.hparams["loss_args"] or {})

    def configure_metrics(self, stage: Stage) -> MetricCollection:
        """The stage's metrics."""
        scores = SegmentationScores(self.num_classes, self.hparams["ignore_index"])
        return MetricCollection({"loss": MeanLoss(), "scores": scores}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, predictions: Tensor, targets: Any, loss: Tensor) -> None:
        """Take in logits (B, num_classes, H, W) and classes (B, H, W)."""
        metrics["loss"].update(loss, len(predictions))
        metrics["scores"].update(predictions.argmax(dim=1), targets)

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One step of the validation, window by window where that is asked for."""
        return self._measure(batch, self.val_metrics, flips=False)

    def test_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One step of the test, window by window and flipped where that is asked for."""
        return self._measure(batch, self.test_metrics, flips=self.hparams["flips"])

    def _measure(self, batch: tuple[Tensor, Any], metrics: MetricCollection, flips: bool) -> Tensor:
        images, targets = batch
        logits = self.logits(images, flips)
        self.update_metrics(metrics, logits, targets, self.loss(logits, targets) if len(images) else logits.sum())
        return logits

    def difficulty(self, predictions: Tensor, targets: Any) -> Difficulty:
        """By the share of pixels that are wrong, of those that count, and by their mean uncertainty."""
        counted = targets != self.hparams["ignore_index"]
        probability, classes = predictions.float().softmax(dim=1).max(dim=1)
        count = counted.sum(dim=(1, 2)).clamp(min=1)
        wrong = ((classes != targets) & counted).sum(dim=(1, 2)) / count
        return Difficulty(wrong, ((1 - probability) * counted).sum(dim=(1, 2)) / count)

    def logits(self, images: Tensor, flips: bool = False) -> Tensor:
        """Predict as evaluation does.

        Args:
            images: (B, C, H, W), uint8 0..255 or float 0..1.
            flips: Take the mean of the probabilities of the image and of its mirror image.

        Returns:
            (B, num_classes, H, W); with flips the logarithms of probabilities.
        """
        window, margin = self.hparams["window"], self.hparams["margin"]
        multiple = getattr(self.network, "multiple", 1)

        def once(images: Tensor) -> Tensor:
            return (
                self(images)
                if window is None or not len(images)
                else predict_in_windows(self, images, window, margin, multiple)
            )

        if not flips:
            return once(images)
        probabilities = once(images).float().softmax(dim=1)
        probabilities += once(images.flip(-1)).float().softmax(dim=1).flip(-1)
        return (probabilities / 2).clamp(min=torch.finfo(torch.float32).tiny).log()

    def predict_step(self, batch: Any, batch_idx: int) -> SegmentationPredictions:
        """Images in a data.PredictionBatch to SegmentationPredictions, on the device."""
        images, targets, indices, paths = batch
        probabilities = self.probabilities(self.logits(images, self.hparams["flips"]))
        return SegmentationPredictions(probabilities.argmax(dim=1), probabilities, targets, indices, paths)
