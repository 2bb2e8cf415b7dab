"""Annotations: what moves with an image, what does not, and how batches of them are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.annotations import Annotation, ClassMask, FixedTarget
from cnnlab.data.augmentation import InputSpec, NoAugmentation
from cnnlab.data.presets import create_augmentation
from cnnlab.data.warp import Box, Geometry
from cnnlab.imaging import LazyImage
from cnnlab.random import uniform

CLASSES = torch.arange(6).view(2, 3)
WHOLE = Box(0, 0, 2, 3)


def mask(classes: Tensor = CLASSES, rare: float = 0.0) -> ClassMask:
    return ClassMask(classes, 255, rare)


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (Geometry(WHOLE), [[0, 1, 2], [3, 4, 5]]),
        (Geometry(WHOLE, flip=True), [[2, 1, 0], [5, 4, 3]]),
        (Geometry(WHOLE, upside_down=True), [[3, 4, 5], [0, 1, 2]]),
        (Geometry(WHOLE, shift=(1, 0)), [[255, 255, 255], [0, 1, 2]]),
        (Geometry(WHOLE, shift=(0, -1)), [[1, 2, 255], [4, 5, 255]]),
        (Geometry(WHOLE, angle=180), [[5, 4, 3], [2, 1, 0]]),
    ],
)
def test_a_mask_follows_the_geometry(geometry: Geometry, expected: list[list[int]]) -> None:
    moved = mask().warp(geometry, (2, 3))
    assert moved.classes.tolist() == expected
    assert moved.classes.dtype == torch.int64


def test_a_mask_of_a_crop_is_brought_to_the_size() -> None:
    moved = mask().warp(Geometry(Box(0, 1, 2, 2)), (4, 4))
    assert moved.classes.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [4, 4, 5, 5], [4, 4, 5, 5]]


def test_erased_pixels_are_ignored_and_the_original_stays() -> None:
    original = mask()
    assert original.erase(Box(0, 1, 1, 2)).classes.tolist() == [[0, 255, 255], [3, 4, 5]]
    assert original.classes.tolist() == CLASSES.tolist()


def test_a_mask_is_resized_to_the_nearest_pixel() -> None:
    assert mask().resize((2, 3)).classes is CLASSES
    assert mask().resize((4, 6)).classes[::2, ::2].tolist() == CLASSES.tolist()


def test_a_crop_is_moved_onto_a_class() -> None:
    classes = torch.zeros(20, 20, dtype=torch.int64)
    classes[15, 3] = 1
    classes[0, 0] = 255
    crop = Box(0, 10, 4, 4)
    numbers = [0.5, 0.9, 0.0, 0.5, 0.5]
    assert mask(classes).move_crop(crop, numbers) is crop
    assert mask(classes, rare=0.5).move_crop(crop, numbers) is crop
    moved = mask(classes, rare=0.6).move_crop(crop, numbers)
    assert (moved.height, moved.width) == (4, 4)
    assert moved.top <= 15 < moved.top + 4
    assert moved.left <= 3 < moved.left + 4
    nothing = mask(torch.full((20, 20), 255), rare=1.0)
    assert nothing.move_crop(crop, numbers) is crop


def test_arrays_go_to_albumentations_and_come_back() -> None:
    arrays = mask().to_arrays()
    assert arrays["mask"].dtype == np.int16
    assert mask(CLASSES * 0).from_arrays(arrays).classes.tolist() == CLASSES.tolist()


def test_a_label_does_not_move() -> None:
    label: Annotation = FixedTarget(torch.tensor(3))
    assert label.warp(Geometry(WHOLE, flip=True), (2, 2)) is label
    assert label.erase(WHOLE) is label.resize((9, 9)) is label.from_arrays(label.to_arrays()) is label
    assert label.move_crop(WHOLE, []) is WHOLE
    assert (label.draws, label.ignore_index) == (0, None)


def test_annotations_are_stacked_to_the_targets_of_a_batch() -> None:
    labels = FixedTarget.stack([FixedTarget(torch.tensor(3)), FixedTarget(torch.tensor(1))])
    assert (labels.tolist(), labels.dtype) == ([3, 1], torch.int64)
    values = FixedTarget.stack([FixedTarget(torch.tensor([0.5, 2.0])), FixedTarget(torch.tensor([1.0, 3.0]))])
    assert (values.tolist(), values.dtype) == ([[0.5, 2.0], [1.0, 3.0]], torch.float32)
    assert ClassMask.stack([mask(), mask()]).shape == (2, 2, 3)


class Centers(Annotation):
    """Points, which no augmentation of cnnlab knows: it follows boxes of pixels by the class's own methods alone."""

    def __init__(self, steps: tuple[str, ...] = ()) -> None:
        self.steps = steps

    def warp(self, geometry: Geometry, size: tuple[int, int]) -> Centers:
        return Centers((*self.steps, f"warp to {size}"))

    def erase(self, box: Box) -> Centers:
        return Centers((*self.steps, "erase"))

    def resize(self, size: tuple[int, int]) -> Centers:
        return Centers((*self.steps, f"resize to {size}"))

    @classmethod
    def stack(cls, annotations: object) -> list[object]:
        raise NotImplementedError


def test_a_new_kind_of_annotation_is_moved_without_touching_the_augmentations(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    image, spec = LazyImage(tmp_path / "a.png"), InputSpec((8, 8), 3, torch.zeros(3), 1.0, "bilinear")
    standard = create_augmentation("standard", {"erase": 1.0})
    numbers = uniform(0, np.array([0]), np.array([0]), standard.draws)[0].tolist()
    assert standard(image, Centers(), spec, numbers)[1].steps == ("warp to (8, 8)", "erase")
    assert NoAugmentation()(image, Centers(), spec, [])[1].steps == ("resize to (8, 8)",)


def test_a_native_crop_keeps_the_pixels_and_its_place_comes_from_the_numbers(tmp_path: Path) -> None:
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = InputSpec((4, 5), 1, torch.zeros(1), 1.0, "bilinear", stretch=True, native=True)
    classes = torch.from_numpy(pixels.astype(np.int64))
    for numbers, corner in (([0.9, 0, 0, 0.0, 0.0], 0), ([0.9, 0, 0, 0.99, 0.99], 6 * 20 + 15)):
        image, found = NoAugmentation()(LazyImage(tmp_path / "a.png"), mask(classes), spec, numbers)
        assert found.classes[0, 0] == image[0, 0, 0] == corner
        assert torch.equal(image[0].to(torch.int64), found.classes)
