"""Thresholds, confusions and kinds of errors of detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnlab.tasks.coco import Detections, Evaluation, Truth, average_precision, evaluate
from cnnlab.tasks.detection_errors import KINDS, SCORES, confusion_matrix, error_kinds, score_thresholds
from tests.tasks.coco_oracle import images

BOX = [0.0, 0, 10, 10]
HALF = [0.0, 0, 10, 4]
OTHER = [50.0, 50, 60, 60]
FAR = [90.0, 90, 95, 95]


def one_image(
    found: list[tuple[list[float], float, int]], true: list[tuple[list[float], int]], **kwargs: Any
) -> Evaluation:
    shapes, scores, labels = ([one[i] for one in found] for i in range(3))
    truth = Truth(np.array([one[0] for one in true]), [one[1] for one in true], **kwargs)
    return evaluate([Detections(np.array(shapes).reshape(-1, 4), scores, labels)], [truth], 2)


def kept_only(found: list[Detections], thresholds: np.ndarray) -> list[Detections]:
    """The detections whose score reaches their class's threshold."""
    kept = []
    for one in found:
        labels, scores = np.asarray(one.labels), np.asarray(one.scores)
        chosen = np.flatnonzero(scores >= thresholds[labels]) if len(labels) else np.zeros(0, dtype=int)
        shapes = one.shapes[chosen] if isinstance(one.shapes, np.ndarray) else [one.shapes[i] for i in chosen.tolist()]
        kept.append(Detections(shapes, scores[chosen], labels[chosen]))
    return kept


def f1_of(found: list[Detections], true: list[Truth], classes: int, thresholds: np.ndarray) -> np.ndarray:
    """F1 of each class from the detections that are left: matched anew."""
    evaluation = evaluate(kept_only(found, thresholds), true, classes)
    hits, left_out = evaluation.matches.lane()
    counts = [np.bincount(evaluation.detections.labels[kind], minlength=classes) for kind in (hits, ~left_out)]
    positives = average_precision(evaluation).by_class[:, 3]
    return np.where(positives > 0, 2 * counts[0] / np.maximum(counts[1] + positives, 1), np.nan)


@pytest.mark.parametrize("seed", range(16))
def test_the_best_threshold_is_better_than_all_others(seed: int) -> None:
    classes = 1 + seed % 3
    found, true = images(seed, classes, masks=seed % 4 == 3)
    thresholds = score_thresholds(evaluate(found, true, classes))
    tried = {float(score) for one in found for score in np.asarray(one.scores)} | {0.0, 2.0}
    curves = np.array([f1_of(found, true, classes, np.full(classes, score)) for score in sorted(tried)])
    np.testing.assert_allclose(thresholds.best_f1, curves.max(axis=0), atol=1e-12)
    reached = np.where(np.isnan(thresholds.best), 2.0, thresholds.best)
    np.testing.assert_allclose(f1_of(found, true, classes, reached), thresholds.best_f1, atol=1e-12)
    for place in (0, 37, 60, 100):
        wanted = f1_of(found, true, classes, np.full(classes, SCORES[place]))
        np.testing.assert_allclose(thresholds.f1[:, place], wanted, atol=1e-12)


def test_a_threshold_lies_between_two_scores() -> None:
    found = [(BOX, 0.8, 0), (FAR, 0.4, 0), (FAR, 0.3, 0)]
    thresholds = score_thresholds(one_image(found, [(BOX, 0)]))
    assert thresholds.best[0] == pytest.approx(0.6)
    assert np.isnan(thresholds.best[1])
    assert score_thresholds(one_image(found[:1], [(BOX, 0)])).best[0] == 0.8
    for score in (0.8, np.nextafter(0.8, 0)):
        found = [(BOX, score, 0), (FAR, np.nextafter(score, 0), 0)]
        assert score_thresholds(one_image(found, [(BOX, 0)])).best[0] == score


def test_a_class_that_is_never_found_has_no_threshold() -> None:
    thresholds = score_thresholds(one_image([(FAR, 0.8, 0)], [(BOX, 0)]))
    assert np.isnan(thresholds.best[0])
    assert thresholds.best_f1[0] == 0


def test_confusions_are_counted_with_the_background() -> None:
    found = [(BOX, 0.9, 0), (OTHER, 0.8, 0), (FAR, 0.7, 1), (BOX, 0.6, 1), (FAR, 0.1, 0)]
    true = [(BOX, 0), (OTHER, 1), ([200.0, 200, 210, 210], 1)]
    # The second box on the same object finds nothing that is left.
    assert confusion_matrix(one_image(found, true), 0.5).tolist() == [[1, 0, 0], [1, 0, 1], [0, 2, 0]]
    assert confusion_matrix(one_image(found, true), 0.05).tolist() == [[1, 0, 0], [1, 0, 1], [1, 2, 0]]
    by_class = np.array([0.95, 0.5])
    assert confusion_matrix(one_image(found, true), by_class).tolist() == [[0, 1, 0], [0, 0, 2], [0, 1, 0]]


