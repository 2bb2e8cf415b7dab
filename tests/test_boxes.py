"""The geometry of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle
from torchvision.ops import batched_nms, box_iou

from cnnlab import boxes as geometry
from cnnlab.errors import InputError


def random_boxes(count: int, seed: int, kind: str = "any") -> np.ndarray:
    generator = np.random.default_rng(seed)
    start, sides = generator.uniform(0, 50, (count, 2)), generator.uniform(0, 40, (count, 2))
    found = np.concatenate([start, start + sides], axis=1)
    if kind == "outside":  # A side is rounded so much that start plus side is not the end.
        found = np.concatenate([-start, sides / 100], axis=1)
    return np.floor(found) if kind == "whole" else found


@pytest.mark.parametrize("kind", ["any", "whole", "outside"])
def test_iou_has_the_digits_of_pycocotools(kind: str) -> None:
    first, second = random_boxes(60, 0, kind), random_boxes(50, 1, kind)
    crowd = np.arange(50) % 3 == 0
    sides = [np.concatenate([some[:, :2], some[:, 2:] - some[:, :2]], axis=1) for some in (first, second)]
    wanted = oracle.iou(*sides, crowd.tolist())
    np.testing.assert_array_equal(geometry.iou(first, second, crowd), wanted)
    plain = box_iou(torch.from_numpy(first), torch.from_numpy(second)).nan_to_num().numpy()
    np.testing.assert_allclose(geometry.iou(first, second), plain, atol=1e-12)


def test_empty_and_inverted_boxes_overlap_nothing() -> None:
    first = np.array([[5.0, 5, 5, 5], [9, 9, 1, 1], [0, 0, 9, 9]])
    found = geometry.iou(first, first)
    np.testing.assert_array_equal(found, np.diag([0.0, 0, 1]))
    assert geometry.iou(first[:0], first).shape == (0, 3)


def test_clipped_boxes_lie_in_the_image() -> None:
    found = geometry.clip(np.array([[-3.0, 2, 99, 8], [50, 50, 60, 60]]), (10, 20))
    assert found.tolist() == [[0, 2, 20, 8], [20, 10, 20, 10]]
    assert geometry.area(found).tolist() == [120, 0]


def test_suppression_keeps_what_torchvision_keeps() -> None:
    some = random_boxes(200, 2)
    generator = np.random.default_rng(3)
    scores, labels = generator.random(200), generator.integers(0, 3, 200)
    kept = batched_nms(torch.from_numpy(some), torch.from_numpy(scores), torch.from_numpy(labels), 0.4)
    assert geometry.suppress(some, scores, labels, 0.4).tolist() == kept.tolist()
    alone = batched_nms(torch.from_numpy(some), torch.from_numpy(scores), torch.zeros(200).long(), 0.4)
    assert geometry.suppress(some, scores, maximum=0.4).tolist() == alone.tolist()
    half = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    assert geometry.suppress(half, np.array([0.9, 0.8]), maximum=0.5).tolist() == [0, 1]
    assert geometry.suppress(some[:0], scores[:0]).tolist() == []


def test_detections_are_matched_one_to_one() -> None:
    box = [0.0, 0, 10, 10]
    first = np.array([box, [0, 0, 10, 9], [30, 30, 40, 40], [70, 70, 80, 80]])
    second = np.array([[30.0, 30, 40, 41], [0, 0, 10, 9], box])
    assert geometry.matched(first, second).tolist() == [[0, 2], [1, 1], [2, 0]]
    assert geometry.matched(first, second, 0.95).tolist() == [[0, 2], [1, 1]]
    labels = np.array([0, 0, 1, 1]), np.array([0, 1, 0])
    assert geometry.matched(first, second, labels=labels).tolist() == [[0, 2]]
    assert geometry.matched(first, second[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((2, 5)), "N x 4 .*not 2 x 5"),
        (np.zeros(4), "not 4"),
        ([[0, 0, 1, 1], [0, 0, float("nan"), 1]], r"number 1 is \[0.0, 0.0, nan, 1.0\]"),
        ([[0, 0, float("inf"), 1]], "must be finite"),
    ],
)
def test_what_is_no_box_is_refused(values: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        geometry.checked(values)


def test_no_boxes_are_boxes() -> None:
    assert geometry.checked([]).shape == (0, 4)
