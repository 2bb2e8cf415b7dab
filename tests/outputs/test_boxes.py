"""Boxes: original pixels, tables, pictures, and the comparison of a file with its network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnlab.imaging import EvalTransform, InMemoryImage, Place, preprocess
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.outputs import Boxes, create_output

NAMES = ["cat", "dog"]
OUTPUT = Boxes(NAMES, [0.5, 0.3], count=4)


def raw(seed: int = 0, images: int = 3, places: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, places, 2, generator=generator) * 50
    sides = 5 + torch.rand(images, places, 2, generator=generator) * 30
    logits = torch.randn(images, places, 2, generator=generator) * 2
    return {"logits": logits, "boxes": torch.cat([corner, corner + sides], dim=2), "places": torch.zeros(1)}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in BoxDecoder(4)(raw(seed)).items()}


def test_a_file_s_reader_decodes_as_the_network_does() -> None:
    found = OUTPUT.decode({name: value.numpy() for name, value in raw().items()})
    for name, value in arrays().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    again = create_output(json.loads(json.dumps(OUTPUT.metadata())))
    assert vars(again) == vars(OUTPUT)


def test_of_overlapping_boxes_of_one_class_and_image_the_best_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]]).expand(2, 3, 4)
    logits = torch.tensor([[[2.0, -9], [1, 3], [0, -9]], [[-9, -9], [1, -9], [0, -9]]])
    found = BoxDecoder(count=3, iou=0.5)({"logits": logits, "boxes": boxes})
    # The second box is a dog and stays; as a cat it is the first one, and goes; the other image does not matter.
    assert found["labels"][0].tolist() == [1, 0, 0]
    torch.testing.assert_close(found["scores"][0], torch.tensor([3.0, 2, 0]).sigmoid())
    torch.testing.assert_close(found["scores"][1, :2], torch.tensor([1.0, 0]).sigmoid())
    assert found["boxes"][0, 0].tolist() == [1, 0, 11, 10]


def test_boxes_go_back_to_the_original_image_through_the_reader_s_own_resize() -> None:
    """Users met boxes that were scaled for another size (yolov5#405), or shifted by a border."""
    transform = EvalTransform(3, (96, 128), pad=(0.0, 0.0, 0.0))
    image = np.zeros((75, 60, 3), dtype=np.uint8)
    image[30:45, 20:50] = 255
    pixels = preprocess(InMemoryImage(image), transform)
    assert pixels.shape == (96, 128, 3)
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found: dict[str, np.ndarray] = {
        "boxes": np.array([[box]], np.float32),
        "scores": np.ones((1, 1)),
        "labels": np.zeros((1, 1), np.int64),
    }
    place = transform.place((75, 60))
    assert place == Place((75, 60), (96, 77))
    (answer,) = OUTPUT.answers(found, ["a.png"], [place])
    np.testing.assert_allclose(answer.boxes, [[20, 30, 50, 45]], atol=0.8)
    (unmoved,) = OUTPUT.answers(found, ["a.png"], [None])
    assert unmoved.boxes.tolist() == [[float(side) for side in box]]


def test_there_is_a_row_for_each_object() -> None:
    found = {
        "boxes": np.array([[[1, 2, 3.5, 4], [0, 0, 9, 9], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.9, 0.25, 0]], np.float32),
        "labels": np.array([[1, 1, 0]]),
    }
    (answer,) = OUTPUT.answers(found, ["a.png"], [None])
    assert OUTPUT.rows(answer, None, {}) == [
        [1, "dog", "0.9", 1, "1", "2", "3.5", "4"],
        [1, "dog", "0.25", 0, "0", "0", "9", "9"],
    ]
    assert OUTPUT.caption(answer, None) == "1 dog"
    truth = np.array([[1, 2, 3, 4, 1, 0], [5, 5, 9, 9, 0, 0]], np.float32)
    assert OUTPUT.describe(answer, truth) == {"objects": 2, "found": 1, "missed": 1, "false": 0}
    assert OUTPUT.is_right(answer, truth[:1])
    assert not OUTPUT.is_right(answer, truth)
    # A box in a crowd is no error.
    in_crowd = np.array([[0, 0, 20, 20, 1, 1]], np.float32)
    assert OUTPUT.describe(answer, in_crowd) == {"objects": 0, "found": 0, "missed": 0, "false": 0}
    assert OUTPUT.known(np.full((1, 6), np.nan)) is None
    assert OUTPUT.label(truth) == "1 cat\n1 dog"
    assert OUTPUT.to_explain([truth, None, truth[:0]]) == [0, None, None]


def test_pictures_show_truth_and_answer() -> None:
    pixels = np.zeros((40, 50, 3), dtype=np.uint8)
    (answer, *_) = OUTPUT.answers(arrays(), ["a.png"] * 3, [None] * 3)
    truth = np.array([[5, 5, 20, 20, 0, 0]], np.float32)
    drawn = OUTPUT.picture(pixels, answer, truth)
    assert drawn.shape == (40, 100, 3)
    assert drawn[5, 10].any()
    assert not drawn[10, 10].any()
    assert not pixels.any()
    assert OUTPUT.picture(pixels, answer, None).shape == pixels.shape
    files = list(OUTPUT.files(answer, InMemoryImage(pixels), True, False))
    assert [(folder, ending) for folder, ending, _ in files] == [("overlays", ".png")]


@pytest.mark.parametrize(
    ("change", "difference"),
    [("nothing", 0.0), ("order", 0.0), ("score", 0.01), ("box", 0.1), ("one less", 0.8), ("nan", np.nan)],
)
def test_two_sets_are_compared_by_matching(change: str, difference: float) -> None:
    """An order that rounding has changed looked like a fault (ultralytics#26269, D-FINE#358)."""
    expected = {
        "boxes": np.array([[[0, 0, 10, 20], [40, 40, 60, 60], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.8, 0.8, 0]], np.float32),
        "labels": np.array([[0, 1, 0]]),
    }
    found = {name: value.copy() for name, value in expected.items()}
    if change == "order":
        found = {name: value[:, [1, 0, 2]] for name, value in found.items()}
    elif change == "score":
        found["scores"][0, 1] += 0.01
    elif change == "box":
        found["boxes"][0, 0, 2] += 1
    elif change == "one less":
        found["scores"][0, 0] = 0
    elif change == "nan":
        found["boxes"][0, 0, 0] = np.nan
    np.testing.assert_allclose(OUTPUT.difference(expected, found), difference, rtol=1e-4)


def test_an_object_beside_the_image_is_left_out() -> None:
    """Below an image that does not fill the input, a network may find something in the filling."""
    arrays = {
        "boxes": np.array([[[0, 0, 8, 8], [0, 33, 8, 40]]], np.float32),
        "scores": np.array([[0.9, 0.8]], np.float32),
        "labels": np.array([[0, 0]]),
    }
    (answer,) = Boxes(["a"]).answers(arrays, [""], [Place((64, 80), (32, 40))])
    assert answer.boxes.tolist() == [[0, 0, 16, 16]]
