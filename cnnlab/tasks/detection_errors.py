"""What goes wrong in detections, at an IoU of 0.5: thresholds of scores, confusions and kinds of errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cnnlab.boxes import one_to_one
from cnnlab.tasks.coco import NEAR, THRESHOLDS, Evaluation, by_class, mean, precision_at_recalls
from cnnlab.tasks.overlaps import Flags, Floats, Integers

SCORES = np.linspace(0, 1, 101)
"""The thresholds at which F1 is listed."""
KINDS = ("class", "location", "both", "duplicate", "background", "missed")
"""The kinds of errors; see error_kinds."""


class ScoreThresholds(NamedTuple):
    """F1 of the detections whose scores reach a threshold.

    Args:
        best: (K,) the threshold with the best F1 of each class; NaN if it has no true object or none was found. It
            lies in the middle between the lowest score that is kept and the next one below, if there is one.
        best_f1: (K,) F1 there; NaN without true objects.
        f1: (K, 101) F1 at each of SCORES; NaN without true objects.
    """

    best: Floats
    best_f1: Floats
    f1: Floats


def score_thresholds(evaluation: Evaluation) -> ScoreThresholds:
    """F1 over thresholds of the scores, and the best threshold of each class.

    F1 is 2 hits / (detections + true objects), at an IoU of 0.5. Of equal ones the highest threshold is taken.
    """
    classes = evaluation.num_classes
    best, best_f1, f1 = np.full(classes, np.nan), np.full(classes, np.nan), np.full((classes, len(SCORES)), np.nan)
    hits, left_out = evaluation.matches.lane()
    positives = _positives(evaluation)
    for label, order in by_class(evaluation):
        order = order[~left_out[order]]
        if not positives[label]:
            continue
        scores = evaluation.detections.scores[order]
        # F1 of the first n detections, for each n from 0 on.
        sums = np.append(0, np.cumsum(hits[order]))
        by_count = 2 * sums / (np.arange(len(sums)) + positives[label])
        f1[label] = by_count[np.searchsorted(-scores, -SCORES, side="right")]
        # Equal scores are kept or dropped together.
        possible = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1 if len(scores) else np.zeros(0, int)
        best_f1[label] = 0.0
        if sums[-1]:
            count = possible[by_count[possible].argmax()]
            best_f1[label] = by_count[count]
            best[label] = _between(scores[count - 1], scores[count] if count < len(scores) else None)
    return ScoreThresholds(best, best_f1, f1)


def confusion_matrix(evaluation: Evaluation, threshold: float | Floats) -> Integers:
    """Which classes are taken for which.

    First, detections find objects of their own class, as for average precision. Then those that are left find objects
    of other classes that are left, in falling order of their scores. What finds nothing belongs to the background.
    Crowds, and detections in them, are left out.

    Args:
        evaluation: Detections and true objects.
        threshold: The score that a detection needs; one number, or one of each class (K,).

    Returns:
        (K + 1, K + 1): the rows are the true classes, the columns the detected ones; the last of each is background.
    """
    found, true, background = evaluation.detections, evaluation.truths, evaluation.num_classes
    kept = found.scores >= np.broadcast_to(threshold, background)[found.labels]
    hits, left_out = evaluation.matches.lane()
    kept &= ~left_out
    # Detections are matched in the order of their scores: a threshold changes no match of those that it keeps.
    partner = np.where(kept & hits, evaluation.matches.truths, -1)
    seen = _marked(partner, len(true.labels)) | true.crowd
    pairs = evaluation.pairs
    other = (pairs.iou >= THRESHOLDS[0]) & (kept & ~hits)[pairs.detections] & ~seen[pairs.truths]
    i, j, iou = (column[other] for column in pairs)
    order = np.lexsort((-iou, i, -found.scores[i]))
    for detection, truth in one_to_one(zip(i[order].tolist(), j[order].tolist(), strict=True)):
        partner[detection] = truth
        seen[truth] = True
    rows = np.where(partner >= 0, np.append(true.labels, background)[partner], background)[kept]
    cells = np.concatenate(
        [rows * (background + 1) + found.labels[kept], true.labels[~seen] * (background + 1) + background]
    )
    return np.bincount(cells, minlength=(background + 1) ** 2).reshape(background + 1, background + 1)


def error_kinds(evaluation: Evaluation) -> Floats:
    """How much AP50 would be gained if only one kind of error were mended, as TIDE defines it.

    A detection that is no hit has, of the first that applies (Bolya et al. 2020, arXiv:2008.08115):

    - location: it overlaps an object of its class with an IoU of 0.1 to 0.5. Mended, it is a hit.
    - class: it overlaps an object of another class with at least 0.5. Mended, it is a hit of that class.
    - duplicate: it overlaps an object of its class with at least 0.5, which another one has found. Mended, it is gone.
    - background: it overlaps nothing with at least 0.1. Mended, it is gone.
    - both: class and location are wrong. Mended, it is gone.

    If several detections are hits of an object then, only the one with the highest score stays. Objects that were not
    found, also not with a wrong class or location, are missed; mended, they are not counted. A class of which nothing
    else is left has an AP50 of 1 then. Crowds, and detections in them, are left out.

    Returns:
        (6,) the gain in AP50 for each of KINDS; NaN without true objects.
    """
    kinds = _Kinds(evaluation)
    before = kinds.ap50(kinds.hits, kinds.labels, kinds.kept)
    gains = {name: kinds.ap50(kinds.hits, kinds.labels, kinds.kept & ~kinds.of[name]) for name in _REMOVED}
    gains |= {name: kinds.mended_ap50(kinds.of[name], truths) for name, truths in kinds.meant.items()}
    gains["missed"] = kinds.ap50(kinds.hits, kinds.labels, kinds.kept, kinds.missed)
    return np.array([gains[name] - before for name in KINDS])


_REMOVED = ("both", "duplicate", "background")


class _Kinds:
    """The kind of each detection's error, and AP50 with other hits, classes and detections."""

    def __init__(self, evaluation: Evaluation) -> None:
        found, true, pairs = evaluation.detections, evaluation.truths, evaluation.pairs
        self.scores, self.labels, self.true_labels = found.scores, found.labels, true.labels
        self.num_classes, self.positives = evaluation.num_classes, _positives(evaluation)
        self.hits, left_out = evaluation.matches.lane()
        self.kept = ~left_out
        self.partners = np.where(self.hits, evaluation.matches.truths, -1)
        same = found.labels[pairs.detections] == true.labels[pairs.truths]
        counted = ~true.crowd[pairs.truths]
        own, own_iou = self._best(evaluation, same & counted)
        other, other_iou = self._best(evaluation, ~same & counted)
        self.meant = {"location": own, "class": other}
        least = THRESHOLDS[0]
        tests = {
            "location": (own_iou >= NEAR) & (own_iou < least),
            "class": other_iou >= least,
            "duplicate": own_iou >= least,
            "background": np.maximum(own_iou, other_iou) < NEAR,
            "both": np.ones(len(found.labels), dtype=bool),
        }
        rest = self.kept & ~self.hits
        self.of: dict[str, Flags] = {}
        for name, test in tests.items():
            self.of[name] = rest & test
            rest &= ~test
        explained = [self.partners, *(np.where(self.of[name], best, -1) for name, best in self.meant.items())]
        self.missed = ~true.crowd & ~_marked(np.concatenate(explained), len(true.labels))

    @staticmethod
    def _best(evaluation: Evaluation, kept: Flags) -> tuple[Integers, Floats]:
        """The object with the largest IoU of each detection, among some pairs, and this IoU; -1 and 0 if none."""
        pairs, count = evaluation.pairs, len(evaluation.detections.labels)
        best, largest = np.full(count, -1), np.zeros(count)
        i, j, iou = (column[kept] for column in pairs)
        order = np.argsort(iou, kind="stable")
        # The last of several assignments to the same place stays.
        best[i[order]], largest[i[order]] = j[order], iou[order]
        return best, largest

    def mended_ap50(self, wrong: Flags, truths: Integers) -> float:
        """AP50 if wrong detections had found the objects that they are next to."""
        partners = np.where(wrong, truths, self.partners)
        order = np.lexsort((-self.scores, partners))
        first = np.append(True, partners[order][1:] != partners[order][:-1])[: len(order)]
        hits = np.zeros(len(partners), dtype=bool)
        hits[order[first]] = True
        hits &= partners >= 0
        labels = np.where(partners >= 0, np.append(self.true_labels, 0)[partners], self.labels)
        return self.ap50(hits, labels, self.kept & (hits | (partners < 0)))

    def ap50(self, hits: Flags, labels: Integers, kept: Flags, missed: Flags | None = None) -> float:
        """AP50 of other hits, of other labels, of the detections that are kept, without objects that are missed."""
        positives = self.positives.copy()
        if missed is not None:
            positives -= np.bincount(self.true_labels[missed], minlength=self.num_classes)
        order = np.lexsort((-self.scores, labels))
        order = order[kept[order]]
        bounds = np.searchsorted(labels[order], np.arange(self.num_classes + 1))
        found = np.full(self.num_classes, np.nan)
        for label in np.flatnonzero(self.positives):
            own = hits[order[bounds[label] : bounds[label + 1]]]
            found[label] = precision_at_recalls(own, positives[label]).mean() if positives[label] else 1.0
        return mean(found)


def _positives(evaluation: Evaluation) -> Integers:
    """(K,) the number of true objects without crowds."""
    counted = evaluation.truths.labels[~evaluation.truths.crowd]
    return np.bincount(counted, minlength=evaluation.num_classes)


def _marked(indices: Integers, count: int) -> Flags:
    """(count,) whether a place is among indices; -1 is none."""
    marks = np.zeros(count + 1, dtype=bool)
    marks[indices] = True
    return marks[:count]


def _between(kept: float, dropped: float | None) -> float:
    """A threshold that keeps one score and drops a lower one."""
    middle = kept if dropped is None else (kept + dropped) / 2
    return float(middle if dropped is None or middle > dropped else kept)
