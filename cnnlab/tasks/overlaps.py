"""Objects of many images in flat arrays, and which of them overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab import rle
from cnnlab.boxes import area, checked, pair_iou
from cnnlab.errors import InputError
from cnnlab.rle import Rle
from cnnlab.rle.runs import chunks, places

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Shapes = Floats | Sequence[Rle]
"""Boxes (N, 4) as x1, y1, x2, y2 in pixels, or N masks."""

_CHUNK = 1 << 19
"""So many pairs are compared at once, so that memory stays small."""
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_Compare = Callable[[Integers, Integers], tuple[Integers, Integers, Floats]]


class Detections(NamedTuple):
    """What was found in one image.

    Args:
        shapes: N boxes (N, 4) as x1, y1, x2, y2 in pixels, or a list of N masks.
        scores: (N,) finite numbers.
        labels: (N,) classes 0..K-1.
    """

    shapes: Shapes
    scores: npt.ArrayLike
    labels: npt.ArrayLike


class Truth(NamedTuple):
    """What there is in one image.

    Args:
        shapes: N boxes (N, 4) as x1, y1, x2, y2 in pixels, or a list of N masks.
        labels: (N,) classes 0..K-1.
        crowd: (N,) bool, whether a shape stands for many objects (COCO's iscrowd); None if no one does. Detections
            inside a crowd count neither for nor against.
        areas: (N,) square pixels, which decide whether an object is small, medium or large; None for those of the
            shapes, as is NaN. (COCO takes a mask's area for boxes too.)
    """

    shapes: Shapes
    labels: npt.ArrayLike
    crowd: npt.ArrayLike | None = None
    areas: npt.ArrayLike | None = None


class Objects(NamedTuple):
    """The detections of all images, or their true objects, sorted by image.

    Args:
        shapes: (N, 4) boxes, or N masks.
        images: (N,) each object's image, 0, 1, ...
        labels: (N,) classes.
        areas: (N,) square pixels.
        scores: (N,) of detections; zeros of true objects.
        crowd: (N,) of true objects; False of detections.
    """

    shapes: Shapes
    images: Integers
    labels: Integers
    areas: Floats
    scores: Floats
    crowd: Flags

    def take(self, order: Integers) -> Objects:
        """Some of the objects, in another order."""
        shapes = self.shapes[order] if isinstance(self.shapes, np.ndarray) else [self.shapes[i] for i in order]
        images, labels, areas, scores, crowd = self.images, self.labels, self.areas, self.scores, self.crowd
        return Objects(shapes, images[order], labels[order], areas[order], scores[order], crowd[order])


class Pairs(NamedTuple):
    """Detections and true objects of the same image that overlap, of whatever classes.

    Args:
        detections: (P,) indices.
        truths: (P,) indices.
        iou: (P,) intersection over union; for a crowd, the share of the detection that is in it.
    """

    detections: Integers
    truths: Integers
    iou: Floats


def gather(images: Sequence[Detections | Truth], num_classes: int, names: Sequence[int] | None = None) -> Objects:
    """The objects of all images in flat arrays, in the images' order.

    Args:
        images: The detections, or the truth, of each image.
        num_classes: K.
        names: The images' numbers in messages; 0, 1, ... if None.

    Raises:
        InputError: Lengths differ, a label is outside 0..K-1, a number is not finite, or there are boxes and masks.
    """
    names = range(len(images)) if names is None else names
    parts = [_of_image(name, image, num_classes) for name, image in zip(names, images, strict=True)]
    boxes = [part.shapes for part in parts if isinstance(part.shapes, np.ndarray)]
    masks = [mask for part in parts if not isinstance(part.shapes, np.ndarray) for mask in part.shapes]
    shapes: Shapes = masks or np.concatenate([np.zeros((0, 4)), *boxes])
    if masks and any(len(some) for some in boxes):
        raise InputError("boxes and masks cannot be compared: give either of them for all images")
    numbers = np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(part.labels for part in parts)])
    areas, scores = (np.concatenate([np.zeros(0), *(part[i] for part in parts)]) for i in (2, 3))
    crowd = np.concatenate([np.zeros(0, dtype=bool), *(part.crowd for part in parts)])
    own = area(shapes) if isinstance(shapes, np.ndarray) else rle.areas(shapes)
    return Objects(shapes, numbers, labels, np.where(np.isnan(areas), own, areas), scores, crowd)


class _Part(NamedTuple):
    """The objects of one image, checked; areas are NaN where they are not given."""

    shapes: Shapes
    labels: Integers
    areas: Floats
    scores: Floats
    crowd: Flags


def _of_image(number: int, image: Detections | Truth, num_classes: int) -> _Part:
    name = f"image {number}, {'detections' if isinstance(image, Detections) else 'truth'}"
    values = np.asarray(image.labels).reshape(-1)
    labels = np.nan_to_num(values).astype(np.int64)
    if (labels != values).any():
        raise InputError(f"{name}: labels must be whole numbers")
    shapes = image.shapes
    if isinstance(shapes, np.ndarray) or not len(shapes) or not isinstance(shapes[0], Rle):
        shapes = checked(shapes, f"{name}: boxes")
    areas, scores, crowd = np.full(len(labels), np.nan), np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
    if isinstance(image, Detections):
        scores = np.asarray(image.scores, dtype=np.float64).reshape(-1)
    else:
        crowd = crowd if image.crowd is None else np.asarray(image.crowd).astype(bool).reshape(-1)
        areas = areas if image.areas is None else np.asarray(image.areas, dtype=np.float64).reshape(-1)
    part = _Part(shapes, labels, areas, scores, crowd)
    if len({len(column) for column in part}) > 1:
        lengths = ", ".join(f"{len(column)} {field}" for field, column in zip(part._fields, part, strict=True))
        raise InputError(f"{name}: all columns must have the same length, not {lengths}")
    if not np.isfinite(scores).all():
        raise InputError(f"{name}: a score is NaN or infinite")
    for label in labels[(labels < 0) | (labels >= num_classes)][:1]:
        raise InputError(f"{name}: label {label} is outside 0..{num_classes - 1}")
    return part


def overlapping(detections: Objects, truths: Objects, minimum: float) -> Pairs:
    """All pairs of a detection and a true object of the same image that overlap.

    Args:
        detections: Boxes or masks.
        truths: The same.
        minimum: The smallest IoU, above 0.

    Raises:
        InputError: Boxes would be compared with masks, or masks of an image have different sizes.
    """
    nothing = np.zeros(0, dtype=np.int64)
    parts: list[tuple[Integers, Integers, Floats]] = [(nothing, nothing, np.zeros(0))]
    compare = _comparison(detections, truths, minimum)
    first, last = (np.searchsorted(truths.images, detections.images, side=side) for side in _SIDES)
    for part in chunks(last - first, _CHUNK):
        counts = (last - first)[part]
        found = np.repeat(np.arange(part.start, part.stop), counts)
        true = np.repeat(first[part], counts) + places(counts)
        found, true, values = compare(found, true)
        kept = values >= minimum
        parts.append((found[kept], true[kept], values[kept]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _comparison(detections: Objects, truths: Objects, minimum: float) -> _Compare:
    """A function that returns those of given pairs that may have the minimum, and their IoU."""
    found, true = detections.shapes, truths.shapes
    if isinstance(found, np.ndarray) and isinstance(true, np.ndarray):
        return lambda i, j: (i, j, pair_iou(found[i], true[j], truths.crowd[j]))
    if isinstance(found, np.ndarray) or isinstance(true, np.ndarray):
        if len(found) and len(true):
            raise InputError("boxes cannot be compared with masks: give either of them for detections and truth")
        return lambda i, j: (i, j, np.zeros(len(i)))
    return _mask_comparison(found, true, truths.crowd, minimum)


def _mask_comparison(found: Sequence[Rle], true: Sequence[Rle], crowd: Flags, minimum: float) -> _Compare:
    """See _comparison. What masks have in common is counted only where their bounding boxes overlap enough."""
    boxes = [rle.bounding_boxes(masks) for masks in (found, true)]
    areas = [rle.areas(masks) for masks in (found, true)]

    def ratio(i: Integers, j: Integers, common: Integers) -> Floats:
        union = np.where(crowd[j], areas[0][i], areas[0][i] + areas[1][j] - common)
        return common / np.maximum(union, 1)

    def compare(i: Integers, j: Integers) -> tuple[Integers, Integers, Floats]:
        own, other = boxes[0][i], boxes[1][j]
        ends = np.minimum(own[:, :2] + own[:, 2:], other[:, :2] + other[:, 2:])
        shared = (ends - np.maximum(own[:, :2], other[:, :2])).clip(min=0).prod(axis=1)
        most = np.minimum(shared, np.minimum(areas[0][i], areas[1][j]))
        near = np.flatnonzero(ratio(i, j, most) >= minimum)
        i, j = i[near], j[near]
        return i, j, ratio(i, j, rle.intersections(found, true, np.stack([i, j], axis=1)))

    return compare
