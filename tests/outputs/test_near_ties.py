"""Lists of objects are compared honestly where rounding decides between objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnlab.outputs import Boxes
from cnnlab.outputs.base import Arrays

OUTPUT = Boxes("ab", count=3)
FIRST = ((0, 0, 10, 20), 0.8)
TWIN = ((1, 0, 11, 20), 0.8)
"""Nearly the same object, with the same score: rounding decides which of the two stays."""
OTHER = ((40, 40, 60, 60), 0.6)
WEAK = ((70, 70, 80, 80), 0.3)
LAST = ((10, 70, 20, 80), 0.2)


def batch(*objects: Any) -> Arrays:
    """One image with objects of the first class."""
    rows = [*objects, *[((0, 0, 0, 0), 0)] * (3 - len(objects))]
    return {
        "boxes": np.array([[box for box, _ in rows]], np.float32),
        "scores": np.array([[score for _, score in rows]], np.float32),
        "labels": np.zeros((1, len(rows)), np.int64),
    }


def difference(found: Arrays, *answers: Arrays) -> float:
    return OUTPUT.difference(OUTPUT.nearest(answers, found), found)


@pytest.mark.parametrize(
    ("found", "answers", "expected"),
    [
        ([TWIN, OTHER], [[FIRST, OTHER]], 0.1),  # The network never answers so.
        ([TWIN, OTHER], [[FIRST, OTHER], [TWIN, OTHER]], 0.0),
        ([TWIN, OTHER], [[FIRST, WEAK], [TWIN, WEAK]], 0.6),  # Only what depends on rounding is excused.
        ([OTHER], [[OTHER, WEAK], [OTHER]], 0.0),  # An object that is not always there may be missing,
        ([OTHER], [[OTHER, WEAK], [OTHER, WEAK]], 0.3),
        ([OTHER, WEAK], [[OTHER], [OTHER, WEAK]], 0.0),  # or be there;
        ([OTHER, WEAK], [[OTHER], [OTHER]], 0.3),
        ([FIRST, TWIN], [[FIRST], [TWIN]], 0.8),  # but both twins are never there.
        ([FIRST, OTHER, LAST], [[FIRST, OTHER, WEAK], [FIRST, OTHER, LAST]], 0.0),
        ([FIRST, OTHER, LAST], [[FIRST, OTHER, WEAK], [FIRST, OTHER, WEAK]], 0.1),  # The list has a better end.
    ],
)
def test_objects_may_agree_with_any_answer(found: Any, answers: Any, expected: float) -> None:
    """A barely trained detector was refused: of two boxes with equal scores, its file kept the other one."""
    given = [batch(*own) for own in answers]
    assert difference(batch(*found), *given) == pytest.approx(expected, abs=1e-6)


def test_several_images_and_further_arrays_stay_together() -> None:
    first, second = batch(FIRST, OTHER), batch(TWIN, OTHER)
    found = {name: np.concatenate([second[name], first[name]]) for name in first}
    answers = [
        {name: np.concatenate([own[name]] * 2) for name in own} | {"id": np.full((2, 3), k)}
        for k, own in enumerate([first, second])
    ]
    nearest = OUTPUT.nearest(answers, found)
    assert nearest["id"].tolist() == [[1, 0], [0, 0]]
    assert OUTPUT.difference(nearest, found) == 0
    assert OUTPUT.nearest([batch()], batch())["scores"].shape == (1, 0)


def rows(*proposals: Any) -> Arrays:
    """Raw outputs of one image with a row for each proposal: a box and its score."""
    boxes, scores = (np.array([list(column)], np.float32) for column in zip(*proposals, strict=True))
    sides = np.stack([boxes[..., 0], boxes[..., 1], boxes[..., 2] - boxes[..., 0]], axis=-1)
    logits = np.log(scores / (1 - scores))
    return {"logits": np.stack([logits, np.full_like(logits, -50)], axis=-1), "boxes": boxes, "places": sides}


@pytest.mark.parametrize(
    ("found", "answers", "expected"),
    [
        ([OTHER, FIRST], [[FIRST, OTHER]], 0.0),  # The order of nearly equal proposals is not defined.
        ([FIRST, LAST], [[FIRST, OTHER]], 0.6),
        ([TWIN, OTHER], [[FIRST, OTHER]], 0.1),
        ([TWIN, OTHER], [[FIRST, OTHER], [OTHER, TWIN]], 0.0),
        ([FIRST, (OTHER[0], 0.5)], [[FIRST, OTHER]], 0.405),  # Same rows: logits are compared.
    ],
)
def test_rows_that_a_network_has_chosen_are_sets(found: Any, answers: Any, expected: float) -> None:
    """Export --raw of a Faster R-CNN was refused where two proposals had nearly equal scores."""
    assert difference(rows(*found), *[rows(*own) for own in answers]) == pytest.approx(expected, abs=1e-3)


def test_a_number_that_is_not_finite_is_a_difference() -> None:
    expected, found = rows(FIRST, OTHER), rows(FIRST, OTHER)
    for name in found:
        broken = {**found, name: np.full_like(found[name], np.nan)}
        assert np.isnan(difference(broken, expected))
