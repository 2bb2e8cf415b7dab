"""Detectors in two stages: proposals, what is learned of them, files, tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from cnnlab.deploy.export import Pipeline, export
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.prune import prune_channels
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.losses import DetectionLoss
from cnnlab.losses.detection import assign_by_overlap
from cnnlab.models import create_detector, layer_groups
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.models.regions import image_numbers, pool_regions
from cnnlab.models.tiles import Tiles
from cnnlab.outputs import Instances
from tests.models.test_detector import objects


def detector(name: str = "two_stage_s", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return create_detector(name, 3, **{"encoder": "resnet10t", "width": 16, "hidden": 32, **kwargs})


def unlike(network: Any, images: Tensor) -> Any:
    """The same network with scores and boxes that differ from place to place, as in a trained one."""
    for name in ("classify", "region_classes", "region_boxes"):
        layer = getattr(network, name)
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.std()))
        with torch.no_grad():
            network(images)
            layer.weight.mul_((0.3 if name == "region_boxes" else 2.0) / max(seen))
        handle.remove()
    return network


def test_features_are_pooled_as_torchvision_does() -> None:
    """From the map that fits a box's size, in files too, which have no branches."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, 64 // stride, 96 // stride) for stride in (4, 8, 16)]
    boxes = torch.tensor(
        [[[3.0, 4, 20, 30], [0, 0, 96, 64], [5, 5, 5, 9]], [[1, 2, 9, 8], [30, 3, 95, 60], [0, 0, 4, 4]]]
    )
    named = {str(place): one for place, one in enumerate(maps)}
    for factor in (1.0, 8.0):
        larger = boxes * factor
        pooler = MultiScaleRoIAlign(list(named), 7, 2)
        expected = pooler(named, list(larger), [(64, 96)] * 2)
        found = pool_regions(maps, [4, 8, 16], larger.flatten(0, 1), image_numbers(larger), 7)
        torch.testing.assert_close(found, expected)


