"""Average precision has the digits of pycocotools (users met others: ultralytics#10326, #13363, yolov5#10966)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from cnnlab import rle
from cnnlab.errors import InputError
from cnnlab.tasks.coco import RECALLS, THRESHOLDS, Detections, Truth, average_precision, evaluate
from tests.tasks.coco_oracle import coco_scores, images

LIMITS = [(1, 10, 100), (1, 3, 5), (2, 300), (1, 10, 20)]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("start", range(0, 280, 70))
def test_random_and_adversarial_images_score_as_with_pycocotools(start: int, masks: bool) -> None:
    for seed in range(start, start + 70):
        classes, limits = 1 + seed % 4, LIMITS[seed // 4 % 4]
        found, true = images(seed, classes, masks)
        wanted, precision = coco_scores(found, true, classes, limits, masks)
        scores = average_precision(evaluate(found, true, classes, limits))
        assert scores.summary == pytest.approx(wanted, abs=1e-12, nan_ok=True), seed
        np.testing.assert_allclose(scores.precision, precision, atol=1e-12)


def whole_boxes(count: int) -> tuple[list[Detections], list[Truth]]:
    """Boxes of small whole numbers, of which many have an IoU of exactly a threshold."""
    generator = np.random.default_rng(0)
    found, true = [], []
    for _ in range(count):
        start, sides = generator.integers(0, 60, (8, 2)), generator.integers(4, 21, (8, 2))
        there = np.concatenate([start, start + sides], axis=1).astype(float)
        labels = generator.integers(0, 3, 8)
        moved = np.concatenate([there, there]) + np.tile(generator.integers(-2, 3, (16, 2)), 2)
        found.append(Detections(moved, generator.random(16), np.concatenate([labels, labels])))
        true.append(Truth(there, labels))
    return found, true


def test_torchmetrics_agrees_where_its_thresholds_are_exact() -> None:
    found, true = whole_boxes(40)
    oracle = MeanAveragePrecision(iou_thresholds=THRESHOLDS.tolist(), rec_thresholds=RECALLS.tolist())
    oracle.update(
        [
            {
                "boxes": torch.from_numpy(one.shapes),
                "scores": torch.from_numpy(one.scores),
                "labels": torch.from_numpy(one.labels),
            }
            for one in found
        ],
        [{"boxes": torch.from_numpy(one.shapes), "labels": torch.from_numpy(one.labels)} for one in true],
    )
    wanted = oracle.compute()
    scores = average_precision(evaluate(found, true, 3)).summary
    for own, name in {"map": "map", "map50": "map_50", "map75": "map_75", "ar100": "mar_100"}.items():
        assert scores[own] == pytest.approx(wanted[name].item(), abs=1e-6)
    assert scores["map"] == pytest.approx(coco_scores(found, true, 3, (1, 10, 100), False)[0]["map"], abs=1e-12)


BOX = np.array([[0.0, 0, 10, 10]])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_objects_with_equal_iou_the_later_one_is_taken(order: list[int]) -> None:
    objects = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10]])[order]
    # The first box is between both; the second one finds only the left object, if it is left.
    found = [Detections(np.array([[2.0, 0, 12, 10], [-1, 0, 9, 10]]), [0.9, 0.8], [0, 0])]
    true = [Truth(objects, [0, 0])]
    score = average_precision(evaluate(found, true, 1)).summary["map50"]
    assert score == coco_scores(found, true, 1, (1, 10, 100), False)[0]["map50"]
    assert score == pytest.approx(1 if order == [0, 1] else 51 / 101)


def test_a_class_without_objects_is_left_out() -> None:
    scores = average_precision(evaluate([Detections(BOX, [0.9], [0])], [Truth(BOX, [0])], 3))
    absent = [np.nan, np.nan, np.nan, 0.0]
    np.testing.assert_allclose(scores.by_class, np.array([[1.0, 1.0, 1.0, 1.0], absent, absent]))
    assert scores.summary["map"] == scores.summary["map_small"] == pytest.approx(1, abs=1e-12)
    assert np.isnan(scores.summary["map_large"])


def test_crowds_alone_are_no_objects() -> None:
    scores = average_precision(evaluate([Detections(BOX, [0.9], [0])], [Truth(BOX, [0], [True])], 1))
    assert np.isnan(list(scores.summary.values())).all()
    assert scores.by_class[0, 3] == 0


@pytest.mark.parametrize("count", [0, 2])
def test_without_objects_there_are_no_scores(count: int) -> None:
    nothing = np.zeros((0, 4))
    found, true = [Detections(nothing, [], [])] * count, [Truth(nothing, [])] * count
    scores = average_precision(evaluate(found, true, 2))
    assert np.isnan(list(scores.summary.values())).all()
    assert scores.precision.shape == (2, 101)


def test_objects_that_nothing_finds_score_zero() -> None:
    scores = average_precision(evaluate([Detections([], [], [])], [Truth(BOX, [0])], 1))
    assert scores.summary["map"] == scores.summary["ar100"] == 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "true", "reason"),
    [
        (Detections(BOX * NAN, [0.5], [0]), Truth(BOX, [0]), "image 0, detections: boxes: number 0 is .*nan"),
        (Detections(BOX, [0.5], [0]), Truth(BOX + np.inf, [0]), "image 0, truth: boxes: .*must be finite"),
        (Detections(BOX, [NAN], [0]), Truth(BOX, [0]), "a score is NaN or infinite"),
        (Detections(BOX, [np.inf], [0]), Truth(BOX, [0]), "a score is NaN or infinite"),
        (Detections(BOX, [0.5], [2]), Truth(BOX, [0]), r"label 2 is outside 0\.\.1"),
        (Detections(BOX, [0.5], [0]), Truth(BOX, [-1]), r"image 0, truth: label -1 is outside"),
        (Detections(BOX, [0.5], [0.5]), Truth(BOX, [0]), "image 0, detections: labels must be whole"),
        (Detections(BOX, [0.5], [0]), Truth(BOX, [NAN]), "image 0, truth: labels must be whole"),
        (Detections(BOX, [0.5, 0.6], [0]), Truth(BOX, [0]), "1 shapes, 1 labels, 1 areas, 2 scores"),
        (Detections(BOX, [0.5], [0]), Truth(BOX, [0], [False, True]), "2 crowd"),
        (Detections(BOX, [0.5], [0]), Truth([rle.encode(np.ones((9, 9)))], [0]), "boxes cannot be compared with masks"),
        (
            Detections([rle.encode(np.ones((9, 8)))], [0.5], [0]),
            Truth([rle.encode(np.ones((9, 9)))], [0]),
            "different sizes",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(found: Any, true: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        evaluate([found], [true], 2)


def test_other_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="max_dets"):
        evaluate([], [], 1, [0, 10])
    with pytest.raises(InputError, match="max_dets"):
        evaluate([], [], 1, [])
    with pytest.raises(InputError, match="for 0 images, and truth for 1"):
        evaluate([], [Truth(BOX, [0])], 1)
    both = [Truth(BOX, [0]), Truth([rle.encode(np.ones((9, 9)))], [0])]
    with pytest.raises(InputError, match="either of them for all images"):
        evaluate([Detections(BOX, [0.5], [0])] * 2, both, 1)
