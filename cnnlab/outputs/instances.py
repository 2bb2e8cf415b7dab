"""Instances: any number of objects in an image, each with a class, a score, a box and a mask."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab import rle
from cnnlab.imaging import ImageSource, Pixels, Place, as_png, palette
from cnnlab.outputs.base import Arrays, Marks
from cnnlab.outputs.boxes import Boxes, draw_boxes, sigmoid

_COLUMNS = 6
"""A truth's columns before the masks: see Boxes."""
_STRENGTH = 0.45
"""The share of the class's color in an object that is drawn."""


class InstancePrediction(NamedTuple):
    """The objects of an image, those with the highest scores first."""

    path: str
    """The image's file, "" if it has none."""
    boxes: npt.NDArray[np.float32]
    """See BoxPrediction."""
    scores: npt.NDArray[np.float32]
    """(N,), 0..1."""
    labels: npt.NDArray[np.int64]
    """(N,), the numbers of their classes."""
    names: list[str]
    """The names of their classes."""
    certain: npt.NDArray[np.bool_]
    """(N,), whether the score reaches the threshold of the class."""
    masks: list[rle.Crop]
    """Each object's mask in the image."""
    size: tuple[int, int]
    """Height and width of the image that boxes and masks are in."""

    def texts(self) -> list[bytes]:
        """Each mask as COCO's compressed text."""
        return rle.to_texts([rle.encode_crop(mask, self.size) for mask in self.masks])


class Instances(Boxes):
    """See Boxes; and masks (B, N, 28, 28), uint8 0..255, as grids over regions (B, N, 4) in pixels of the input.

    Args:
        names: See Boxes.
        thresholds: See Boxes.
        count: See Boxes.
        nms: See Boxes.
        category_ids: See Boxes.
        tiled: See Boxes.
    """

    kind = "instances"
    arrays = ("boxes", "scores", "labels", "masks", "regions")
    raw_arrays = ("found_boxes", "found_scores", "found_labels", "regions", "mask_logits")
    raw_row = "regions"

    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The raw outputs of models.instance_detector.InstanceDetector, as models.instance_decoder does it."""
        probabilities = sigmoid(raw["mask_logits"])
        inside = probabilities >= 0.5
        area = inside.sum(axis=(2, 3))
        certainty = (probabilities * inside).sum(axis=(2, 3)) / area.clip(1)
        scores = raw["found_scores"] * certainty.astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")
        boxes = np.where(area[..., None] > 0, _tight(probabilities, raw["regions"]), raw["found_boxes"])
        arrays = {
            "boxes": boxes.astype(np.float32),
            "scores": scores,
            "labels": raw["found_labels"],
            "masks": np.rint(probabilities * 255).astype(np.uint8),
            "regions": raw["regions"],
        }
        return {
            name: np.take_along_axis(value, order.reshape(*order.shape, *[1] * (value.ndim - 2)), axis=1)
            for name, value in arrays.items()
        }

    def answer(self, own: Arrays, path: str, place: Place | None) -> InstancePrediction:  # type: ignore[override]
        """See Boxes; and the masks."""
        regions = own["regions"].astype(np.float64)
        if place is None:
            # Only for pictures: the answers lie within the input, whose size is not known here.
            height, width = (int(side) + 1 for side in regions[:, [3, 2]].max(axis=0, initial=1.0))
        else:
            height, width = place.size
            down, right = height / place.covers[0], width / place.covers[1]
            regions = regions * [right, down, right, down]
        masks = [
            rle.paste(mask, region.tolist(), (height, width))
            for mask, region in zip(own["masks"], regions, strict=True)
        ]
        return InstancePrediction(*super().answer(own, path, place), masks, (height, width))

    def joined(self, answer: Any, groups: Sequence[npt.NDArray[np.int64]]) -> Any:
        """See Boxes; a mask is the union of its parts."""
        masks = [
            answer.masks[group[0]] if len(group) == 1 else _union([answer.masks[part] for part in group.tolist()])
            for group in groups
        ]
        return super().joined(answer, groups)._replace(masks=masks)

    @property
    def columns(self) -> list[str]:
        """See Boxes; and the mask's area in pixels, and the mask as COCO's compressed text."""
        return [*super().columns, "area", "mask"]

    def rows(self, answer: Any, truth: npt.NDArray[Any] | None, files: Mapping[str, str]) -> list[list[object]]:
        """A row for each object."""
        rows = super().rows(answer, truth, files)
        both = zip(rows, answer.masks, answer.texts(), strict=True)
        return [[*row, int(mask.bitmap.sum()), text.decode()] for row, mask, text in both]

    def files(
        self, answer: Any, image: ImageSource, overlays: bool, probabilities: bool
    ) -> Iterator[tuple[str, str, bytes]]:
        """masks/NAME.png: the number of each pixel's object among those that reach their threshold, from 1; 0 is none.

        With overlays, overlays/NAME.png is the image with its objects.
        """
        numbers = np.zeros(answer.size, dtype=np.uint16)
        for number in np.flatnonzero(answer.certain)[::-1].tolist():
            _window(numbers, answer.masks[number])[answer.masks[number].bitmap] = 1 + number
        file = io.BytesIO()
        Image.fromarray(numbers).save(file, format="png")
        yield "masks", ".png", file.getvalue()
        if overlays:
            yield "overlays", ".png", as_png(Image.fromarray(self._found(image.read(), answer)))

    def picture(self, pixels: Pixels, answer: Any, truth: npt.NDArray[Any] | None) -> Pixels:
        """The image with the boxes of its true objects, if they are known, and beside it with the predicted ones."""
        found = self._found(pixels, answer)
        return found if truth is None else np.concatenate([self.drawn(pixels, truth), found], axis=1)

    def marks(self, answer: Any, truth: npt.NDArray[Any] | None) -> dict[str, Marks]:
        """See Boxes; and the classes of the masks' pixels."""
        found = super().marks(answer, truth)
        mask = np.zeros(answer.size, dtype=np.uint8)
        for number in np.flatnonzero(answer.certain)[::-1].tolist():
            _window(mask, answer.masks[number])[answer.masks[number].bitmap] = 1 + answer.labels[number] % 255
        return {**found, "prediction": found["prediction"]._replace(mask=mask)}

    def difference(self, expected: Arrays, found: Arrays) -> float:
        """See Boxes; and the largest share of a mask's cells that change sides, in the objects that are matched."""
        worst = super().difference(expected, found)
        if self._are_rows(expected, found):
            return worst
        expected, found = self._decoded(expected), self._decoded(found)
        for i in range(len(expected["scores"])):
            for a, b in self.pairs(expected, found, i):
                first, second = (each["masks"][i][n].astype(np.int64) for each, n in ((expected, a), (found, b)))
                # A step of rounding may cross the limit.
                if np.abs(first - second).max() > 1:
                    worst = float(np.max([worst, np.mean((first >= 128) != (second >= 128))]))
        return worst

    def drawn(self, pixels: Pixels, target: npt.NDArray[Any]) -> Pixels:
        """The image with its objects; the target may have their masks as grids over their boxes, behind the box."""
        if self.known(target) is None or target.shape[1] <= _COLUMNS or not len(target):
            return super().drawn(pixels, target)
        side = math.isqrt(target.shape[1] - _COLUMNS)
        grids = target[:, _COLUMNS:].astype(np.uint8).reshape(-1, side, side)
        size = (pixels.shape[0], pixels.shape[1])
        masks = [rle.paste(grid, box, size) for grid, box in zip(grids, target[:, :4].tolist(), strict=True)]
        return self._draw(pixels, masks, target[:, :4], target[:, 4].astype(np.int64))

    def _found(self, pixels: Pixels, answer: Any) -> Pixels:
        """The image with the certain objects of an answer."""
        masks = [answer.masks[number] for number in np.flatnonzero(answer.certain).tolist()]
        return self._draw(pixels, masks, answer.boxes[answer.certain], answer.labels[answer.certain])

    def _draw(
        self, pixels: Pixels, masks: Sequence[rle.Crop], boxes: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> Pixels:
        """The image with masks in the colors of their classes, and their boxes."""
        colors = palette(len(self.names)).astype(np.float32)
        drawn = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float32)
        for mask, label in zip(masks, labels.tolist(), strict=True):
            window = _window(drawn, mask)
            own = mask.bitmap[: window.shape[0], : window.shape[1]]
            window[own] = window[own] * (1 - _STRENGTH) + colors[label] * _STRENGTH
        return draw_boxes(np.rint(drawn).astype(np.uint8), boxes, labels, len(self.names))


