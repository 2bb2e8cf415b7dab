"""COCO's average precision of boxes and masks, with the digits of pycocotools.

Three steps: detections of an image and class are matched with true objects (evaluate), each class's detections of all
images are put in the order of their scores (average_precision), and the classes are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnnlab.errors import InputError
from cnnlab.tasks.overlaps import Detections, Flags, Floats, Integers, Objects, Pairs, Truth, gather, overlapping

__all__ = [
    "AREAS",
    "NEAR",
    "RECALLS",
    "THRESHOLDS",
    "Detections",
    "Evaluation",
    "Matches",
    "Scores",
    "Truth",
    "average_precision",
    "by_class",
    "evaluate",
    "mean",
    "precision_at_recalls",
]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The IoUs from which on a detection is a hit."""
RECALLS = np.linspace(0, 1, 101)
"""Precision is read at these recalls."""
AREAS = {"": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Square pixels of an object, from and to; both ends count."""
NEAR = 0.1
"""Pairs with less IoU are not looked at, neither here nor for the kinds of errors."""

# A lane is a threshold and a range of areas. Each is matched for itself: a bit of a number says what happened in it.
_LANES = [(area, threshold) for area in range(len(AREAS)) for threshold in range(len(THRESHOLDS))]
_ALL = (1 << len(_LANES)) - 1


class Matches(NamedTuple):
    """What became of each detection in each lane: bit ``len(THRESHOLDS) * area + threshold``.

    Args:
        hits: (D,) The detection has found an object that counts.
        left_out: (D,) It counts neither for nor against: it has found a crowd, or an object of another size, or is of
            another size itself and has found nothing.
        truths: (D,) The object that it has found at an IoU of 0.5, of all sizes, or the crowd; -1 if there is none.
    """

    hits: Integers
    left_out: Integers
    truths: Integers

    def lane(self, area: int = 0, threshold: int = 0) -> tuple[Flags, Flags]:
        """Which detections (D,) are hits, and which ones are left out, for a range of areas and a threshold."""
        bit = len(THRESHOLDS) * area + threshold
        return self.hits >> bit & 1 == 1, self.left_out >> bit & 1 == 1


class Evaluation(NamedTuple):
    """Detections that are matched with true objects.

    Args:
        detections: Those that count, sorted by image and class, and by falling score.
        ranks: (D,) each one's place in its image and class, from 0.
        truths: The true objects, sorted by image.
        pairs: Which of them overlap, of the same image and whatever classes.
        matches: What became of the detections.
        num_classes: K.
        max_dets: How many detections of an image and class count, rising.
    """

    detections: Objects
    ranks: Integers
    truths: Objects
    pairs: Pairs
    matches: Matches
    num_classes: int
    max_dets: tuple[int, ...]


class Scores(NamedTuple):
    """COCO's scores; NaN where there are no true objects.

    Args:
        summary: map, map50, map75, map_small, map_medium, map_large; the average recall ar1, ar10, ar100 for
            ``max_dets`` (1, 10, 100); ar_small, ar_medium and ar_large.
        by_class: (K, 4) each class's AP, AP50 and average recall, and the number of its true objects without crowds.
        precision: (K, 101) the precision at each of RECALLS, at an IoU of 0.5.
    """

    summary: dict[str, float]
    by_class: Floats
    precision: Floats


def evaluate(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    num_classes: int,
    max_dets: Sequence[int] = (1, 10, 100),
) -> Evaluation:
    """Match the detections of images with their true objects.

    Equal scores keep their order.

    Args:
        detections: Those of each image.
        truths: The true objects of each image, in the same order.
        num_classes: K; labels are 0..K-1.
        max_dets: How many detections of an image and class count, those with the highest scores. Average precision
            takes the largest number.

    Raises:
        InputError: Lengths differ, a label is outside 0..K-1, a number is NaN or infinite, or max_dets has no number,
            or one below 1.
    """
    limits = tuple(sorted(set(max_dets)))
    if not limits or limits[0] < 1:
        raise InputError(f"max_dets must be numbers from 1 on, not {list(max_dets)}")
    if len(detections) != len(truths):
        raise InputError(f"there are detections for {len(detections)} images, and truth for {len(truths)}")
    found, true = gather(detections, num_classes), gather(truths, num_classes)
    order = np.lexsort((-found.scores, found.labels, found.images))
    group = (found.images * num_classes + found.labels)[order]
    ranks = np.arange(len(group)) - np.searchsorted(group, group)
    kept = ranks < limits[-1]
    found, ranks = found.take(order[kept]), ranks[kept]
    pairs = overlapping(found, true, NEAR)
    return Evaluation(found, ranks, true, pairs, _match(found, true, pairs), num_classes, limits)


def average_precision(evaluation: Evaluation) -> Scores:
    """COCO's scores of all classes together, and of each."""
    thresholds, areas = len(THRESHOLDS), len(AREAS)
    classes, limits = evaluation.num_classes, evaluation.max_dets
    precision = np.full((areas, thresholds, classes, len(RECALLS)), np.nan)
    recall = np.full((len(limits), areas, thresholds, classes), np.nan)
    positives = _positives(evaluation.truths, classes)
    for label, order in by_class(evaluation):
        matches = Matches(*(column[order] for column in evaluation.matches))
        ranks = evaluation.ranks[order]
        for area, threshold in _LANES:
            if count := positives[area, label]:
                hits, left_out = matches.lane(area, threshold)
                precision[area, threshold, label] = precision_at_recalls(hits[~left_out], count)
                recall[:, area, threshold, label] = [(hits & (ranks < limit)).sum() / count for limit in limits]
    by_label = [precision[0].mean(axis=(0, 2)), precision[0, 0].mean(axis=1), recall[-1, 0].mean(axis=0), positives[0]]
    return Scores(_summary(precision, recall, limits), np.stack(by_label, axis=1), precision[0, 0])


def by_class(evaluation: Evaluation) -> Iterator[tuple[int, Integers]]:
    """Each class, and its detections of all images in falling order of their scores; equal ones keep their order."""
    labels = evaluation.detections.labels
    order = np.lexsort((-evaluation.detections.scores, labels))
    bounds = np.searchsorted(labels[order], np.arange(evaluation.num_classes + 1))
    for label in range(evaluation.num_classes):
        yield label, order[bounds[label] : bounds[label + 1]]


def precision_at_recalls(hits: Flags, positives: int) -> Floats:
    """The precision at each of RECALLS: the largest one at this recall or a higher one, 0 where it is not reached.

    Args:
        hits: (D,) whether each detection is a hit, in falling order of their scores.
        positives: The number of objects that could have been found.
    """
    places = np.flatnonzero(hits)
    found = np.arange(1, len(places) + 1)
    # The smallest of numbers is pycocotools'.
    precision = found / (places + 1 + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(best, 0.0)[np.searchsorted(found / positives, RECALLS)]


def _match(detections: Objects, truths: Objects, pairs: Pairs) -> Matches:
    """Match the detections of each class, in falling order of their scores.

    A detection takes the free object with the largest IoU, the later one of equal ones. It takes one that does not
    count, in a lane, only if there is none that counts. A crowd is never used up.
    """
    reached = np.searchsorted(THRESHOLDS, pairs.iou, side="right")
    kept = np.flatnonzero((reached > 0) & (detections.labels[pairs.detections] == truths.labels[pairs.truths]))
    kept = kept[np.lexsort((-pairs.truths[kept], -pairs.iou[kept], pairs.detections[kept]))]
    lanes_reached = _lanes_of_thresholds()[reached[kept]].tolist()
    objects, crowd = pairs.truths[kept].tolist(), truths.crowd.tolist()
    counted = _ALL & ~_outside(truths.areas) & np.where(truths.crowd, 0, _ALL)
    rounds = counted.tolist(), (_ALL & ~counted).tolist()
    free = [_ALL] * len(crowd)
    hits, ignored, partners = (np.full(len(detections.labels), start) for start in (0, 0, -1))
    found, first = np.unique(pairs.detections[kept], return_index=True)
    last = np.append(first, len(kept))[1:]
    for detection, start, stop in zip(found.tolist(), first.tolist(), last.tolist(), strict=True):
        waiting = _ALL
        for allowed, column in zip(rounds, (hits, ignored), strict=True):
            before = waiting
            for pair in range(start, stop):
                true = objects[pair]
                if taken := waiting & lanes_reached[pair] & free[true] & allowed[true]:
                    waiting ^= taken
                    if not crowd[true]:
                        free[true] ^= taken
                    if taken & 1:
                        partners[detection] = true
            column[detection] = before ^ waiting
    return Matches(hits, ignored | _outside(detections.areas) & ~hits, partners)


def _lanes_of_thresholds() -> Integers:
    """The lanes, as bits, of the lowest n thresholds, for each n."""
    lanes = [[threshold < n for _, threshold in _LANES] for n in range(len(THRESHOLDS) + 1)]
    return np.array([sum(1 << bit for bit, on in enumerate(row) if on) for row in lanes])


def _outside(areas: Floats) -> Integers:
    """The lanes, as bits, to whose ranges areas (N,) do not belong."""
    bits = np.zeros(len(areas), dtype=np.int64)
    lanes = (1 << len(THRESHOLDS)) - 1
    for number, (low, high) in enumerate(AREAS.values()):
        bits |= np.where((areas < low) | (areas > high), lanes << len(THRESHOLDS) * number, 0)
    return bits


def _positives(truths: Objects, num_classes: int) -> Integers:
    """(areas, K) the number of true objects that count."""
    rows = []
    for low, high in AREAS.values():
        counted = ~truths.crowd & (truths.areas >= low) & (truths.areas <= high)
        rows.append(np.bincount(truths.labels[counted], minlength=num_classes))
    return np.stack(rows)


def _summary(precision: Floats, recall: Floats, limits: tuple[int, ...]) -> dict[str, float]:
    """See Scores; precision (areas, thresholds, K, recalls), recall (max_dets, areas, thresholds, K)."""
    sizes = {name: number for number, name in enumerate(AREAS) if name}
    found = {"map": precision[0], "map50": precision[0, 0], "map75": precision[0, 5]}
    found |= {f"map_{name}": precision[number] for name, number in sizes.items()}
    found |= {f"ar{limit}": recall[number, 0] for number, limit in enumerate(limits)}
    found |= {f"ar_{name}": recall[-1, number] for name, number in sizes.items()}
    return {name: mean(values) for name, values in found.items()}


def mean(values: Floats) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
