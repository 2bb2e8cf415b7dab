"""The metric of objects: the same digits with any batches and processes (torchmetrics' own fails there)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cnnlab import rle
from cnnlab.errors import InputError
from cnnlab.tasks.coco import Detections, Truth, average_precision, evaluate
from cnnlab.tasks.detection_errors import confusion_matrix, error_kinds, score_thresholds
from cnnlab.tasks.object_intervals import map_intervals
from cnnlab.tasks.object_metrics import ObjectScores
from tests.tasks.coco_oracle import SIDE, images

Image = tuple[int, dict[str, Any], dict[str, Any]]
CLASSES = 3


def some_images(masks: bool, count: int = 5) -> list[Image]:
    """Images with their indices: some without detections, some without objects."""
    found, true = [], []
    for seed in range(1, 40):
        more = images(seed, CLASSES, masks)
        found += more[0]
        true += more[1]
    empty = [i for i, one in enumerate(true) if not len(one.shapes)][:1]
    chosen = [*[i for i, one in enumerate(true) if len(one.shapes) and len(found[i].shapes)][: count - 1], *empty]
    return [(index, *_arguments(found[i], true[i], masks)) for index, i in enumerate(chosen)]


def _arguments(found: Detections, true: Truth, masks: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    detections: dict[str, Any] = {"scores": found.scores, "labels": found.labels}
    truth: dict[str, Any] = {"labels": true.labels, "crowd": true.crowd}
    if true.areas is not None:
        truth["areas"] = true.areas
    for one, shapes in ((detections, found.shapes), (truth, true.shapes)):
        one["boxes"] = _boxes_of(shapes) if masks else shapes
        if masks:
            one["masks"] = rle.to_texts(shapes)  # type: ignore[arg-type]
    return detections, truth | ({"size": SIDE} if masks else {})


def _boxes_of(masks: Any) -> np.ndarray:
    boxes = rle.bounding_boxes(masks).astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def update(scores: ObjectScores, part: Sequence[Image]) -> None:
    if part:
        scores.update([one[1] for one in part], [one[2] for one in part], torch.tensor([one[0] for one in part]))


def computed(part: Sequence[Image], masks: bool, batch: int = 9) -> dict[str, torch.Tensor]:
    scores = ObjectScores(CLASSES, max_dets=(1, 10, 20), masks=masks)
    for start in range(0, len(part), batch):
        update(scores, part[start : start + batch])
    return scores.compute()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all is equal to the last digit; NaN is NaN."""
    return first.keys() == second.keys() and all(
        torch.equal(value.nan_to_num(-7), second[name].nan_to_num(-7)) for name, value in first.items()
    )


@pytest.mark.parametrize("masks", [False, True])
def test_it_is_what_the_functions_say(masks: bool) -> None:
    part = some_images(masks)
    found = [Detections(_shapes(one, masks), one["scores"], one["labels"]) for _, one, _ in part]
    true = [Truth(_shapes(one, masks), one["labels"], one["crowd"], one.get("areas")) for _, _, one in part]
    evaluation = evaluate(found, true, CLASSES, (1, 10, 20))
    own, wanted, thresholds = computed(part, masks), average_precision(evaluation), score_thresholds(evaluation)
    for name, value in wanted.summary.items():
        assert own[name].item() == pytest.approx(value, abs=0, nan_ok=True)
    best = np.where(np.isnan(thresholds.best), 0.5, thresholds.best)
    tables = {
        "by_class": wanted.by_class,
        "precision": wanted.precision,
        "f1": thresholds.f1,
        "thresholds": thresholds.best,
        "confusion": confusion_matrix(evaluation, best),
        "error_kinds": error_kinds(evaluation),
    }
    for name, table in tables.items():
        np.testing.assert_array_equal(own[name].numpy(), table)
    boxes = {"box_map", "box_map50", "box_map75"} if masks else set()
    assert own.keys() == tables.keys() | wanted.summary.keys() | boxes
    assert {"map", "map50", "map75", "map_small", "ar1", "ar10", "ar20", "ar_large"} < own.keys()
    assert 0 < own["map"] < 1


def _shapes(one: dict[str, Any], masks: bool) -> Any:
    return rle.from_texts(one["masks"], [SIDE] * len(one["masks"])) if masks else one["boxes"]


def test_boxes_of_instances_are_measured_too() -> None:
    part = some_images(masks=True)
    boxes = [(index, {**found, "masks": None}, {**true, "masks": None}) for index, found, true in part]
    own, wanted = computed(part, masks=True), computed(boxes, masks=False)
    # Areas that are not given are those of masks, or of boxes: they decide on sizes only.
    for name in ("map", "map50", "map75"):
        assert own[f"box_{name}"] == wanted[name]


@pytest.mark.parametrize("masks", [False, True])
def test_batches_and_order_and_repeated_images_change_no_digit(masks: bool) -> None:
    part = some_images(masks)
    wanted = computed(part, masks)
    assert same(wanted, computed(part, masks, batch=1))
    assert same(wanted, computed([*part[::-1], part[0], part[2]], masks, batch=2))


def test_images_without_an_index_count_each() -> None:
    part = some_images(masks=False)
    twice = [(-1, *one[1:]) for one in [*part, *part]]
    renamed = [(i, *one[1:]) for i, one in enumerate([*part, *part])]
    assert same(computed(twice, False), computed(renamed, False))


