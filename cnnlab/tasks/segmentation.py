"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.lightning_compat import is_attached
from cnnlab.loggers import Row
from cnnlab.losses import create_loss
from cnnlab.models.decoding import Answers, MaskDecoder
from cnnlab.models.segmentation import create_segmenter, encoder_of, refuse_encoder
from cnnlab.models.windows import predict_in_windows, split_into_windows
from cnnlab.outputs import Masks
from cnnlab.tasks.classes import EncoderTask, precision_and_recall, quotient
from cnnlab.tasks.metrics import SegmentationScores
from cnnlab.tasks.steps import Stage


class Segmentation(EncoderTask):
    """Train a network to classify each pixel.

    Args:
        network: A name for models.segmentation.create_segmenter: unet, deeplabv3plus, or a user's import path.
        encoder: A timm network as the encoder; the network's own encoder if None.
        num_classes: See ClassTask.
        channels: See VisionTask.
        ignore_index: The target of ignored pixels; taken from the data.
        weights: The encoder's pretrained weights: see VisionTask.
        loss: A name in losses.LOSSES: cross_entropy_dice, cross_entropy, dice, tversky, focal.
        loss_args: Further arguments of the loss.
        window: Height and width of windows, in pixels. Validation, test and prediction process larger images window by
            window; whole if None.
        margin: Pixels discarded at each side of a window, where the network's receptive field is cut off. From half
            the receptive field on, the result is that of the whole image: 112 for unet of depth 4. Encoders have larger
            ones (tf_efficientnet_lite0 more than 300 pixels), but distant pixels have little influence.
        flips: In test and prediction, also predict each mirrored image, and average both results.
        **kwargs: See ClassTask and VisionTask.

    Raises:
        InputError: If a name is unknown or an argument is out of range.
    """

    create = staticmethod(create_segmenter)
    encoder_of = staticmethod(encoder_of)
    monitor: str = "val/mean_iou"
    mode: ClassVar[Literal["min", "max"]] = "max"
    kind: ClassVar[str | None] = "masks"
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "Mean IoU": ["train/mean_iou", "val/mean_iou"],
        "Dice": ["train/dice", "val/dice"],
        "Pixel accuracy": ["train/pixel_accuracy", "val/pixel_accuracy"],
    }
    key_metrics: ClassVar[Sequence[str]] = ("val/mean_iou", "test/mean_iou", "test/dice")
    dashboard_pictures: ClassVar[Sequence[str]] = (
        *("val/predictions", "val/gradcam", "val/errors"),
        *("test/errors", "test/confusion_matrix"),
    )

    def __init__(
        self,
        network: str = "unet",
        encoder: str | None = None,
        num_classes: int = 2,
        channels: int = 3,
        *,
        ignore_index: int = 255,
        weights: str | None = None,
        loss: str = "cross_entropy_dice",
        loss_args: dict[str, Any] | None = None,
        window: int | None = None,
        margin: int = 112,
        flips: bool = False,
        **kwargs: Any,
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
        super().__init__(network=network, num_classes=num_classes, channels=channels, weights=weights, **kwargs)
        if window is not None:
            # Raises InputError if the margins leave nothing of a window.
            split_into_windows(window + 1, window, margin, getattr(self.network, "multiple", 1))

    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """The loss by name, of logits (B, num_classes, H, W) and classes (B, H, W)."""
        return create_loss(self.hparams["loss"], self.hparams["ignore_index"], self.hparams["loss_args"] or {})

    def configure_decoder(self) -> MaskDecoder:
        """Softmax over the classes of each pixel."""
        return MaskDecoder(self.hparams["ignore_index"])

    def configure_output(self) -> Masks:
        """The classes."""
        return Masks(self.class_names, self.hparams["ignore_index"])

    def configure_metrics(self, stage: Stage) -> dict[str, Metric]:
        """The stage's metrics."""
        return {"scores": SegmentationScores(self.num_classes, self.hparams["ignore_index"])}

    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update with probabilities (B, num_classes, H, W) and classes (B, H, W)."""
        metrics["scores"].update(answers["probabilities"].argmax(dim=1), batch.targets)

    def class_rows(self, counts: list[list[int]]) -> list[Row]:
        """A row for each class: counts of pixels, with IoU and Dice."""
        return [
            {
                "class": name,
                "iou": quotient(hits, predicted + true - hits),
                "dice": quotient(2 * hits, predicted + true),
                **precision_and_recall(hits, predicted, true),
                "pixels": true,
            }
            for name, (hits, predicted, true) in zip(self.class_names, counts, strict=True)
        ]

    def configure_model(self) -> None:
        """See VisionTask.

        Raises:
            InputError: If ``window`` is set: processes that share weights would wait for each other.
        """
        if self.device_mesh is not None and self.hparams["window"] is not None:
            raise InputError(
                "model.window: images of different sizes have different numbers of windows, for which processes that "
                "share weights would wait for ever; leave it out, or use --trainer.strategy ddp"
            )
        super().configure_model()

    def evaluate(self, images: Tensor) -> Tensor:
        """Images to logits (B, num_classes, H, W), window by window if ``window`` is set.

        With ``flips``, test and prediction return logarithms of the mean probabilities of image and mirror image.
        """
        if not self.hparams["flips"] or (is_attached(self) and self.trainer.state.fn in ("fit", "validate")):
            return self._by_windows(images)
        probabilities = self._by_windows(images).float().softmax(dim=1)
        probabilities += self._by_windows(images.flip(-1)).float().softmax(dim=1).flip(-1)
        return (probabilities / 2).clamp(min=torch.finfo(torch.float32).tiny).log()

    def _by_windows(self, images: Tensor) -> Tensor:
        window, margin = self.hparams["window"], self.hparams["margin"]
        if window is None or not len(images):
            whole: Tensor = self(images)
            return whole
        return predict_in_windows(self, images, window, margin, getattr(self.network, "multiple", 1))
