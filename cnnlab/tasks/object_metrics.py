"""The metric of tasks that find objects; batches and processes change no digit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from cnnlab import rle
from cnnlab.errors import InputError
from cnnlab.tasks.coco import Evaluation, average_precision, evaluate
from cnnlab.tasks.detection_errors import confusion_matrix, error_kinds, score_thresholds
from cnnlab.tasks.object_intervals import map_intervals
from cnnlab.tasks.overlaps import Detections, Floats, Integers, Truth, gather

_USUAL = 100
"""The objects of an image and class that COCO counts."""
_UNSURE = 0.5
"""The threshold, in the confusion matrix, of a class that has no best one."""
_HEADER = 6
"""Numbers at the start of an image's record: index, detections, true objects, height, width, bytes of masks."""

Image = tuple[Detections, Truth]


class ObjectScores(Metric):
    """COCO's scores of detections or instances, their best thresholds, confusions and kinds of errors.

    All objects are kept, and sorted by their images' indices, so that batches and processes change no digit. Each
    process computes the scores of all images: that takes less than a second for 500 images, and needs no broadcast.
    An image that occurs twice, since a sampler has repeated it, counts once. Images without an index (-1) count each.

    The state is two lists of flat tensors. One of int64 has a record for each image; floats are in it by their bits,
    so that no device and no gathering rounds them. One of uint8 has the texts of masks.

    Args:
        num_classes: K.
        max_dets: How many detections of an image and class count; average precision takes the largest number.
        masks: Whether objects are compared by their masks; average precision of boxes is then measured too.
        repeats: How often the images are drawn anew for intervals, see object_intervals; no intervals if 0.

    >>> scores = ObjectScores(1)
    >>> found = {"boxes": np.array([[0, 0, 9, 9], [20, 0, 29, 9]]), "scores": [0.9, 0.8], "labels": [0, 0]}
    >>> scores.update([found], [{"boxes": np.array([[0, 0, 9, 8]]), "labels": [0]}], [0])
    >>> {name: round(value.item(), 3) for name, value in scores.compute().items() if name in ("map", "map50", "ar1")}
    {'map': 0.8, 'map50': 1.0, 'ar1': 0.8}
    """

    full_state_update = False
    records: list[Tensor]
    texts: list[Tensor]

    def __init__(
        self, num_classes: int, max_dets: Sequence[int] = (1, 10, 100), masks: bool = False, repeats: int = 0
    ) -> None:
        super().__init__()
        self.repeats = repeats
        self.num_classes = num_classes
        self.max_dets = tuple(max_dets)
        self.masks = masks
        for name in ("records", "texts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        detections: Sequence[Mapping[str, Any]],
        truths: Sequence[Mapping[str, Any]],
        indices: Iterable[int] | Tensor,
    ) -> None:
        """Update with the images of a batch; arrays are NumPy's or tensors on any device.

        Args:
            detections: For each image boxes (N, 4) as x1, y1, x2, y2 in pixels, scores (N,) and labels (N,); with
                masks also N compressed texts as masks.
            truths: For each image boxes (M, 4) and labels (M,), and, if there are any, crowd (M,) and areas (M,), see
                coco.Truth; with masks also M compressed texts as masks, and the size (height, width) of the image.
            indices: The images' indices in the data set; -1 if unknown.

        Raises:
            InputError: Lengths differ, a label is outside 0..K-1, or a number is not finite.
        """
        numbers = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
        if not len(numbers) == len(detections) == len(truths):
            counts = f"{len(detections)} images, truth for {len(truths)}, and {len(numbers)} indices"
            raise InputError(f"there are detections for {counts}")
        for index, found, true in zip(numbers, detections, truths, strict=True):
            record, text = self._record(index, found, true)
            self.records.append(torch.from_numpy(record).to(self.device))
            if len(text):
                self.texts.append(torch.from_numpy(text).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes."""
        # torchmetrics would take the state of a process without images for a float32.
        for name, dtype in (("records", torch.int64), ("texts", torch.uint8)):
            if isinstance(state := getattr(self, name), list) and not state:
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """The scores, float64 on the CPU; NaN where there are no true objects.

        Scalars: map, map50, map75, map_small, map_medium, map_large, ar1, ar10, ar100 (as max_dets says), ar_small,
        ar_medium, ar_large; with masks also box_map, box_map50 and box_map75. With ``repeats`` and more than 100
        objects an image also map_max100, map50_max100 and map75_max100, of the 100 best of each image and class, as
        COCO counts.

        Tables: by_class (K, 4) AP, AP50, average recall and number of true objects; precision (K, 101) over recall;
        f1 (K, 101) over the threshold; thresholds (K,) with the best F1; confusion (K + 1, K + 1) int64 at these
        thresholds; error_kinds (6,) as in detection_errors.KINDS; intervals (2, 2) of map and map50, with ``repeats``.
        """
        images = self._images(self.masks)
        evaluation = self._evaluate(images)
        scores, found = average_precision(evaluation), score_thresholds(evaluation)
        summary = dict(scores.summary)
        if self.masks:
            boxes = average_precision(self._evaluate(self._images(masks=False))).summary
            summary |= {f"box_{name}": boxes[name] for name in ("map", "map50", "map75")}
        tables: dict[str, npt.NDArray[Any]] = {
            "by_class": scores.by_class,
            "precision": scores.precision,
            "f1": found.f1,
            "thresholds": found.best,
            "confusion": confusion_matrix(evaluation, np.where(np.isnan(found.best), _UNSURE, found.best)),
            "error_kinds": error_kinds(evaluation),
        }
        if self.repeats:
            tables["intervals"] = map_intervals(evaluation, len(images), self.repeats)
        if self.repeats and self.max_dets[-1] > _USUAL:
            usual = average_precision(self._evaluate(images, (_USUAL,))).summary
            summary |= {f"{name}_max{_USUAL}": usual[name] for name in ("map", "map50", "map75")}
        scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in summary.items()}
        return scalars | {name: torch.from_numpy(table) for name, table in tables.items()}

    def _evaluate(self, images: Sequence[Image], max_dets: tuple[int, ...] | None = None) -> Evaluation:
        found, true = [image[0] for image in images], [image[1] for image in images]
        return evaluate(found, true, self.num_classes, max_dets or self.max_dets)

    def _record(
        self, index: int, found: Mapping[str, Any], true: Mapping[str, Any]
    ) -> tuple[Integers, npt.NDArray[np.uint8]]:
        """An image's record and the texts of its masks; see _unpack."""
        detections = Detections(*(_array(found[name]) for name in ("boxes", "scores", "labels")))
        truth = Truth(
            _array(true["boxes"]), _array(true["labels"]), _array(true.get("crowd")), _array(true.get("areas"))
        )
        # Wrong input is found here, and not when all images are over.
        sides = [gather([side], self.num_classes, [index]) for side in (detections, truth)]
        counts = [len(side.labels) for side in sides]
        masks: list[bytes] = []
        height, width = (int(side) for side in true["size"]) if self.masks else (0, 0)
        for name, image, count in zip(("detections", "truth"), (found, true), counts, strict=True):
            own = [
                mask.encode() if isinstance(mask, str) else bytes(mask)
                for mask in (image["masks"] if self.masks else ())
            ]
            if len(own) != count and self.masks:
                raise InputError(f"image {index}, {name}: {count} boxes, but {len(own)} masks")
            masks += own
        rle.from_texts(masks, [(height, width)] * len(masks))
        text = np.frombuffer(b"".join(masks), dtype=np.uint8).copy()
        areas = np.full(counts[1], np.nan) if truth.areas is None else np.asarray(truth.areas, dtype=np.float64)
        floats = [sides[0].shapes, sides[0].scores, sides[1].shapes, areas]
        record = [
            np.array([index, *counts, height, width, len(text)]),
            *(side.labels for side in sides),
            sides[1].crowd,
            np.array([len(mask) for mask in masks]),
            *(np.asarray(column, dtype=np.float64).ravel().view(np.int64) for column in floats),
        ]
        return np.concatenate(record, dtype=np.int64, casting="unsafe"), text

    def _images(self, masks: bool) -> list[Image]:
        """All images, sorted by index: their masks, or their boxes."""
        records, texts = (_flat(state) for state in (self.records, self.texts))
        found: dict[tuple[bool, int], Image] = {}
        reader, text = _Reader(records.astype(np.int64, copy=False)), 0
        while reader.place < len(records):
            index, *header, length = reader.take(_HEADER).tolist()
            part = texts[text : text + length].tobytes()
            image = _unpack(reader, header, part, self.masks, masks)
            # Images without an index are kept, behind the others.
            found.setdefault((index < 0, index if index >= 0 else len(found)), image)
            text += length
        return [found[key] for key in sorted(found)]


class _Reader:
    """Takes numbers from a list, from its start to its end."""

    def __init__(self, numbers: Integers) -> None:
        self.numbers = numbers
        self.place = 0

    def take(self, count: int) -> Integers:
        self.place += count
        return self.numbers[self.place - count : self.place]

    def floats(self, count: int) -> Floats:
        return self.take(count).view(np.float64)


def _unpack(reader: _Reader, header: Sequence[int], text: bytes, with_masks: bool, masks: bool) -> Image:
    """An image from its record.

    Args:
        reader: The record behind its header: labels of detections and of true objects, crowds, lengths of the masks'
            texts if there are any, then floats: boxes and scores, true boxes and areas.
        header: The number of detections, the number of true objects, height and width.
        text: All its masks.
        with_masks: Whether the record has masks.
        masks: Whether they are wanted, and not the boxes.
    """
    detected, true, height, width = header
    labels, true_labels, crowd = reader.take(detected), reader.take(true), reader.take(true)
    stops = np.cumsum(reader.take(detected + true if with_masks else 0)).tolist()
    boxes, scores = reader.floats(4 * detected).reshape(-1, 4), reader.floats(detected)
    true_boxes, areas = reader.floats(4 * true).reshape(-1, 4), reader.floats(true)
    if not masks:
        return Detections(boxes, scores, labels), Truth(true_boxes, true_labels, crowd, areas)
    pieces = [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
    shapes = rle.from_texts(pieces, [(height, width)] * len(pieces))
    return Detections(shapes[:detected], scores, labels), Truth(shapes[detected:], true_labels, crowd, areas)


def _array(values: Any) -> Any:
    if not isinstance(values, Tensor):
        return values
    # NumPy knows no bfloat16, and some devices know no float64.
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def _flat(state: list[Tensor] | Tensor) -> npt.NDArray[Any]:
    """A state, which is a list on its process, and a tensor after gathering."""
    parts = [state] if isinstance(state, Tensor) else state
    return np.concatenate([part.cpu().numpy() for part in parts]) if parts else np.zeros(0, dtype=np.uint8)
