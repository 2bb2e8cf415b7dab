"""Detection: the class, score and box of each object in an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.imaging import Place
from cnnlab.loggers import Row
from cnnlab.losses import DetectionLoss, NetworkLoss, PartsLoss
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.decoding import Answers
from cnnlab.models.detection import create_detector, encoder_of, torchvision_name
from cnnlab.models.tiles import Tiles, check_tiles, detect_in_tiles
from cnnlab.objects import Truth
from cnnlab.outputs import Boxes
from cnnlab.outputs.table import distinct
from cnnlab.tasks.classes import EncoderTask
from cnnlab.tasks.detection_errors import KINDS
from cnnlab.tasks.object_metrics import ObjectScores
from cnnlab.tasks.places import place_in_run
from cnnlab.tasks.steps import Stage

_SCORES = ("ap", "ap50", "average recall", "objects")
_STATIC_SHARE = 0.35
_BOX_WEIGHT = 2.0
_REPEATS = 1000
"""How often the test images are drawn anew for the intervals of mAP."""
_THRESHOLD = 0.5
"""That of a class without objects in validation."""


class Detection(EncoderTask):
    """Train a network to find objects.

    Metrics are COCO's, to its last digit (Lin et al. 2014, arXiv:1405.0312): map is the mean over the classes, and over
    IoU from 0.5 to 0.95, of the average precision; map50 and map75 are those of one IoU; map_small, map_medium and
    map_large count objects below 32 x 32 pixels, below 96 x 96, and above. They are measured in pixels of the original
    images. Training measures only the loss.

    Args:
        network: A name for models.detection.create_detector: one_stage_s, one_stage_m, one_stage_l, one of
            torchvision's (``cnnlab models --task detection`` lists them), or a user's import path.
        encoder: A timm network as the backbone; the network's own if None.
        num_classes: See ClassTask.
        channels: See VisionTask.
        weights: Pretrained weights, of the backbone or of torchvision's whole network: see VisionTask.
        detections: The number of objects that are found in an image, at most.
        nms: Of boxes of one class with a larger IoU, only the one with the highest score is kept; above 0, to 1.
        static_share: See losses.DetectionLoss.
        box_weight: See losses.DetectionLoss.
        class_weights: A weight of each class in the loss, such as more for rare ones; 1 if None.
        thresholds: For each class the score from which an object is counted and shown; if None, the score with the best
            F1 at an IoU of 0.5 in the latest validation.
        category_ids: COCO's number of each class, from the data; see outputs.Boxes.
        tile: Height and width of tiles, a multiple of 32: larger images are evaluated tile by tile, and a training
            image is a part of this size of an image of ``data.size``. Without tiles if None.
        tile_overlap: The share of a tile that its neighbor shows too, at least; 0 up to (not including) 1. An object
            that is smaller than this is whole in one of the tiles.
        **kwargs: See ClassTask and VisionTask.

    Raises:
        InputError: If a name is unknown or an argument is out of range.
    """

    create = staticmethod(create_detector)
    encoder_of = staticmethod(encoder_of)
    monitor: str = "val/map"
    mode: ClassVar[Literal["min", "max"]] = "max"
    kind: ClassVar[str | None] = "boxes"
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "mAP": ["val/map"],
        "mAP, IoU 0.5": ["val/map50"],
        "mAP by size": ["val/map_small", "val/map_medium", "val/map_large"],
    }
    key_metrics: ClassVar[Sequence[str]] = ("val/map", "test/map", "test/map50")
    dashboard_pictures: ClassVar[Sequence[str]] = (
        *("val/predictions", "val/objects", "val/gradcam", "val/errors"),
        *("test/errors", "test/confusion_matrix"),
    )

    has_masks: ClassVar[bool] = False
    """Whether objects are compared by their masks."""

    def __init__(
        self,
        network: str = "one_stage_m",
        encoder: str | None = None,
        num_classes: int = 1,
        channels: int = 3,
        *,
        weights: str | None = None,
        detections: int = 100,
        nms: float = 0.6,
        static_share: float = _STATIC_SHARE,
        box_weight: float = _BOX_WEIGHT,
        class_weights: list[float] | None = None,
        thresholds: list[float] | None = None,
        category_ids: list[int] | None = None,
        tile: int | None = None,
        tile_overlap: float = 0.2,
        **kwargs: Any,
    ) -> None:
        if thresholds is not None and len(thresholds) != num_classes:
            raise InputError(f"model.thresholds are {len(thresholds)}, expected one for each of {num_classes} classes")
        if class_weights is not None and len(class_weights) != num_classes:
            raise InputError(
                f"model.class_weights are {len(class_weights)}, expected one for each of {num_classes} classes"
            )
        if weights is not None and encoder_of(network, encoder) is None and torchvision_name(network) is None:
            raise InputError(f"network {network!r} has no backbone that model.weights could be for: leave it out")
        check_tiles(tile, tile_overlap)
        self.detections = detections
        self.nms = nms
        self._has_thresholds = thresholds is not None
        super().__init__(network=network, num_classes=num_classes, channels=channels, weights=weights, **kwargs)

    def configure_network(self) -> nn.Module:
        """Create the network: standardized images to raw outputs.

        Raises:
            InputError: If it has masks and the task has none, or the other way round; or if it cannot take tiles.
        """
        network, name = super().configure_network(), self.hparams["network"]
        if hasattr(network, "mask_logits") != self.has_masks:
            fits = (
                "finds no masks: choose one for instances, such as instances_m"
                if self.has_masks
                else "is for --model Instances"
            )
            raise InputError(f"network {name!r} {fits}")
        if self.hparams["tile"] is not None and getattr(network, "computes_loss", False):
            raise InputError(f"model.tile is not for network {name!r}, which measures its loss itself: leave it out")
        return network

    def configure_loss(self) -> PartsLoss:
        """The loss of objects, with the assignment of a training."""
        return self.loss_of_objects(self._loss_of_boxes(self.hparams["static_share"]))

    def configure_evaluation_loss(self) -> PartsLoss:
        """The same, with the assignment of the end of the training."""
        return self.loss_of_objects(self._loss_of_boxes(0.0))

    def loss_of_objects(self, boxes: PartsLoss) -> PartsLoss:
        """The whole loss, made of that of scores and boxes."""
        return boxes

    def _loss_of_boxes(self, static_share: float) -> PartsLoss:
        """Scores and boxes; the network's own loss, if it has one.

        Raises:
            InputError: If arguments of DetectionLoss are given, and the network has a loss of its own.
        """
        hparams = self.hparams
        if not self._network_has_loss:
            return DetectionLoss(static_share, hparams["box_weight"], class_weights=hparams["class_weights"])
        own = {"static_share": _STATIC_SHARE, "box_weight": _BOX_WEIGHT, "class_weights": None}
        for name, usual in own.items():
            if (value := hparams[name]) != usual:
                raise InputError(
                    f"model.{name} is {value}, but network {hparams['network']!r} has a loss of its own: leave it out"
                )
        return NetworkLoss()

    @property
    def _network_has_loss(self) -> bool:
        return bool(getattr(self.network, "computes_loss", False))

    def measured_outputs(self, batch: Batch) -> Any:
        """The raw outputs; those of a network with a loss of its own contain it."""
        if self._network_has_loss:
            return self(batch.images, batch.targets)
        return super().measured_outputs(batch)

    def configure_decoder(self) -> BoxDecoder:
        """Boxes without those that overlap a better one."""
        return BoxDecoder(self.detections, self.nms)

    @property
    def training_size(self) -> int | None:
        """Height and width of the parts of images that are trained on; whole images if None."""
        size: int | None = self.hparams["tile"]
        return size

    def evaluate(self, images: Tensor) -> Any:
        """Images to raw outputs, tile by tile if they are larger than ``tile``."""
        if self.hparams["tile"] is None or not len(images):
            return self(images)
        return detect_in_tiles(self, images, self.hparams["tile"], self.hparams["tile_overlap"])

    def deployed_network(self) -> nn.Module:
        """The network, in tiles if there are any."""
        size = self.hparams["tile"]
        return self.network if size is None else Tiles(self.network, size, self.hparams["tile_overlap"])

    def configure_output(self) -> Boxes:
        """The objects."""
        return Boxes(self.class_names, *self._settings_of_output())

    def _settings_of_output(self) -> tuple[Any, ...]:
        return (
            self.hparams["thresholds"],
            self.detections,
            self.nms,
            self.hparams["category_ids"],
            self.hparams["tile"] is not None,
        )

    def configure_metrics(self, stage: Stage) -> dict[str, Metric]:
        """COCO's scores; none in training."""
        if stage == "train":
            return {}
        repeats = _REPEATS if stage == "test" else 0
        return {"scores": ObjectScores(self.num_classes, (1, 10, self.detections), self.has_masks, repeats)}

    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update with each image's objects, in original pixels."""
        if not metrics:
            return
        known = [i for i, truth in enumerate(batch.targets.truths) if truth is not None]
        truths = [batch.targets.truths[i] for i in known]
        arrays = {name: value[known].cpu().numpy() for name, value in answers.items()}
        places = [Place(truth.size, truth.covers) for truth in truths]
        found = [self.found(answer) for answer in self.output.answers(arrays, [""] * len(known), places)]
        metrics["scores"].update(found, [self.true(truth) for truth in truths], batch.indices[known].tolist())

    def found(self, answer: Any) -> dict[str, Any]:
        """What ObjectScores takes of the objects that were found in an image."""
        return {"boxes": answer.boxes, "scores": answer.scores, "labels": answer.labels}

    def true(self, truth: Truth) -> dict[str, Any]:
        """What ObjectScores takes of the objects of an image."""
        return truth._asdict()

    def on_train_start(self) -> None:
        """Check that the run has an end.

        Raises:
            InputError: If it has none, and the loss has a share of it: model.static_share.
        """
        super().on_train_start()
        if not self._network_has_loss and not math.isfinite(self._total_steps()):
            raise InputError(
                "model.static_share is a share of the run, and this one has no end: set trainer.max_epochs or "
                "trainer.max_steps"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tell the loss how much of the run is over."""
        loss = getattr(self.loss, "boxes", self.loss)
        if isinstance(loss, DetectionLoss):
            place = place_in_run(self.trainer, int(self._total_steps()))
            loss.place_in_run = place.step / max(place.total, 1)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics; in training, keep the scores with the best F1 as thresholds."""
        super().on_validation_epoch_end()
        if not self._has_thresholds and self.trainer.state.fn == "fit":
            found = self.tables["val/thresholds"].tolist()
            self._set_thresholds([_THRESHOLD if math.isnan(score) else round(score, 6) for score in found])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the thresholds of a resumed run."""
        super().on_load_checkpoint(checkpoint)
        if not self._has_thresholds:
            self._set_thresholds(checkpoint["hyper_parameters"].get("thresholds"))

    def _set_thresholds(self, thresholds: list[float] | None) -> None:
        self.hparams["thresholds"] = thresholds
        self.__dict__.pop("output", None)

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """The scores of each class, the confusion matrix with the background, and what the errors cost."""
        if f"{stage}/by_class" not in self.tables:
            return {}
        rows, thresholds, matrix, kinds, precision, f1 = (
            self.tables[f"{stage}/{name}"].tolist()
            for name in ("by_class", "thresholds", "confusion", "error_kinds", "precision", "f1")
        )
        intervals = self.tables.get(f"{stage}/intervals")
        names = [*self.class_names, "background"]
        columns = distinct(["truth \\ predicted", *names], "class")
        return {
            "classes": [
                {"class": name, **dict(zip(_SCORES, map(_short, row), strict=True)), "best threshold": _short(best)}
                for name, row, best in zip(self.class_names, rows, thresholds, strict=True)
            ],
            "confusion_matrix": [
                dict(zip(columns, [name, *row], strict=True)) for name, row in zip(names, matrix, strict=True)
            ],
            "precision_recall": self._curves("recall", precision),
            "f1": self._curves("score", f1),
            **({} if intervals is None else {"intervals": self._intervals(stage, intervals.tolist())}),
            "error_kinds": [
                {"kind": name, "gain in mAP, IoU 0.5": _short(gain)} for name, gain in zip(KINDS, kinds, strict=True)
            ],
        }

    def _intervals(self, stage: Stage, ends: list[list[float]]) -> list[Row]:
        """MAP with the ends of its interval."""
        return [
            {"metric": name, "value": _short(self.results[f"{stage}/{name}"]), "low": _short(low), "high": _short(high)}
            for name, (low, high) in zip(("map", "map50"), ends, strict=True)
        ]

    def _curves(self, across: str, values: list[list[float]]) -> list[Row]:
        """A row for each of 101 places from 0 to 1, with a column for each class."""
        columns = distinct([across, *self.class_names], "class")
        return [
            dict(zip(columns, [place / 100, *map(_short, row)], strict=True))
            for place, row in enumerate(zip(*values, strict=True))
        ]


def _short(value: float) -> float | None:
    """Six digits; None if it is not a number."""
    return None if math.isnan(value) else float(f"{value:.6g}")
