"""Boxes: any number of objects in an image, each with a class, a score and a box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cnnlab.boxes import iou, matched, seam_groups, suppress
from cnnlab.errors import InputError
from cnnlab.imaging import ImageSource, Pixels, Place, as_png, palette
from cnnlab.outputs.base import Arrays, Marks, Output
from cnnlab.outputs.near_ties import nearest_objects

_THRESHOLD = 0.5
"""The score from which an object counts, if none has been found for its class."""
_IOU = 0.5
"""The least IoU of a found box and the object that it stands for."""

_MOVED = 1e-3
"""How far the place of a row may move by rounding, as a share of its coordinate, or in pixels below 1."""


class BoxPrediction(NamedTuple):
    """The objects of an image, those with the highest scores first."""

    path: str
    """The image's file, "" if it has none."""
    boxes: npt.NDArray[np.float32]
    """(N, 4), x1, y1, x2, y2 in pixels of the image; its top left corner is 0, 0."""
    scores: npt.NDArray[np.float32]
    """(N,), 0..1."""
    labels: npt.NDArray[np.int64]
    """(N,), the numbers of their classes."""
    names: list[str]
    """The names of their classes."""
    certain: npt.NDArray[np.bool_]
    """(N,), whether the score reaches the threshold of the class."""


class Boxes(Output):
    """The boxes (B, N, 4), scores (B, N) and labels (B, N) of each image's objects; a score of 0 stands for no object.

    Boxes are x1, y1, x2, y2 in pixels of the network's input. Truths are (M, 6): such a box, the class's number, and 1
    for a crowd of objects.

    Args:
        names: The classes in order.
        thresholds: For each class the score from which an object is shown and counted; 0.5 if None.
        count: N.
        nms: The largest IoU of two boxes of one class.
        category_ids: COCO's number of each class, for COCO's results; 0, 1, 2, ... if None.
        tiled: Whether there are also windows (B, N, 4), the part of a large image in which each object was found; then
            parts of an object that a border has cut are joined.
    """

    kind = "boxes"
    arrays: tuple[str, ...] = ("boxes", "scores", "labels")
    raw_arrays: tuple[str, ...] = ("logits", "boxes", "places")
    raw_row = "places"
    """The raw array that says what each row of the raw outputs is about."""
    placed = True
    has_ties = True

    def __init__(
        self,
        names: Sequence[str],
        thresholds: Sequence[float] | None = None,
        count: int = 100,
        nms: float = 0.6,
        category_ids: Sequence[int] | None = None,
        tiled: bool = False,
    ) -> None:
        super().__init__(names)
        self.tiled = tiled
        if tiled:
            self.arrays = (*self.arrays, "windows")
        self.thresholds = [_THRESHOLD] * len(self.names) if thresholds is None else list(thresholds)
        self.count = count
        self.nms = nms
        self.category_ids = None if category_ids is None else list(category_ids)
        self.least = 0.0
        """Objects with lower scores are left out."""

    def limited(self, least: float) -> Self:
        """The same answers, with only the objects whose scores are ``least``, 0..1, or more."""
        if not 0 <= least <= 1:
            raise InputError(f"conf is {least}, expected 0 to 1")
        limited = copy(self)
        limited.thresholds, limited.least = [least] * len(self.names), least
        return limited

    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The raw outputs of models.detector.Detector to boxes, as models.box_decoder does it."""
        scores = sigmoid(raw["logits"])
        batch, _, classes = scores.shape
        found: dict[str, npt.NDArray[Any]] = {
            "boxes": np.zeros((batch, self.count, 4), np.float32),
            "scores": np.zeros((batch, self.count), np.float32),
            "labels": np.zeros((batch, self.count), np.int64),
        }
        for i, flat in enumerate(scores.reshape(batch, -1)):
            best = np.argsort(-flat, kind="stable")[: 3 * self.count]
            # Each class may have boxes of its own.
            own, place = raw["boxes"][i], best // classes
            boxes, labels = own.reshape(-1, 4)[best if own.ndim == 3 else place], best % classes
            kept = suppress(boxes, flat[best], labels, self.nms)[: self.count]
            for name, values in (("boxes", boxes), ("scores", flat[best]), ("labels", labels)):
                found[name][i, : len(kept)] = values[kept]
        return found

    def answers(self, arrays: Arrays, paths: Sequence[str], places: Sequence[Place | None]) -> list[BoxPrediction]:
        """Each image's objects, in pixels of the original image, clipped to it; those beside it are left out."""
        found = []
        for i, (path, place) in enumerate(zip(paths, places, strict=True)):
            there = (arrays["scores"][i] > 0) & (arrays["scores"][i] >= self.least)
            if place is not None:
                boxes = to_original(arrays["boxes"][i], place)
                there &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            own = {name: values[i][there] for name, values in arrays.items()}
            found.append(self.answer(own, path, place))
            if self.tiled and "windows" in own:
                groups = seam_groups(own["boxes"].astype(np.float64), own["labels"], own["windows"].astype(np.float64))
                found[-1] = self.joined(found[-1], groups)
        return found

    def joined(self, answer: Any, groups: Sequence[npt.NDArray[np.int64]]) -> Any:
        """An answer in which each group of objects is one, with the highest score of its parts."""
        first = np.array([group[0] for group in groups], dtype=np.int64)
        parts = [answer.boxes[group] for group in groups]
        boxes = [np.concatenate([part[:, :2].min(axis=0), part[:, 2:].max(axis=0)]) for part in parts]
        return answer._replace(
            boxes=np.array(boxes, dtype=answer.boxes.dtype).reshape(-1, 4),
            scores=answer.scores[first],
            labels=answer.labels[first],
            names=[answer.names[number] for number in first.tolist()],
            certain=answer.certain[first],
        )

    def answer(self, own: Arrays, path: str, place: Place | None) -> BoxPrediction:
        """The objects of one image.

        Args:
            own: The decoded arrays, N first.
            path: The image's file, "" if it has none.
            place: Where the original image lies in the input; the answer stays in pixels of the input if None.
        """
        boxes, scores, labels = own["boxes"], own["scores"], own["labels"]
        if place is not None:
            boxes = to_original(boxes, place)
        names = [self.names[label] for label in labels.tolist()]
        certain = scores >= np.array(self.thresholds, dtype=np.float32)[labels]
        return BoxPrediction(path, boxes, scores, labels, names, certain)

    @property
    def columns(self) -> list[str]:
        """An object's class, score and box, and whether its score reaches the threshold of its class."""
        return ["label", "name", "score", "certain", "x1", "y1", "x2", "y2"]

    def rows(
        self, answer: BoxPrediction, truth: npt.NDArray[Any] | None, files: Mapping[str, str]
    ) -> list[list[object]]:
        """A row for each object."""
        return [
            [label, name, f"{score:.6g}", int(certain), *(f"{side:.7g}" for side in box)]
            for label, name, score, certain, box in zip(
                answer.labels.tolist(),
                answer.names,
                answer.scores.tolist(),
                answer.certain,
                answer.boxes.tolist(),
                strict=True,
            )
        ]

    def files(
        self, answer: BoxPrediction, image: ImageSource, overlays: bool, probabilities: bool
    ) -> Iterator[tuple[str, str, bytes]]:
        """overlays/NAME.png: the image with its objects."""
        if overlays:
            shown = answer.certain
            drawn = draw_boxes(
                image.read(), answer.boxes[shown], answer.labels[shown], len(self.names), self._texts(answer)
            )
            yield "overlays", ".png", as_png(Image.fromarray(drawn))

    def describe(self, answer: BoxPrediction, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """How many objects there are, how many were found, and how many others."""
        found = int(answer.certain.sum())
        if truth is None:
            return {"found": found}
        hits, missed, false = self._compare(answer, truth)
        return {"objects": hits + missed, "found": hits, "missed": missed, "false": false}

    def caption(self, answer: BoxPrediction, truth: npt.NDArray[Any] | None) -> str:
        """How many objects of each class were found; with a truth, how many were missed, and how many are none."""
        if truth is None:
            return self._counts(answer.labels[answer.certain])
        hits, missed, false = self._compare(answer, truth)
        return f"{hits} of {hits + missed} found\n{false} false"

    def is_right(self, answer: BoxPrediction, truth: npt.NDArray[Any] | None) -> bool | None:
        """Whether all objects were found, and no others."""
        if truth is None:
            return None
        _, missed, false = self._compare(answer, truth)
        return missed == false == 0

    def picture(self, pixels: Pixels, answer: BoxPrediction, truth: npt.NDArray[Any] | None) -> Pixels:
        """The image with its true objects, if they are known, and beside it with the predicted ones."""
        shown, count = answer.certain, len(self.names)
        found = draw_boxes(pixels, answer.boxes[shown], answer.labels[shown], count, self._texts(answer))
        return found if truth is None else np.concatenate([self.drawn(pixels, truth), found], axis=1)

    def marks(self, answer: BoxPrediction, truth: npt.NDArray[Any] | None) -> dict[str, Marks]:
        """The certain objects, and the true ones."""
        shown = answer.certain
        found = {"prediction": Marks(answer.boxes[shown], answer.labels[shown], answer.scores[shown])}
        if truth is not None:
            found["truth"] = Marks(truth[:, :4], truth[:, 4].astype(np.int64))
        return found

    def drawn(self, pixels: Pixels, target: npt.NDArray[Any]) -> Pixels:
        """The image with its objects."""
        if self.known(target) is None:
            return pixels
        return draw_boxes(pixels, target[:, :4], target[:, 4].astype(np.int64), len(self.names))

    def label(self, target: npt.NDArray[Any]) -> str:
        """How many objects of each class there are."""
        return "" if self.known(target) is None else self._counts(target[:, 4].astype(np.int64))

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """None if the objects are unknown."""
        return None if np.isnan(target).any() else target

    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """The class with the most objects in each image; None for the predicted one."""
        return [
            None if truth is None or not len(truth) else int(np.bincount(truth[:, 4].astype(np.int64)).argmax())
            for truth in truths
        ]

    def certainty(self, arrays: Arrays, name: int) -> str:
        """The highest score of the class."""
        scores = arrays["scores"][0][arrays["labels"][0] == name]
        return f"{scores.max(initial=0.0):.0%}"

    def difference(self, expected: Arrays, found: Arrays) -> float:
        """The greatest difference of a score, or of a box's side in shares of the box, of objects that are matched.

        An object that only one side has counts with its score. Raw outputs are compared number by number, each in
        shares of itself where it is above 1. Some networks choose their rows by scores, such as Faster R-CNN its
        proposals, so that rounding may change their order. If the rows differ in their places, decoded objects are
        compared.
        """
        if self._are_rows(expected, found):
            scales = {name: np.maximum(np.abs(value), 1.0) for name, value in expected.items()}
            return super().difference(*({n: each[n] / scales[n] for n in scales} for each in (expected, found)))
        expected, found = self._decoded(expected), self._decoded(found)
        worst = 0.0
        for i in range(len(expected["scores"])):
            first, second = (_of_image(arrays, i) for arrays in (expected, found))
            if not all(np.isfinite(values).all() for values in (*first, *second)):
                return float("nan")
            pairs = self.pairs(expected, found, i)
            for side, own in enumerate((first, second)):
                alone = np.setdiff1d(np.arange(len(own[1])), [pair[side] for pair in pairs])
                # Where the other list ends, rounding decides which of two objects with nearly equal scores is in it.
                other = (second, first)[side][1]
                last = other.min(initial=1.0) if len(other) >= self.count else 0.0
                worst = max(worst, float((own[1][alone] - last).max(initial=0.0)))
            for a, b in pairs:
                sides = np.maximum(first[0][a, 2:] - first[0][a, :2], 1.0)
                apart = np.abs(first[0][a] - second[0][b]) / np.tile(sides, 2)
                worst = max(worst, float(apart.max()), abs(float(first[1][a] - second[1][b])))
        return worst

    def pairs(self, expected: Arrays, found: Arrays, i: int) -> npt.NDArray[np.int64]:
        """The objects of an image (P, 2) that are the same in two decoded batches."""
        first, second = (_of_image(arrays, i) for arrays in (expected, found))
        return matched(first[0].astype(np.float64), second[0].astype(np.float64), _IOU, (first[2], second[2]))

    def line(self, answer: BoxPrediction) -> str:
        """How many objects of each class there are."""
        return self._counts(answer.labels[answer.certain], len(self.names)).replace("\n", ", ")

    def nearest(self, answers: Sequence[Arrays], found: Arrays) -> Arrays:
        """See Output; object by object."""
        if self._are_rows(answers[0], found):
            return answers[0]
        return nearest_objects([self._decoded(answer) for answer in answers], self._decoded(found), self.nms)

    def _are_rows(self, expected: Arrays, found: Arrays) -> bool:
        """Whether both are raw outputs whose rows are about the same places."""
        if "scores" in expected or "scores" in found:
            return False
        if not all(np.isfinite(values).all() for values in (*expected.values(), *found.values())):
            return True  # Number by number, since none is left out then.
        first, second = (each[self.raw_row] for each in (expected, found))
        return first.shape == second.shape and bool((np.abs(first - second) <= _MOVED * np.abs(first).clip(1)).all())

    def _decoded(self, arrays: Arrays) -> Arrays:
        return arrays if "scores" in arrays else self.decode(arrays)

    def _counts(self, labels: npt.NDArray[np.int64], most: int = 3) -> str:
        counts = np.bincount(labels, minlength=len(self.names))
        ranked = np.argsort(-counts, kind="stable")[:most]
        return "\n".join(f"{counts[i]} {self.names[i]}" for i in ranked if counts[i]) or "-"

    def _texts(self, answer: BoxPrediction) -> list[str]:
        shown = zip(answer.names, answer.scores.tolist(), answer.certain.tolist(), strict=True)
        return [f"{name} {score:.0%}" for name, score, certain in shown if certain]

    def _compare(self, answer: BoxPrediction, truth: npt.NDArray[Any]) -> tuple[int, int, int]:
        """The objects that were found, those that were missed, and the boxes that are no objects."""
        certain, single = answer.certain, truth[:, 5] == 0
        true, crowds = (truth[chosen].astype(np.float64) for chosen in (single, ~single))
        boxes, labels = answer.boxes[certain].astype(np.float64), answer.labels[certain]
        hits = matched(boxes, true[:, :4], _IOU, (labels, true[:, 4].astype(np.int64)))
        rest = np.setdiff1d(np.arange(len(boxes)), [pair[0] for pair in hits])
        in_crowd = iou(boxes[rest], crowds[:, :4], np.ones(len(crowds), bool)).max(axis=1, initial=0.0) >= _IOU
        return len(hits), len(true) - len(hits), len(rest) - int(in_crowd.sum())


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits to 0..1, float32; exactly 0 for those of what is no object.

    >>> sigmoid(np.array([0.0, -1e4])).tolist()
    [0.5, 0.0]
    """
    with np.errstate(over="ignore"):
        found: npt.NDArray[Any] = 1 / (1 + np.exp(-logits.astype(np.float32)))
    return found


def to_original(boxes: npt.NDArray[np.floating], place: Place) -> npt.NDArray[np.floating]:
    """Boxes (N, 4) in a network's input as boxes in the original image, clipped to it.

    >>> to_original(np.array([[10.0, 10.0, 400.0, 20.0]]), Place((480, 640), (240, 320))).tolist()
    [[20.0, 20.0, 640.0, 40.0]]
    """
    (height, width), (rows, columns) = place
    scaled: npt.NDArray[np.floating] = boxes * np.tile(np.array([width / columns, height / rows], dtype=boxes.dtype), 2)
    return scaled.clip(0, np.array([width, height, width, height], dtype=boxes.dtype))


def draw_boxes(
    pixels: Pixels,
    boxes: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    count: int,
    texts: Sequence[str] | None = None,
) -> Pixels:
    """Draw boxes on an image, each in the color of its class.

    Args:
        pixels: (H, W, 3) or (H, W, 1), 0..255.
        boxes: (N, 4), x1, y1, x2, y2.
        labels: (N,), 0..count-1.
        count: The number of classes.
        texts: A text for each box; none if None.

    Returns:
        (H, W, 3).
    """
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    draw, colors = ImageDraw.Draw(image), palette(count).tolist()
    line = max(1, round(min(image.size) / 200))
    for place, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        color = tuple(colors[label])
        left, top, right, bottom = box
        draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=color, width=line)
        if texts is not None:
            where = (left + line + 1, top + line)
            draw.rectangle(draw.textbbox(where, texts[place]), fill=color)
            draw.text(where, texts[place], fill="white")
    return np.asarray(image)


def _of_image(arrays: Arrays, i: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    there = arrays["scores"][i] != 0
    return arrays["boxes"][i][there], arrays["scores"][i][there], arrays["labels"][i][there]
