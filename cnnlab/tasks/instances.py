"""Instances: the class, score, box and mask of each object in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cnnlab import rle
from cnnlab.batch import Batch
from cnnlab.losses import PartsLoss
from cnnlab.losses.instances import InstanceLoss
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.objects import Truth
from cnnlab.outputs import Instances as InstanceOutput
from cnnlab.tasks.detection import Detection


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
    has_masks: ClassVar[bool] = True
    charts: ClassVar[Mapping[str, Sequence[str]]] = {**Detection.charts, "mAP of boxes": ["val/box_map"]}

    def __init__(self, network: str = "instances_m", mask_weight: float = 2.0, nms: float = 0.5, **kwargs: Any) -> None:
        super().__init__(network=network, nms=nms, **kwargs)

    def network_arguments(self) -> dict[str, Any]:
        """The network finds the objects itself, since it needs them for their masks."""
        return {"detections": self.detections, "nms": self.nms, **super().network_arguments()}

    def loss_of_objects(self, boxes: PartsLoss) -> InstanceLoss:
        """Scores, boxes and masks."""
        return InstanceLoss(boxes, self.hparams["mask_weight"])

    def configure_decoder(self) -> InstanceDecoder:
        """Objects with masks."""
        return InstanceDecoder(self.detections, self.nms)

    def configure_output(self) -> InstanceOutput:
        """The objects."""
        return InstanceOutput(self.class_names, *self._settings_of_output())

    def parts_and_outputs(self, batch: Batch) -> tuple[Tensor, Any]:
        """See Steps; the masks are learned in regions that the loss chooses."""
        outputs = self.measured_outputs(batch)
        loss = self.loss if self.training else self.evaluation_loss
        assert isinstance(loss, InstanceLoss)
        network: Any = self.network
        regions = loss.regions(outputs, batch.targets)
        regions = regions._replace(boxes=network.mask_regions(regions.boxes))
        logits = network.mask_logits(outputs, regions.boxes, regions.images, regions.labels)
        return loss.parts({**outputs, "mask_regions": regions, "region_logits": logits}, batch.targets), outputs

    def found(self, answer: Any) -> dict[str, Any]:
        """See Detection; and the masks."""
        return {**super().found(answer), "masks": answer.texts()}

    def true(self, truth: Truth) -> dict[str, Any]:
        """See Detection; and the masks."""
        return {**super().true(truth), "masks": _texts(truth)}


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