def _union(masks: Sequence[rle.Crop]) -> rle.Crop:
    """The pixels of all masks."""
    top, left = min(mask.top for mask in masks), min(mask.left for mask in masks)
    bottom, right = (max(mask[axis] + mask.bitmap.shape[axis] for mask in masks) for axis in (0, 1))
    whole = rle.Crop(top, left, np.zeros((bottom - top, right - left), dtype=bool))
    for mask in masks:
        _window(whole.bitmap, mask._replace(top=mask.top - top, left=mask.left - left))[...] |= mask.bitmap
    return whole


def _window(image: npt.NDArray[Any], mask: rle.Crop) -> npt.NDArray[Any]:
    """The part of an image that a mask's bitmap lies on."""
    rows, columns = mask.bitmap.shape
    return image[mask.top : mask.top + rows, mask.left : mask.left + columns]


def _tight(probabilities: npt.NDArray[Any], regions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """See models.instance_decoder."""
    side = probabilities.shape[-1]
    ends = []
    for axis in (2, 3):
        framed = np.pad(probabilities.max(axis=axis), ((0, 0), (0, 0), (1, 1)))
        inside = framed[..., 1:-1] >= 0.5
        first, last = inside.argmax(axis=-1)[..., None], side - 1 - inside[..., ::-1].argmax(axis=-1)[..., None]
        low = first + 0.5 - _beyond(framed, first + 1, first)
        high = last + 0.5 + _beyond(framed, last + 1, last + 2)
        ends.append((low[..., 0] / side, high[..., 0] / side))
    start, extent = regions[..., :2], regions[..., 2:] - regions[..., :2]
    low, high = (np.stack([ends[0][i], ends[1][i]], axis=-1) for i in (0, 1))
    return np.concatenate([start + low * extent, start + high * extent], axis=-1)


def _beyond(values: npt.NDArray[Any], inner: npt.NDArray[np.int64], outer: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    near, far = np.take_along_axis(values, inner, axis=-1), np.take_along_axis(values, outer, axis=-1)
    found: npt.NDArray[Any] = (near - 0.5) / (near - far).clip(1e-6)
    return found
