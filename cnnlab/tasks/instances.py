"""Instances: the class, score, box and mask of each object in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cnnlab import rle
from cnnlab.batch import Batch
from cnnlab.imaging import Place, fitted_size
from cnnlab.losses.instances import InstanceLoss
from cnnlab.models.decoding import Answers
from cnnlab.models.detection import create_detector
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.models.instance_detector import grown
from cnnlab.objects import Truth
from cnnlab.outputs import Instances as InstanceOutput
from cnnlab.tasks.detection import Detection
from cnnlab.tasks.object_metrics import ObjectScores
from cnnlab.tasks.steps import Stage


class Instances(Detection):
    """Train a network to find objects with their masks.

    Metrics are COCO's, of masks; box_map, box_map50 and box_map75 are those of boxes.

    Args:
        network: A name for models.detection.create_detector: instances_s, instances_m, instances_l, or a user's import
            path.
        mask_weight: See losses.instances.InstanceLoss.
        nms: See Detection.
        **kwargs: See Detection.
    """

    kind: ClassVar[str | None] = "instances"
    charts: ClassVar[Mapping[str, Sequence[str]]] = {**Detection.charts, "mAP of boxes": ["val/box_map"]}

    def __init__(self, network: str = "instances_m", mask_weight: float = 2.0, nms: float = 0.5, **kwargs: Any) -> None:
        super().__init__(network=network, nms=nms, **kwargs)

    def configure_network(self) -> nn.Module:
        """Create the network: standardized images to scores, boxes and masks."""
        hparams = self.hparams
        settings = {name: hparams[name] for name in ("channels", "encoder", "weights", "dropout")}
        own = {"detections": self.detections, "nms": self.nms, **(hparams["network_args"] or {})}
        return create_detector(hparams["network"], self.num_classes, **settings, **own)

    def configure_loss(self) -> InstanceLoss:
        """Scores, boxes and masks."""
        hparams = self.hparams
        return InstanceLoss(
            hparams["mask_weight"], static_share=hparams["static_share"], box_weight=hparams["box_weight"]
        )

    def configure_evaluation_loss(self) -> InstanceLoss:
        """The same, with the assignment of the end of the training."""
        return InstanceLoss(self.hparams["mask_weight"], static_share=0.0, box_weight=self.hparams["box_weight"])

    def configure_decoder(self) -> InstanceDecoder:
        """Objects with masks."""
        return InstanceDecoder(self.detections, self.nms)

    def configure_output(self) -> InstanceOutput:
        """The objects."""
        return InstanceOutput(self.class_names, self.hparams["thresholds"], self.detections, self.nms)

    def configure_metrics(self, stage: Stage) -> dict[str, Metric]:
        """COCO's scores; none in training."""
        if stage == "train":
            return {}
        return {"scores": ObjectScores(self.num_classes, max_dets=(1, 10, self.detections), masks=True)}

    def parts_and_outputs(self, batch: Batch) -> tuple[Tensor, Any]:
        """See Steps; the masks are learned in regions that the loss chooses."""
        outputs = self(batch.images) if self.training else self.evaluate(batch.images)
        loss = self.loss if self.training else self.evaluation_loss
        assert isinstance(loss, InstanceLoss)
        regions = loss.regions(outputs, batch.targets)
        network: Any = self.network
        logits = network.mask_logits(outputs["fine"], grown(regions.boxes), regions.images)
        return loss.parts({**outputs, "region_logits": logits}, batch.targets), outputs

    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update with each image's objects, in original pixels."""
        if "scores" not in metrics:
            return
        size = (batch.images.shape[-2], batch.images.shape[-1])
        arrays = {name: value.cpu().numpy() for name, value in answers.items()}
        known = [i for i, truth in enumerate(batch.targets.truths) if truth is not None]
        truths: list[Truth] = [batch.targets.truths[i] for i in known]
        places: list[Place | None] = [Place(truth.size, fitted_size(truth.size, size)) for truth in truths]
        own = {name: value[known] for name, value in arrays.items()}
        found = [
            {"boxes": one.boxes, "scores": one.scores, "labels": one.labels, "masks": one.texts()}
            for one in self.output.answers(own, [""] * len(known), places)
        ]
        true = [{**truth._asdict(), "masks": _texts(truth)} for truth in truths]
        metrics["scores"].update(found, true, batch.indices[torch.from_numpy(np.array(known, dtype=np.int64))])


def _texts(truth: Truth) -> list[bytes]:
    """Each object's mask as COCO's text; an object without a shape, such as a crowd's box, fills its box."""
    texts = []
    for place, box in enumerate(truth.boxes):
        shape = None if truth.shapes is None else truth.shapes[place]
        if isinstance(shape, bytes):
            texts.append(shape)
            continue
        left, top, right, bottom = box.tolist()
        whole = [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]
        rings = shape if isinstance(shape, list) else whole
        texts.append(rle.to_text(rle.from_polygons(rings, truth.size)))
    return texts