def test_tensors_are_taken_from_any_device_and_precision() -> None:
    part = some_images(masks=False)
    tensors = [
        (
            index,
            {name: torch.tensor(np.asarray(value)) for name, value in found.items()},
            {name: torch.tensor(np.asarray(value)) for name, value in true.items()},
        )
        for index, found, true in part
    ]
    assert same(computed(part, False), computed(tensors, False))
    half = {"boxes": torch.tensor([[0, 0, 4, 4]]).bfloat16(), "scores": torch.tensor([0.5]).bfloat16(), "labels": [0]}
    scores = ObjectScores(1)
    scores.update([half], [{"boxes": [[0, 0, 4, 4]], "labels": torch.tensor([0])}], [0])
    assert scores.compute()["map50"] == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_without_images_there_are_no_scores_and_after_a_reset_none_are_left() -> None:
    scores = ObjectScores(CLASSES)
    assert scores.compute()["map"].isnan()
    update(scores, some_images(masks=False))
    scores.reset()
    update(scores, [(0, {"boxes": [], "scores": [], "labels": []}, {"boxes": [[0, 0, 1, 1]], "labels": [1]})])
    assert scores.compute()["map"] == 0


BOX = [[0.0, 0.0, 4.0, 4.0]]


@pytest.mark.parametrize(
    ("found", "true", "reason"),
    [
        ({"boxes": [[0, 0, float("nan"), 4]]}, {}, "image 4, detections: boxes: number 0 .* must be finite"),
        ({"scores": [float("inf")]}, {}, "score is NaN or infinite"),
        ({"labels": [7]}, {}, r"label 7 is outside 0\.\.1"),
        ({"masks": []}, {}, "image 4, detections: 1 boxes, but 0 masks"),
        ({"masks": [b"no!"]}, {}, "no compressed mask"),
        ({}, {"size": (5, 5)}, "sum to 16, not to 5 x 5"),
    ],
)
def test_wrong_input_is_refused_at_once(found: dict[str, Any], true: dict[str, Any], reason: str) -> None:
    text = rle.to_text(rle.encode(np.ones((4, 4))))
    detections = {"boxes": BOX, "scores": [0.5], "labels": [0], "masks": [text]}
    truth = {"boxes": BOX, "labels": [0], "masks": [text], "size": (4, 4)}
    scores = ObjectScores(2, masks=True)
    with pytest.raises(InputError, match=reason):
        scores.update([detections | found], [truth | true], [4])


def test_counts_of_images_must_agree() -> None:
    with pytest.raises(InputError, match="for 0 images, truth for 1, and 1 indices"):
        ObjectScores(2).update([], [{"boxes": BOX, "labels": [0]}], [0])


def _process(rank: int, parts: list[list[Image]], masks: bool, folder: str) -> None:
    """One process of a group: it sees its part, and writes what it computes."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(parts))
    scores = ObjectScores(CLASSES, max_dets=(1, 10, 20), masks=masks)
    for one in parts[rank]:
        update(scores, [one])
    found = scores.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("counts", [(3, 2, 0), (5, 0), (0, 5)], ids=str)
def test_processes_change_no_digit(counts: tuple[int, ...], masks: bool, tmp_path: Path) -> None:
    part = some_images(masks)
    bounds = np.cumsum([0, *counts])
    parts = [part[start:stop][::-1] for start, stop in itertools.pairwise(bounds)]
    if masks:  # One without any object, so that a process has images, but no texts.
        parts[0].append((9, *_arguments(Detections([], [], []), Truth([], [], []), True)))
        part = [*part, parts[0][-1]]
    wanted = computed(part, masks)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_process, args=(i, parts, masks, str(tmp_path))) for i in range(len(parts))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * len(parts)
    for rank in range(len(parts)):
        assert same(torch.load(tmp_path / f"{rank}.pt"), wanted)


def test_intervals_are_those_of_images_drawn_anew() -> None:
    """The bootstrap by hand: repeat the images, and score the repetitions."""
    parts = [images(seed, 2, masks=False) for seed in range(2, 24, 2)]
    found, true = [one for part in parts for one in part[0]], [one for part in parts for one in part[1]]
    evaluation = evaluate(found, true, 2)
    low_high = map_intervals(evaluation, len(found), 30, seed=5)
    draws = np.random.default_rng(5).multinomial(len(found), np.full(len(found), 1 / len(found)), 30)
    scores = []
    for draw in draws:
        places = np.repeat(np.arange(len(found)), draw).tolist()
        again = average_precision(evaluate([found[i] for i in places], [true[i] for i in places], 2)).summary
        scores.append([again["map"], again["map50"]])
    expected = np.quantile(np.array(scores), [0.025, 0.975], axis=0).T
    np.testing.assert_allclose(low_high, expected, atol=1e-12)
    assert (low_high[:, 0] < low_high[:, 1]).all()
    nothing = evaluate([Detections(np.zeros((0, 4)), [], [])], [Truth(np.zeros((0, 4)), [])], 2)
    assert np.isnan(map_intervals(nothing, 1, 5)).all()


def test_more_than_100_objects_are_also_measured_as_coco_counts() -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 900, (150, 2))
    true = {"boxes": np.concatenate([corners, corners + 30], axis=1), "labels": np.zeros(150, np.int64)}
    scores = draw.random(150)
    found = {"boxes": true["boxes"] + draw.normal(0, 2, (150, 4)), "scores": scores, "labels": true["labels"]}
    best = np.argsort(-scores)[:100]
    results = {}
    for name, most, chosen in (("all", 300, slice(None)), ("fewer", 100, best)):
        metric = ObjectScores(1, max_dets=(1, 10, most), repeats=3)
        metric.update([{key: value[chosen] for key, value in found.items()}], [true], [0])
        results[name] = metric.compute()
    assert results["all"]["map_max100"] == results["fewer"]["map"]
    assert results["all"]["map50_max100"] == results["fewer"]["map50"]
    assert results["all"]["map"] > results["fewer"]["map"] + 0.1
    assert "map_max100" not in results["fewer"]
