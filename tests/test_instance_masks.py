"""Masks of instances: their grids in a batch, regions, decoding, and answers in the original image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnlab import rle
from cnnlab.batch import Batch
from cnnlab.data import InstanceFolder
from cnnlab.imaging import Place
from cnnlab.losses import DetectionLoss
from cnnlab.losses.instances import InstanceLoss, Regions, masks_in
from cnnlab.models import create_detector, layer_groups
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.outputs import Instances
from tests.data.objects.pictures import write_objects


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    root = write_objects(tmp_path / "photos", {"train": 9, "val": 4, "test": 4})
    data = InstanceFolder(root=str(root), size=64, num_workers=0, batch_size=4, augment="none")
    data.setup("fit")
    return Batch.of(next(iter(data.val_dataloader())))


def test_masks_are_grids_over_their_boxes(batch: Batch) -> None:
    targets = batch.targets
    assert targets.masks.shape == (len(targets.boxes), 56, 56)
    for mask, label in zip(targets.masks.float() / 255, targets.labels, strict=True):
        # A square fills its box, a disk pi / 4 of it.
        assert (mask >= 0.5).float().mean().item() == pytest.approx(0.785 if label else 1.0, abs=0.05)
        assert mask[28, 28] == 1
    assert [len(targets[i].masks) for i in range(4)] == targets.counts.tolist()


def test_a_mask_moves_into_another_box() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :, :4] = 255
    boxes = torch.tensor([[10.0, 10, 30, 30]])
    first = torch.zeros(2, dtype=torch.int64)
    same = Regions(torch.tensor([[10.0, 10, 30, 30], [0, 0, 8, 8]]), first, first, first[:1])
    found = masks_in(masks, boxes, same, 8)
    torch.testing.assert_close(found, masks.float() / 255)
    # Twice as large a region: the object is in its middle, and nothing around it.
    wider = masks_in(masks, boxes, same._replace(boxes=torch.tensor([[0.0, 0, 40, 40], [0, 0, 8, 8]])), 16)
    assert wider[0, 4:12, 4:8].min() == 1
    assert wider[0, :, 9:].max() == 0
    assert wider[0, :3].max() == wider[0, 13:].max() == 0


def test_every_parameter_learns_and_no_object_is_no_fault(batch: Batch) -> None:
    """Cross-entropy of no masks is NaN (mmdet#2153)."""
    torch.manual_seed(0)
    network: Any = create_detector("instances_s", 2, encoder="resnet10t", width=16)
    loss = InstanceLoss(DetectionLoss())
    for targets in (batch.targets, batch.targets[:1]):
        outputs = network(torch.randn(len(targets), 3, 64, 64))
        regions = loss.regions(outputs, targets)
        regions = regions._replace(boxes=network.mask_regions(regions.boxes))
        logits = network.mask_logits(outputs, regions.boxes, regions.images, regions.labels)
        assert len(logits) == len(targets.boxes) + 1
        parts = loss.parts({**outputs, "mask_regions": regions, "region_logits": logits}, targets)
        assert parts.shape == (3,)
        assert parts.isfinite().all()
        network.zero_grad()
        torch.autograd.backward(parts.sum())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    names = [name for group in layer_groups(network) for name, _ in group.parameters_of(network)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())


def test_coordinates_keep_their_digits_in_half_precision() -> None:
    """In bfloat16, 301.25 is 302."""
    torch.manual_seed(0)
    network: Any = create_detector("instances_s", 2, encoder="resnet10t", width=16).eval()
    fine, images = torch.randn(1, 32, 80, 200), torch.zeros(1, dtype=torch.int64)
    regions = torch.tensor([[301.25, 21.75, 333.5, 55.125]])
    with torch.no_grad():
        expected = network.mask_logits({"fine": fine.bfloat16().float()}, regions, images, images)
        found = network.mask_logits({"fine": fine.bfloat16()}, regions, images, images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.mask_logits({"fine": fine.bfloat16()}, regions, images, images)
    assert torch.equal(found, expected)
    assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()


def test_boxes_are_those_of_the_masks_and_doubtful_masks_come_later() -> None:
    logits = torch.full((1, 2, 28, 28), -20.0)
    logits[0, 0, 7:21, 14:28] = 20.0
    logits[0, 1, :14, :14] = 1.0
    raw = {
        "found_boxes": torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 9]]]),
        "found_scores": torch.tensor([[0.8, 0.9]]),
        "found_labels": torch.tensor([[1, 0]]),
        "regions": torch.tensor([[[0.0, 0, 56, 56], [100, 100, 128, 128]]]),
        "mask_logits": logits,
    }
    found = InstanceDecoder(2)(raw)
    assert found["labels"].tolist() == [[1, 0]]
    # The edges lie where a line between the centers of two cells crosses 0.5.
    edge = 0.5 - (0.731059 - 0.5) / 0.731059
    boxes = torch.tensor([[[28, 14, 56, 42], [100 + edge, 100 + edge, 114 - edge, 114 - edge]]])
    torch.testing.assert_close(found["boxes"], boxes)
    torch.testing.assert_close(found["scores"], torch.tensor([[0.8, 0.9 * 0.731059]]))
    again = Instances(["a", "b"], count=2).decode({name: value.numpy() for name, value in raw.items()})
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value.numpy(), rtol=1e-5)


def test_masks_go_back_to_the_original_image() -> None:
    masks = np.zeros((1, 1, 28, 28), np.uint8)
    masks[0, 0, 7:21, 7:21] = 255
    arrays = {
        "boxes": np.array([[[20, 20, 40, 40]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "labels": np.array([[0]]),
        "masks": masks,
        "regions": np.array([[[10, 10, 50, 50]]], np.float32),
    }
    output = Instances(["a"])
    answer: Any = output.answers(arrays, ["a.png"], [Place((120, 160), (60, 80))])[0]
    assert answer.boxes.tolist() == [[40, 40, 80, 80]]
    bitmap = rle.decode(rle.from_text(answer.texts()[0], (120, 160)))
    rows, columns = np.nonzero(bitmap)
    assert (rows.min(), columns.min()) == (40, 40)
    assert (rows.max(), columns.max()) == (79, 79)
    # Corners are rounded a little.
    assert 1590 <= bitmap.sum() <= 1600
    (row,) = output.rows(answer, None, {})
    assert len(row) == len(output.columns)
    assert row[-2] == bitmap.sum()
    (unplaced,) = output.answers(arrays, [""], [None])
    assert output.picture(np.zeros((60, 80, 3), np.uint8), unplaced, None).shape == (60, 80, 3)
    assert output.difference(arrays, arrays) == 0


def test_true_masks_are_drawn(batch: Batch) -> None:
    output = Instances(["square", "disk"])
    for image, target in zip(batch.images, batch.targets, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        drawn = output.drawn(pixels, target)
        changed = (drawn != pixels).any(axis=2)
        for box, mask in zip(target[:, :4].round().astype(int), target[:, 6:], strict=True):
            assert changed[(box[1] + box[3]) // 2, (box[0] + box[2]) // 2]
            assert len(mask) == 56 * 56
        assert changed.any() == bool(len(target))
        assert output.describe(output.answers(nothing(), [""], [None])[0], target)["missed"] == len(target)


def nothing() -> dict[str, np.ndarray]:
    empty = {"boxes": (1, 4), "scores": (1,), "labels": (1,), "masks": (1, 28, 28), "regions": (1, 4)}
    kinds = {"masks": np.uint8, "labels": np.int64}
    return {name: np.zeros((1, *shape), kinds.get(name, np.float32)) for name, shape in empty.items()}
