"""The one-stage detector: any size, gradients everywhere, boxes in pixels, frozen stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnlab.deploy.prune import prune_channels
from cnnlab.errors import InputError
from cnnlab.losses import DetectionLoss
from cnnlab.models import create_detector, layer_groups
from cnnlab.models.box_decoder import keep_best
from cnnlab.models.groups import backbone_prefix
from cnnlab.objects import Objects


def detector(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return create_detector("one_stage_s", 3, **{"encoder": "resnet10t", "width": 16, **kwargs})  # type: ignore[arg-type]


def objects(*images: list[list[float]], crowd: bool = False) -> Objects:
    """Objects of images: x1, y1, x2, y2, label each."""
    rows = torch.tensor([row for image in images for row in image]).reshape(-1, 5)
    flags = torch.full((len(rows),), crowd)
    return Objects(rows[:, :4], rows[:, 4].long(), flags, torch.tensor([len(image) for image in images]))


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    network = detector().eval()
    with torch.no_grad():
        outputs = network(torch.randn(2, 3, *size))
    rows, columns = (-(-side // 32) * 32 for side in size)
    places = sum(rows * columns // stride**2 for stride in (8, 16, 32))
    assert outputs["logits"].shape == (2, places, 3)
    assert outputs["boxes"].shape == (2, places, 4)
    # The first place is the middle of the first 8 x 8 pixels; the box begins around it.
    assert outputs["places"][0, 0].tolist() == [4, 4, 8]
    assert (outputs["boxes"][..., 2:] > outputs["boxes"][..., :2]).all()
    assert outputs["logits"].sigmoid().max() < 0.1


@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32), (16,)])
def test_every_parameter_receives_a_gradient_and_is_in_one_group(strides: tuple[int, ...]) -> None:
    network = detector(strides=strides)
    targets = objects([[4.0, 4, 20, 20, 0], [0, 0, 60, 60, 2]], [])
    DetectionLoss()(network(torch.randn(2, 3, 64, 64)), targets).backward()
    deepest = {4: 1, 8: 2, 16: 3, 32: 4}[strides[-1]]
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(name.startswith(tuple(f"backbone.layer{i}" for i in range(deepest + 1, 5))) for name in without)
    groups = layer_groups(network)
    names = [name for group in groups for name, _ in group.parameters_of(network)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert groups[-1].name == "head"
    assert backbone_prefix(network) == "backbone."


def test_without_any_object_all_gradients_are_there() -> None:
    """A batch, or a process, without objects ended training (yolov5#1689, mmdet#2153, #7803)."""
    network = detector()
    loss = DetectionLoss()(network(torch.randn(2, 3, 64, 64)), objects([], []))
    loss.backward()
    assert loss > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_strides_have_norms_of_their_own_and_share_the_rest() -> None:
    """Shared batch norms mix the statistics of the strides."""
    network = detector().train()
    network(torch.randn(4, 3, 64, 64))
    means = [norm.running_mean for norm in network.class_branch[0].pointwise_norms]  # type: ignore[index,union-attr]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[1], means[2])


def test_frozen_stages_do_not_change() -> None:
    network = detector(frozen_stages=2)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}  # type: ignore[union-attr]
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    network.train()
    DetectionLoss()(network(torch.randn(2, 3, 64, 64)), objects([[4.0, 4, 20, 20, 0]], [])).backward()
    optimizer.step()
    after: dict[str, Tensor] = network.backbone.state_dict()  # type: ignore[union-attr]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_pruning_keeps_the_outputs() -> None:
    """The scores of all classes but one were pruned away."""
    pytest.importorskip("torch_pruning")
    network = detector().eval()
    prune_channels(network, torch.randn(1, 3, 64, 64), 0.5)
    with torch.no_grad():
        outputs = network(torch.randn(1, 3, 64, 64))
    assert outputs["logits"].shape[2] == 3
    assert outputs["boxes"].shape[2] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": (8, 32)}, r"strides are \[8, 32\], expected some of \[2, 4, 8, 16, 32\]"),
        ({"strides": (64,)}, r"strides are \[64\]"),
        ({"frozen_stages": 9}, r"frozen_stages is 9, expected 0 to 5"),
        ({"depth": 0}, "depth is 0"),
        ({"wide": 3}, "wide"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector(**settings)


def test_the_place_in_a_batch_does_not_change_what_is_suppressed() -> None:
    """With many classes and images, moved boxes lost so many digits that other ones were suppressed."""
    generator = torch.Generator().manual_seed(2)
    corners = 300 * torch.rand(1000, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(1000, 2, generator=generator)], dim=1)
    scores, labels = torch.rand(1000, generator=generator), torch.full((1000,), 79)
    alone = keep_best(boxes[None], scores[None], torch.zeros_like(labels)[None], 0.5)
    kept = keep_best(boxes.expand(16, -1, -1), scores.expand(16, -1), labels.expand(16, -1), 0.5)
    assert torch.equal(kept, alone.expand(16, -1))
    assert 400 < alone.sum() < 700
