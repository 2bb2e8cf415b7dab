"""Images with boxes: sizes, batches, augmentation in step, rare classes, what a check says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.data import BoxFolder
from cnnlab.data.augmentation import InputSpec
from cnnlab.data.object_annotation import ObjectAnnotation
from cnnlab.data.object_augmentation import ObjectTransform
from cnnlab.data.warp import Box, Geometry, affine_of, move_points, warp
from cnnlab.errors import InputError
from cnnlab.imaging import InMemoryImage
from tests.data.objects.pictures import NAMES, write_objects


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_objects(tmp_path / "photos", {"train": 9, "val": 4, "test": 4})


def made(root: Path, **kwargs: Any) -> BoxFolder:
    data = BoxFolder(root=str(root), **{"size": 64, "num_workers": 0, "batch_size": 4, **kwargs})
    data.setup("fit")
    return data


def test_one_number_is_the_longer_side_of_the_smallest_input_that_fits(root: Path, tmp_path: Path) -> None:
    assert made(root).input_spec().size == (64, 64)
    wide = write_objects(tmp_path / "wide", {"train": 4, "val": 2, "test": 2}, size=(48, 96))
    assert made(wide, size=100).input_spec().size == (64, 128)
    assert made(wide, size=[40, 60]).hparams["size"] == [40, 60]


def test_evaluation_fits_the_whole_image_and_keeps_the_truth(root: Path) -> None:
    data = made(root, size=[96, 96])
    batches = [Batch.of(batch) for batch in data.val_dataloader()]
    assert [len(batch) for batch in batches] == [4]
    targets = batches[0].targets
    # 48 x 64 becomes 72 x 96, and the rest is the fill color.
    assert (batches[0].images[:, :, 72:] == data.input_spec().fill.round().view(3, 1, 1)).all()
    entries = json.loads((root / "val.json").read_text())["annotations"]
    for i, truth in enumerate(targets.truths):
        expected = [entry["bbox"] for entry in entries if entry["image_id"] == i]
        assert [[*box[:2], box[2] - box[0], box[3] - box[1]] for box in truth.boxes.tolist()] == expected
        np.testing.assert_allclose(targets.arrays()[i][:, :4], truth.boxes * 1.5, rtol=1e-6)
        assert truth.size == (48, 64)


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong", "albumentations"])
def test_boxes_move_with_their_objects(root: Path, augment: str) -> None:
    """Users met boxes beside their objects after augmentation (a flip is width - x, not width - 1 - x)."""
    colors: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "hue", "saturation"), 0.0)
    own = {"transforms": [{"name": "HorizontalFlip"}, {"name": "Affine", "scale": [0.8, 1.2], "rotate": [-8, 8]}]}
    data = made(root, augment=augment, augment_args=own if augment == "albumentations" else colors)
    seen = 0
    for epoch in range(3):
        batch = data.train_set.__getitems__([(epoch, i, 0) for i in range(9)])
        for image, rows in zip(batch.images.int(), batch.targets.arrays(), strict=True):
            blue, yellow = image[2] > 180, image[0] > 180
            for left, top, right, bottom, label, _ in rows.tolist():
                found = (yellow if label else blue)[round(top) : round(bottom), round(left) : round(right)]
                if min(found.shape) < 6 or found.float().mean() < 0.4:
                    continue  # Small, or under another object.
                rows_in, columns_in = found.any(dim=1), found.any(dim=0)
                # The object reaches to all four sides of its box.
                slack = 3 if augment in ("strong", "albumentations") else 1.6
                assert rows_in.sum() >= len(rows_in) - 2 * slack
                assert columns_in.sum() >= len(columns_in) - 2 * slack
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize(("flip", "angle"), [(False, 0.0), (True, 0.0), (False, 30.0), (True, -10.0)])
def test_points_are_where_the_pixels_are(quarters: int, flip: bool, angle: float) -> None:
    pixels = torch.zeros(40, 60, 1)
    pixels[10:14, 40:44] = 250
    annotation = ObjectAnnotation(
        np.array([[40.0, 10, 44, 14]]), np.zeros(1, np.int64), np.zeros(1, bool), (40, 60)
    ).turn(quarters)
    turned = torch.rot90(pixels, quarters)
    box = Box(2, 3, turned.shape[0] - 4, turned.shape[1] - 5)
    geometry = Geometry(box, flip=flip, angle=angle, shift=(2, -3))
    result = warp(turned, geometry, (80, 90), torch.zeros(1))[0]
    rows, columns = np.indices(result.shape)
    weights = result.numpy() / result.sum().item()
    center = annotation.boxes.reshape(2, 2).mean(axis=0)
    x, y = move_points(center, affine_of(geometry, (80, 90)))
    assert (weights * (columns + 0.5)).sum() == pytest.approx(x, abs=0.05)
    assert (weights * (rows + 0.5)).sum() == pytest.approx(y, abs=0.05)


def test_objects_of_which_little_is_visible_are_left_out() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [20, 0, 40, 10], [0, 30, 10, 40]])
    annotation = ObjectAnnotation(boxes, np.array([0, 1, 2]), np.zeros(3, bool), (40, 40), least_visible=0.3)
    moved = annotation.warp(Geometry(Box(0, 5, 20, 20)), (20, 20))
    # Half of the first, a quarter of the second, nothing of the third.
    assert moved.labels.tolist() == [0]
    assert moved.boxes.tolist() == [[0, 0, 5, 10]]
    assert moved.size == (20, 20)


def test_a_rotated_outline_has_a_smaller_box_than_rotated_corners() -> None:
    """The box of rotated corners is up to twice as large as the object."""
    angles = np.linspace(0, 2 * np.pi, 40)
    disk = np.stack([20 + 10 * np.cos(angles), 20 + 10 * np.sin(angles)], axis=1)
    common = (np.array([[10.0, 10, 30, 30]]), np.zeros(1, np.int64), np.zeros(1, bool), (40, 40))
    geometry = Geometry(Box(0, 0, 40, 40), angle=45)
    shapes: list[Any] = [None, [[disk.astype(np.float32)]]]
    moved = [ObjectAnnotation(*common, shape).warp(geometry, (40, 40)).boxes[0] for shape in shapes]
    areas = [float((box[2:] - box[:2]).prod()) for box in moved]
    assert areas[0] == pytest.approx(800, rel=1e-3)
    assert areas[1] == pytest.approx(400, rel=0.02)


def test_a_crop_without_objects_moves_to_one() -> None:
    annotation = ObjectAnnotation(np.array([[80.0, 80, 90, 90]]), np.zeros(1, np.int64), np.zeros(1, bool), (100, 100))
    moved = annotation.move_crop(Box(0, 0, 30, 30), [0.5])
    assert moved == Box(70, 70, 30, 30)
    assert annotation.move_crop(Box(65, 65, 30, 30), [0.5]) == Box(65, 65, 30, 30)


def test_numbers_alone_decide_on_a_training_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    annotation = ObjectAnnotation(np.array([[10.0, 10, 40, 50]]), np.zeros(1, np.int64), np.zeros(1, bool), (90, 70))
    transform = ObjectTransform(turns=True, degrees=10, vertical_flip=0.5)
    spec = InputSpec((32, 48), 3, torch.tensor([1.0, 2, 3]), 1.0, "bilinear")
    numbers = np.random.default_rng(1).random(transform.draws + annotation.draws).tolist()
    first, again = (transform(InMemoryImage(pixels), annotation, spec, numbers) for _ in range(2))
    assert first[0].shape == (3, 32, 48)
    assert torch.equal(first[0], again[0])
    assert first[1].boxes.tolist() == again[1].boxes.tolist()


def test_images_with_rare_classes_are_drawn_more_often(root: Path) -> None:
    assert made(root).train_weights() is None
    path = root / "train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 1 or one["image_id"] == 3]
    content["annotations"].append({**content["annotations"][0], "id": 999, "image_id": 3, "category_id": 3})
    path.write_text(json.dumps(content))
    data = made(root, repeat=1.0)
    weights = data.train_weights()
    assert weights is not None
    index = [Path(name).stem for name in data.train_set.paths].index("03")
    # One of nine images has a disk.
    assert weights[index].item() == pytest.approx(3.0)
    assert weights.max() == weights[index]
    empty = [Path(name).stem for name in data.train_set.paths].index("00")
    assert weights[empty] == 1


def test_a_check_tells_of_objects_and_a_description_of_those_without(root: Path) -> None:
    data = made(root)
    assert "images have no objects" in data.describe_targets()
    assert data.describe_training().startswith("training objects by class: square ")
    lines = "\n".join(data.describe_images())
    assert "sizes at 64 x 64" in lines
    assert data.manifest()[3]["objects"]
    assert data.class_names == list(NAMES)


def test_an_image_of_another_size_than_its_boxes_is_named(root: Path) -> None:
    """EXIF-turned images had boxes of the other orientation (yolov5#405, ultralytics#19222)."""
    Image.new("RGB", (48, 64)).save(root / "train/01.png")
    with pytest.raises(InputError, match=r"01.png: its annotations declare 64 x 48"):
        made(root).train_set.source.__getitems__([1])
    with pytest.warns(UserWarning, match="1 of 17 images cannot be read"):
        data = made(root, on_error="skip")
    assert len(data.train_set) == 8


def test_no_training_object_is_refused(root: Path) -> None:
    path = root / "train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{**content["annotations"][0], "bbox": [5, 5, 0, 0]}]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="without an area|no area|zero"), pytest.raises(InputError, match="nothing to"):
        made(root)
