"""The loss of detection: who answers for an object, worked out by hand, and sums that are divided once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnlab.errors import InputError
from cnnlab.losses import DetectionLoss
from cnnlab.losses.detection import assign_by_quality, assign_static, box_iou
from cnnlab.objects import Objects, Truth
from tests.models.test_detector import objects


def grid(sides: int = 64, strides: tuple[int, ...] = (8, 16, 32)) -> Tensor:
    places = []
    for stride in strides:
        at = (torch.arange(sides // stride) + 0.5) * stride
        y, x = torch.meshgrid(at, at, indexing="ij")
        places.append(torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), float(stride))], dim=1))
    return torch.cat(places)


PLACES = grid()


def boxes_around(places: Tensor, half: float = 10.0) -> Tensor:
    return torch.cat([places[:, :2] - half, places[:, :2] + half], dim=1)[None]


def test_at_first_an_object_gets_the_places_near_its_center_at_the_stride_that_fits() -> None:
    # 20 pixels fit stride 8; the center (20, 20) lies in the cell of the place (20, 20), whose neighbors are 8 away.
    padded = objects([[10.0, 10, 30, 30, 0], [0, 0, 64, 64, 1]]).padded()
    found = assign_static(boxes_around(PLACES), PLACES, padded, radius=1.5)
    small = PLACES[found.objects[0] == 0]
    assert set(small[:, 2].tolist()) == {8}
    assert sorted(map(tuple, small[:, :2].tolist())) == sorted((x, y) for x in (12, 20, 28) for y in (12, 20, 28))
    # 64 pixels fit stride 8 times 8, and no more.
    assert set(PLACES[found.objects[0] == 1][:, 2].tolist()) == {8}
    larger = assign_static(boxes_around(PLACES), PLACES, objects([[0.0, 0, 64, 66, 1]]).padded(), radius=1.5)
    assert set(PLACES[larger.objects[0] == 0][:, 2].tolist()) == {16}
    # A place whose box is right should score 1; the others half and half of their IoU.
    place = ((torch.tensor([20.0, 20, 8]) == PLACES).all(dim=1)).int().argmax()
    assert found.scores[0, place] == 1
    assert found.scores[0][found.objects[0] == 0].min() >= 0.5


def test_an_object_between_all_places_gets_the_nearest() -> None:
    """A small object without a place is never learned (25 of 2,669 boxes of nuclei had none)."""
    found = assign_static(boxes_around(PLACES), PLACES, objects([[13.0, 13, 15, 15, 0]]).padded(), radius=0.1)
    assert PLACES[found.objects[0] == 0].tolist() == [[12, 12, 8]]


def test_of_two_objects_the_smaller_gets_the_place() -> None:
    padded = objects([[0.0, 0, 40, 40, 0], [10, 10, 30, 30, 1]]).padded()
    found = assign_static(boxes_around(PLACES), PLACES, padded, radius=1.5)
    assert (found.objects[0] == 1).sum() == 9


def test_later_an_object_gets_the_places_that_answer_best() -> None:
    padded = objects([[10.0, 10, 30, 30, 1]]).padded()
    scores = torch.full((1, len(PLACES), 2), 0.1)
    best = ((torch.tensor([28.0, 28, 8]) == PLACES).all(dim=1)).int().argmax()
    boxes = boxes_around(PLACES, 2.0)
    boxes[0, best] = torch.tensor([10.0, 10, 30, 28])
    found = assign_by_quality(scores, boxes, PLACES, padded, candidates=1)
    assert (found.objects[0] >= 0).nonzero().flatten().tolist() == [best]
    # It should score as high as its IoU.
    assert found.scores[0, best].item() == pytest.approx(0.9)
    # A place that is sure of the other class does not count.
    scores[0, best] = torch.tensor([0.9, 1e-9])
    assert assign_by_quality(scores, boxes, PLACES, padded, candidates=1).objects[0, best] == -1


def test_a_crowd_is_neither_object_nor_background() -> None:
    padded = objects([[0.0, 0, 32, 32, 0]], crowd=True).padded()
    for found in (
        assign_static(boxes_around(PLACES), PLACES, padded, 1.5),
        assign_by_quality(torch.full((1, len(PLACES), 1), 0.5), boxes_around(PLACES), PLACES, padded, 13),
    ):
        assert (found.objects == -1).all()
        inside = (PLACES[:, 0] < 32) & (PLACES[:, 1] < 32)
        assert torch.equal(found.ignored[0], inside)


def outputs(images: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    half = 4 + 20 * torch.rand(images, len(PLACES), 2, generator=generator, dtype=torch.float64)
    center = PLACES[:, :2] + torch.randn(images, len(PLACES), 2, generator=generator, dtype=torch.float64)
    return {
        "logits": torch.randn(images, len(PLACES), 2, generator=generator, dtype=torch.float64),
        "boxes": torch.cat([center - half, center + half], dim=2),
        "places": PLACES.expand(images, *PLACES.shape),
    }


@pytest.mark.parametrize("place", [0.0, 0.9])
def test_parts_of_a_batch_add_up_to_the_whole(place: float) -> None:
    """A mean of means weighs the objects of sparse batches more."""
    loss = DetectionLoss()
    loss.place_in_run = place
    targets = objects([[4.0, 4, 20, 20, 0]], [], [[0, 0, 60, 60, 1], [30, 30, 50, 45, 0], [5, 40, 15, 60, 1]], [])
    made = outputs(4)
    whole = loss.parts(made, targets)
    split = [({k: v[part] for k, v in made.items()}, targets[part]) for part in (slice(0, 1), slice(1, 4))]
    counts = [loss.counts(own) for _, own in split]
    summed = sum(loss.parts(*one) * count for one, count in zip(split, counts, strict=True))
    assert sum(counts).tolist() == loss.counts(targets).tolist() == [8, 8]  # type: ignore[union-attr]
    torch.testing.assert_close(summed / sum(counts), whole)


def test_images_whose_objects_are_unknown_do_not_count() -> None:
    targets = objects([[4.0, 4, 20, 20, 0]], [])
    unknown = Objects(targets.boxes, targets.labels, targets.crowd, torch.tensor([1, -1]))
    made = outputs(2)
    loss = DetectionLoss()
    alone = loss.parts({name: value[:1] for name, value in made.items()}, unknown[0])
    torch.testing.assert_close(loss.parts(made, unknown), alone)
    assert [len(rows) for rows in unknown] == [1, 1]
    assert torch.tensor(unknown.arrays()[1]).isnan().all()


def test_objects_are_sliced_with_their_images() -> None:
    targets = objects([[4.0, 4, 20, 20, 0]], [], [[0, 0, 60, 60, 1], [30, 30, 50, 45, 0]])
    assert [len(targets[place].boxes) for place in range(3)] == [1, 0, 2]
    assert targets[1:].boxes.tolist() == [[0, 0, 60, 60], [30, 30, 50, 45]]
    assert len(targets[:0]) == 0
    padded = targets.padded()
    assert padded.exists.tolist() == [[True, False], [False, False], [True, True]]
    assert Truth.__doc__


def test_iou_of_boxes_without_an_area_is_zero() -> None:
    """Degenerate boxes made NaN (vision#2240, #994)."""
    empty = torch.tensor([[[5.0, 5, 5, 5], [7, 7, 3, 3]]])
    assert box_iou(empty, empty).tolist() == [[[0, 0], [0, 0]]]


def test_classes_are_weighted_in_both_parts() -> None:
    torch.manual_seed(0)
    raw = {"logits": torch.randn(1, len(PLACES), 2), "boxes": boxes_around(PLACES), "places": PLACES[None]}
    targets = objects([[10.0, 10, 30, 30, 0], [32, 32, 60, 60, 1]])

    def parts(*weights: float) -> Tensor:
        return DetectionLoss(class_weights=weights).parts(raw, targets)

    torch.testing.assert_close(parts(1, 1), DetectionLoss().parts(raw, targets))
    torch.testing.assert_close(parts(3, 0) + parts(0, 5), parts(3, 5))
    torch.testing.assert_close(parts(3, 0), 3 * parts(1, 0))
    with pytest.raises(InputError, match="class_weights are"):
        DetectionLoss(class_weights=[1.0, -1.0])


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"model.static_share is 1.5, expected 0 to 1"):
        DetectionLoss(1.5)