def test_every_parameter_learns_and_no_object_is_no_fault() -> None:
    network = detector()
    for targets in (objects([[4.0, 4, 20, 20, 0], [0, 0, 60, 60, 2]], []), objects([], [])):
        network.zero_grad()
        outputs = network(torch.randn(2, 3, 64, 96))
        parts = DetectionLoss().parts(outputs, targets)
        torch.autograd.backward(parts.sum())
        assert parts[0] > 0
        assert parts.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    names = [name for group in layer_groups(network) for name, _ in group.parameters_of(network)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert layer_groups(network)[-1].name == "head"


def test_both_stages_find_one_object() -> None:
    """Trained on one image, proposals and their classes fit it."""
    network = detector()
    images, targets = torch.randn(2, 3, 64, 64), objects([[8.0, 8, 40, 32, 0], [30, 34, 62, 60, 2]], [])
    optimizer, loss = torch.optim.Adam(network.parameters(), 3e-3), DetectionLoss()
    for step in range(60):
        loss.place_in_run = step / 60
        optimizer.zero_grad()
        loss(network(images), targets).backward()
        optimizer.step()
    outputs = network(images)
    scores = outputs["logits"].sigmoid()
    best = scores[0].amax(dim=0)
    assert min(best[0], best[2]) > 0.7
    assert best[1] < 0.3
    assert scores[1].max() < 0.3
    for label, box in ((0, targets.boxes[0]), (2, targets.boxes[1])):
        place = scores[0, :, label].argmax()
        torch.testing.assert_close(outputs["boxes"][0, place], box, atol=3.0, rtol=0)
        near = (outputs["proposals"][0] - box).abs().amax(dim=1)
        assert near.min() < 8


def test_a_proposal_answers_for_the_object_that_it_overlaps() -> None:
    padded = objects([[0.0, 0, 10, 10, 0], [20, 0, 30, 10, 1], [50, 50, 60, 60, 2]]).padded()
    proposals = torch.tensor([[[0.0, 0, 10, 8], [0, 0, 10, 30], [20, 0, 30, 30], [70, 70, 80, 80]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 20], [50, 50, 60, 60]]])
    places = torch.zeros(1, 4, 3)
    found = assign_by_overlap(proposals, boxes, places, padded)
    # The third has an IoU of a third only, but no other one overlaps its object; nothing overlaps the last object.
    assert found.objects.tolist() == [[0, -1, 1, -1]]
    assert found.scores[0, :3].tolist() == [1, 0, 0.5]
    # A box that has lost its object would never be learned again: its weight would be 0, and its score too.
    lost = assign_by_overlap(proposals, boxes + 200, places, padded)
    assert lost.scores[0, :3].tolist() == pytest.approx([0.8, 0, 1 / 3])
    crowd = objects([[0.0, 0, 10, 10, 0]], crowd=True).padded()
    places[0, 0, :2] = 5
    ignored = assign_by_overlap(proposals, boxes, places + torch.tensor([[[0.0], [90], [90], [90]]]), crowd)
    assert ignored.ignored.tolist() == [[True, False, False, False]]
    assert (ignored.objects == -1).all()


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    outputs = detector(proposals=20).eval()(torch.randn(2, 3, *size))
    rows, columns = (-(-side // 32) * 32 for side in size)
    count = min(20, sum(rows * columns // stride**2 for stride in (8, 16, 32)))
    assert outputs["logits"].shape == (2, count, 3)
    assert outputs["boxes"].shape == outputs["proposals"].shape == (2, count, 4)
    assert (outputs["proposals"] >= 0).all()
    assert (outputs["proposals"][..., 2:] <= torch.tensor([columns, rows])).all()


def test_coordinates_keep_their_digits_in_half_precision() -> None:
    """In bfloat16, 301.25 is 302."""
    network = detector(proposals=20).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(1, 3, 64, 320))
    assert outputs["boxes"].dtype == outputs["logits"].dtype == torch.float32
    assert (outputs["boxes"] != outputs["boxes"].bfloat16().float()).any()


def test_a_box_that_is_no_number_does_not_end_the_process() -> None:
    network = detector().eval()
    images = torch.randn(1, 3, 64, 64)
    images[0, 0, 0, 0] = torch.nan
    outputs = network(images)
    assert outputs["boxes"].shape == (1, 84, 4)
    assert outputs["proposals"].isfinite().all()


def test_pruning_keeps_the_outputs() -> None:
    pytest.importorskip("torch_pruning")
    network = detector().eval()
    prune_channels(network, torch.randn(1, 3, 64, 64), 0.5)
    outputs = network(torch.randn(1, 3, 64, 64))
    assert outputs["logits"].shape[2] == 3
    assert outputs["boxes"].shape[2] == 4


def test_tiles_move_proposals_too() -> None:
    network = detector(proposals=10).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tiled, last = Tiles(network, 64, 0.25)(images), network(images[..., 32:])
    offset = torch.tensor([32.0, 0, 32, 0])
    for name in ("boxes", "proposals", "proposal_boxes"):
        count = last[name].shape[1]
        torch.testing.assert_close(tiled[name][:, -count:], last[name] + offset)
    for name in ("places", "proposal_places"):
        count = last[name].shape[1]
        torch.testing.assert_close(tiled[name][:, -count:, :2], last[name][..., :2] + offset[:2])


@pytest.mark.slow
def test_a_file_answers_as_the_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = torch.nn.functional.interpolate(torch.randn(5, 3, 12, 12), (96, 96), mode="bilinear")
    network = detector("two_stage_instances_s", proposals=30).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(images)
    network = unlike(network.eval(), images)
    output = Instances("abc", count=20, nms=0.5)
    metadata = ModelMetadata(output, EvalTransform(3, (96, 96)))
    certificate = export(Pipeline(None, network, InstanceDecoder(20, 0.5)), images, tmp_path / "network.onnx", metadata)
    assert set(certificate["differences"]) == {"1", "2", "5"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proposals": 0}, "proposals is 0"),
        ({"proposal_nms": 0.0}, "proposal_nms is 0.0"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector(**settings)