def test_a_confusion_takes_the_object_with_the_largest_iou_in_the_order_of_scores() -> None:
    true = [([0.0, 0, 10, 10], 0), ([2.0, 0, 12, 10], 0)]
    found = [([1.5, 0, 11.5, 10], 0.9, 1), ([4.0, 0, 14, 10], 0.8, 1)]
    # The second detection overlaps only the object that the first one takes.
    assert confusion_matrix(one_image(found, true), 0.5).tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_crowds_confuse_nothing() -> None:
    found, true = [(BOX, 0.9, 0), (HALF, 0.8, 0), (BOX, 0.7, 1)], [(BOX, 0)]
    # Both boxes of the class are inside the crowd; the one of the other class is not.
    assert confusion_matrix(one_image(found, true, crowd=[True]), 0.5).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("seed", range(12))
def test_confusions_agree_with_hits_and_objects(seed: int) -> None:
    found, true = images(seed, 3, masks=seed % 3 == 2)
    evaluation = evaluate(found, true, 3)
    matrix = confusion_matrix(evaluation, 0.3)
    hits, left_out = evaluation.matches.lane()
    kept = evaluation.detections.scores >= 0.3
    labels = evaluation.detections.labels
    assert matrix.diagonal()[:3].tolist() == np.bincount(labels[hits & kept], minlength=3).tolist()
    assert matrix.sum(axis=0)[:3].tolist() == np.bincount(labels[~left_out & kept], minlength=3).tolist()
    counted = evaluation.truths.labels[~evaluation.truths.crowd]
    assert matrix.sum(axis=1)[:3].tolist() == np.bincount(counted, minlength=3).tolist()


TWO = [(BOX, 0), (OTHER, 1)]
HIT = (OTHER, 0.5, 1)


@pytest.mark.parametrize(
    ("found", "kind", "gain"),
    [
        ([HIT, (BOX, 0.9, 1)], "class", 0.75),  # A wrong class: precision 1/2 of one, nothing of the other.
        ([HIT, (HALF, 0.9, 0)], "location", 0.5),
        ([HIT, (BOX, 0.9, 0), (OTHER, 0.9, 1)], "duplicate", 0.0),  # It comes after the hit.
        ([HIT, (BOX, 0.9, 0), (FAR, 0.9, 1)], "background", 0.25),
        ([HIT, (BOX, 0.9, 0), (HALF, 0.9, 1)], "both", 0.25),
        ([HIT], "missed", 0.5),
    ],
)
def test_a_mended_error_gains(found: list[Any], kind: str, gain: float) -> None:
    gains = dict(zip(KINDS, error_kinds(one_image(found, TWO)), strict=True))
    assert gains.pop(kind) == pytest.approx(gain, abs=1e-9)
    # An object with a wrong class or location is not missed.
    assert list(gains.values()) == pytest.approx([0] * 5, abs=1e-9)


def test_a_duplicate_before_another_hit_costs() -> None:
    found = [(BOX, 0.9, 0), (BOX, 0.8, 0), (OTHER, 0.7, 0)]
    gains = error_kinds(one_image(found, [(BOX, 0), (OTHER, 0)]))
    # 51 recalls at precision 1, and 50 at 2/3.
    assert gains[KINDS.index("duplicate")] == pytest.approx(50 / 101 / 3, abs=1e-9)


def test_only_the_best_of_mended_detections_stays() -> None:
    # Two with wrong places: mended, one is the hit, and the other is gone.
    gains = error_kinds(one_image([(HALF, 0.9, 0), (HALF, 0.8, 0)], [(BOX, 0)]))
    assert gains.tolist() == pytest.approx([0, 1, 0, 0, 0, 0], abs=1e-9)
    # With a score above that of the hit, it takes its place.
    gains = error_kinds(one_image([(HALF, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0)]))
    assert gains.tolist() == pytest.approx([0, 0.5, 0, 0, 0, 0], abs=1e-9)


def test_the_object_with_the_largest_iou_decides_on_the_kind() -> None:
    true = [(BOX, 0), ([8.0, 0, 18, 10], 0)]
    # The second one overlaps both objects; it is a duplicate of the first one.
    found = [(BOX, 0.9, 0), ([1.0, 0, 11, 10], 0.8, 0), ([8.0, 0, 18, 10], 0.7, 0)]
    gains = dict(zip(KINDS, error_kinds(one_image(found, true)), strict=True))
    assert gains.pop("duplicate") == pytest.approx(50 / 101 / 3, abs=1e-9)
    assert list(gains.values()) == pytest.approx([0] * 5, abs=1e-9)


def test_crowds_have_no_errors() -> None:
    gains = error_kinds(one_image([(BOX, 0.9, 0), (OTHER, 0.5, 0)], [(BOX, 0), (OTHER, 0)], crowd=[True, False]))
    assert gains.tolist() == pytest.approx([0] * 6, abs=1e-9)
    gains = error_kinds(one_image([(BOX, 0.9, 0), HIT], TWO, crowd=[True, False]))
    assert gains.tolist() == pytest.approx([0] * 6, abs=1e-9)


def test_without_objects_there_are_no_gains() -> None:
    assert np.isnan(error_kinds(evaluate([], [], 2))).all()
    assert confusion_matrix(evaluate([], [], 2), 0.5).tolist() == np.zeros((3, 3)).tolist()
    assert np.isnan(score_thresholds(evaluate([], [], 2)).f1).all()


@pytest.mark.parametrize("seed", range(12))
def test_every_error_that_is_no_hit_has_one_kind(seed: int) -> None:
    found, true = images(seed, 3, masks=seed % 3 == 2)
    gains = error_kinds(evaluate(found, true, 3))
    known = gains[~np.isnan(gains)]
    # Nothing that is mended costs.
    assert (known >= -1e-9).all()
