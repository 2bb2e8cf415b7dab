"""Detection in tiles: places, seams, and the whole image where one tile covers it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cnnlab import rle
from cnnlab.boxes import seam_groups
from cnnlab.errors import InputError
from cnnlab.imaging import Place
from cnnlab.models import create_detector
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.models.tiles import Tiles, check_tiles, detect_in_tiles, tile_starts
from cnnlab.outputs import Boxes, Instances
from cnnlab.tasks import Detection


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("length", [64, 96, 160, 416, 1024])
def test_tiles_cover_an_axis_and_overlap(length: int, overlap: float) -> None:
    starts = tile_starts(length, 64, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - 64, 0)
    assert all(start % 32 == 0 for start in starts)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(32, 64 * (1 - overlap))).all()


@pytest.mark.parametrize("name", ["one_stage_s", "instances_s"])
def test_one_tile_that_covers_the_image_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = create_detector(name, 2, encoder="resnet10t", width=16).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        whole, tiled = network(images), detect_in_tiles(network, images, 96, 0.2)
    assert whole.keys() == tiled.keys()
    assert all(torch.equal(whole[key], tiled[key]) for key in whole)


@pytest.mark.parametrize("name", ["one_stage_s", "instances_s"])
def test_places_and_boxes_are_those_of_the_image(name: str) -> None:
    torch.manual_seed(0)
    network = create_detector(name, 2, encoder="resnet10t", width=16).eval()
    images = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        tiled = Tiles(network, 64, 0.25)(images)
        last = network(torch.nn.functional.pad(images, (0, 10, 0, 28))[..., 64:128, 96:160])
    count = last["logits"].shape[1]
    offset = torch.tensor([96.0, 64, 96, 64])
    torch.testing.assert_close(tiled["logits"][:, -count:], last["logits"])
    torch.testing.assert_close(tiled["boxes"][:, -count:], last["boxes"] + offset)
    torch.testing.assert_close(tiled["places"][:, -count:, :2], last["places"][..., :2] + offset[:2])
    rows = "found_scores" if name == "instances_s" else "logits"
    assert tiled["windows"].shape == (2, tiled[rows].shape[1], 4)
    assert tiled["windows"][0, -1].tolist() == [96, 64, 160, 128]
    decoder = (InstanceDecoder if name == "instances_s" else BoxDecoder)(50)
    found = decoder(tiled)
    assert found["windows"].shape == (2, 50, 4)
    # The center of each box lies in its tile, if the box is not far larger than a tile.
    if name == "instances_s":
        assert tiled["fine"].shape[-2:] == (64, 80)
        torch.testing.assert_close(tiled["fine"][..., 32:, 48:], last["fine"])


def test_parts_that_a_border_has_cut_are_one_object() -> None:
    left, right = [0.0, 0, 64, 64], [48.0, 0, 112, 64]
    boxes = np.array(
        [
            [40.0, 10, 64, 30],  # Cut at the right of the left tile,
            [48, 10, 80, 31],  # and at the left of the right one.
            [40, 40, 63.5, 50],  # Cut,
            [50.2, 40, 70, 50],  # another object.
            [20, 40, 30, 50],
            [64, 0, 70, 10],
        ]
    )
    windows = np.array([left, right, left, right, left, right])
    labels = np.zeros(6, np.int64)
    groups = seam_groups(boxes, labels, windows)
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3], [4], [5]]
    labels[1] = 1
    boxes[3, 1:] = 44, 70, 64
    assert [len(group) for group in seam_groups(boxes, labels, windows)] == [1] * 6
    assert seam_groups(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros((0, 4))) == []
    # Two that are whole in both tiles are two, however much they overlap: that is for the suppression to decide.
    whole = np.array([[50.0, 40, 60, 50], [51, 40, 61, 50]])
    assert len(seam_groups(whole, labels[:2] * 0, windows[:2])) == 2


def test_answers_are_joined() -> None:
    arrays = {
        "boxes": np.array([[[40, 10, 64, 30], [48, 10, 80, 30], [0, 0, 5, 5]]], np.float32),
        "scores": np.array([[0.9, 0.8, 0.7]], np.float32),
        "labels": np.array([[0, 0, 0]]),
        "windows": np.array([[[0, 0, 64, 64], [48, 0, 112, 64], [0, 0, 64, 64]]], np.float32),
        "regions": np.array([[[40, 10, 64, 30], [48, 10, 80, 30], [0, 0, 5, 5]]], np.float32),
        "masks": np.full((1, 3, 28, 28), 255, np.uint8),
    }
    place = Place((128, 224), (64, 112))
    (answer,) = Boxes(["a"], tiled=True).answers(arrays, [""], [place])
    assert answer.boxes.tolist() == [[80, 20, 160, 60], [0, 0, 10, 10]]
    assert answer.scores.tolist() == pytest.approx([0.9, 0.7])
    shown: Any = Instances(["a"], tiled=True).answers(arrays, [""], [place])[0]
    both = rle.decode(rle.encode_crop(shown.masks[0], shown.size))
    assert both[24:56, 90:150].all()
    assert both.sum() > 0.97 * 80 * 40
    assert Boxes(["a"], tiled=True).metadata()["tiled"]


def test_wrong_tiles_are_refused() -> None:
    for size, overlap, message in ((40, 0.2, "model.tile is 40"), (64, 1.0, "model.tile_overlap is 1.0")):
        with pytest.raises(InputError, match=message):
            check_tiles(size, overlap)
    with pytest.raises(InputError, match="multiple of 32"):
        Detection(tile=1)
