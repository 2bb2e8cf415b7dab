"""torchvision's detectors: torchvision's own answers and losses, gradients, weights of files, exported files."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import maskrcnn_inference

from cnnlab.batch import Batch
from cnnlab.commands.models import models
from cnnlab.deploy.export import Pipeline, export
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.losses import NetworkLoss
from cnnlab.models import create_detector, create_network, layer_groups
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.instance_decoder import InstanceDecoder
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.objects import Objects
from cnnlab.outputs import Boxes, Instances
from cnnlab.tasks import Detection
from cnnlab.tasks import Instances as InstancesTask
from tests.conftest import Cnnlab
from tests.data.objects.pictures import write_objects

FAST = ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"]


def names(fast: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in TORCHVISION_DETECTORS]


CLASSES = 3
MASKS = "maskrcnn_resnet50_fpn_v2"
FEWER = {
    **{
        f"rpn_{when}_nms_top_n_{mode}": count
        for when, count in (("pre", 300), ("post", 100))
        for mode in ("train", "test")
    },
    "box_batch_size_per_image": 64,
}
"""Proposals, which take most of the time of Faster R-CNN."""


def settings(name: str) -> dict[str, Any]:
    return FEWER if "rcnn" in name else {}


def side(name: str) -> int:
    # In smaller images, Faster R-CNN has many proposals with equal scores.
    return 320 if "mobilenet" in name else 128


def images_of(name: str, count: int) -> Tensor:
    """Standardized images with some structure, so that places differ."""
    torch.manual_seed(1)
    size = side(name)
    coarse = torch.randn(count, 3, size // 8, size // 8)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear") + 0.3 * torch.randn(count, 3, size, size)


def detector(name: str, norms: bool = True) -> Any:
    """A network with random weights whose scores and boxes differ from place to place.

    With norms, the batch norms know the images' statistics: a deep network then magnifies rounding a thousand times.
    """
    torch.manual_seed(0)
    network: Any = create_detector(name, CLASSES, **settings(name))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    spreads: dict[nn.Module, Tensor] = {}
    lasts = {module: own for own, module in network.named_modules() if is_last(own, module)}
    hooks = [
        # The finest level counts, which comes first.
        module.register_forward_hook(lambda layer, _, output: spreads.setdefault(layer, output.std()) and None)
        for module in lasts
    ]
    network.train(norms)
    with torch.no_grad():
        if norms:
            network(images_of(name, 4))
        network.eval()
        spreads.clear()
        network(images_of(name, 4))
        for module, own in lasts.items():
            of_box = "bbox_pred" in own or "bbox_reg" in own or "regression_head" in own
            module.weight.mul_((0.4 if of_box else 2.0) / spreads[module])
    for hook in hooks:
        hook.remove()
    return network.eval()


@pytest.fixture(scope="module", params=names(FAST))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> Any:
    """One network of each name for all tests, which leave it as it is."""
    return detector(name)


@pytest.fixture
def learner(name: str, network: Any) -> Any:
    """A copy for training."""
    return copy.deepcopy(network).train()


def is_last(name: str, module: nn.Module) -> bool:
    """Whether a layer returns scores or boxes."""
    names = ("cls_logits", "cls_score", "bbox_reg", "bbox_pred", "bbox_ctrness")
    return isinstance(module, (nn.Conv2d, nn.Linear)) and (
        name.endswith(names) or ("head.module_list" in name and name.endswith(".1"))
    )


def is_fixed(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose statistics and weights stay as they are."""
    return isinstance(module, nn.BatchNorm2d) and not module.training and not module.weight.requires_grad


def first_label(name: str) -> int:
    """The number of the first class in torchvision's outputs, if the background has a score of its own."""
    return 0 if TORCHVISION_DETECTORS[name].design in ("retinanet", "fcos") else 1


def objects(*images: list[list[float]], crowd: bool = False) -> Objects:
    """Objects of images: x1, y1, x2, y2, label each."""
    rows = torch.tensor([row for image in images for row in image]).reshape(-1, 5)
    flags = torch.full((len(rows),), crowd)
    return Objects(rows[:, :4], rows[:, 4].long(), flags, torch.tensor([len(image) for image in images]))


def original(network: Any, name: str) -> Any:
    """The network of torchvision with the same weights, which neither resizes nor standardizes."""
    size = side(name)
    outputs = CLASSES + network.first_label
    own = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs, **settings(name))
    own.load_state_dict(network.model.state_dict())
    own.transform.image_mean, own.transform.image_std = [0.0] * 3, [1.0] * 3
    if name == MASKS:  # Its masks have a test of their own.
        own.roi_heads.mask_head = None
    if "ssd" not in name:
        own.transform.min_size, own.transform.max_size = (size,), size
    return own.eval()


def samples(module: nn.Module) -> bool:
    """Whether a module chooses proposals by chance."""
    return hasattr(module, "fg_bg_sampler")


def metadata_of(output: Boxes, images: Tensor) -> ModelMetadata:
    """The metadata of a file that takes standardized images."""
    return ModelMetadata(output, EvalTransform(3, (images.shape[2], images.shape[3])))


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
    """For each object of an image, how far the nearest one of another list is: pixels, scores times 1000, labels."""
    boxes = (first["boxes"][:, None] - second["boxes"]).abs().amax(dim=-1)
    scores = 1000 * (first["scores"][:, None] - second["scores"]).abs()
    labels = 1000 * (first["labels"][:, None] != second["labels"])
    return (boxes + scores + labels).amin(dim=1)


def test_answers_are_torchvisions(name: str, network: Any) -> None:
    """Score by score and box by box; where scores are equal, chance decides which box suppresses the other."""
    own, images = original(network, name), images_of(name, 2)
    last = own.roi_heads if hasattr(own, "roi_heads") else own
    last.score_thresh = 0.05
    last.topk_candidates = last.detections_per_img = 3000
    with torch.no_grad():
        expected = own(list(images))
        answers = BoxDecoder(3000, last.nms_thresh, candidates=100_000)(network(images))
    for i, every in enumerate(expected):
        found = {key: value[i][answers["scores"][i] > 0.05] for key, value in answers.items()}
        area = (every["boxes"][:, 2:] - every["boxes"][:, :2]).amin(dim=1) >= 0.01
        one = {key: value[area] for key, value in every.items()}
        one["labels"] -= network.first_label
        distances = torch.cat([apart(one, found), apart(found, one)])
        ties = len(one["scores"]) - len(one["scores"].unique())
        assert len(one["scores"]) > 50
        assert (distances > 0.01).sum() <= 2 * ties
        assert (distances > 0.01).float().mean() < 0.03


def test_losses_are_torchvisions_of_each_image(name: str, learner: Any) -> None:
    own, images = original(learner, name).train(), images_of(name, 2)
    for module in own.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.eval()
    boxes: list[list[list[float]]] = [[[10, 12, 60, 50, 0], [20, 8, 90, 100, 2]], [[5, 30, 45, 61, 1]]]
    targets = objects(*boxes)
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for sampler in [module.fg_bg_sampler for one in (own, learner) for module in one.modules() if samples(module)]:
        sampler.batch_size_per_image = 100_000  # All proposals: nothing is left to chance.
    expected = []
    for i, rows in enumerate(boxes):
        values = torch.tensor(rows)
        target = {"boxes": values[:, :4], "labels": values[:, 4].long() + learner.first_label}
        expected.append(sum(own(list(images[i : i + 1]), [target]).values()).item())
    assert learner(images, targets)["losses"].tolist() == pytest.approx(expected, rel=1e-3)


def test_a_step_gives_every_parameter_a_gradient(name: str, learner: Any) -> None:
    images, targets = images_of(name, 2), objects([[4.0, 4, 40, 40, 0], [0, 0, 90, 60, 2]], [])
    loss = NetworkLoss()(learner(images, targets), targets)
    loss.backward()
    assert loss > 0
    learned = [(own, p.grad) for own, p in learner.named_parameters() if "mask_" not in own]
    assert [own for own, grad in learned if grad is None or not grad.isfinite().all()] == []
    names = [own for group in layer_groups(learner) for own, _ in group.parameters_of(learner)]
    assert sorted(names) == sorted(own for own, _ in learner.named_parameters())
    assert layer_groups(learner)[-1].name == "head"
    assert learner.get_submodule(learner.gradcam_layer)


def test_without_objects_and_with_crowds_the_loss_is_finite(name: str, learner: Any) -> None:
    """Images without objects, and boxes without an area, gave NaN or ended training (vision#2784, #2740)."""
    images = images_of(name, 2)
    for targets in (
        objects([], []),
        objects([[4.0, 4, 40, 40, 0]], [], crowd=True),
        objects([[5.0, 5, 5, 9, 0]], []),
    ):
        outputs = learner(images, targets)
        NetworkLoss()(outputs, targets).backward()
        assert outputs["losses"].isfinite().all()
        grads = [p.grad for own, p in learner.named_parameters() if "mask_" not in own]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_evaluation_gives_the_same_loss_each_time_and_leaves_chance_alone(name: str, network: Any) -> None:
    images = images_of(name, 1)
    targets, before = objects([[4.0, 4, 40, 40, 0]]), torch.get_rng_state()
    first, second = (network(images, targets) for _ in range(2))
    assert torch.equal(first["losses"], second["losses"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["logits"], network(images)["logits"])


@pytest.mark.parametrize("named", names(FAST[:1]))
def test_files_answer_as_the_network(named: str, tmp_path: Path) -> None:
    network, images = detector(named, norms="mobilenet" in named), images_of(named, 5)
    masks = named == MASKS
    output = (Instances if masks else Boxes)("abc", count=20, nms=0.5)
    pipeline = Pipeline(None, network, (InstanceDecoder if masks else BoxDecoder)(20, 0.5))
    path = tmp_path / "network.onnx"
    certificate = export(pipeline, images, path, metadata_of(output, images))
    assert set(certificate["differences"]) == {"1", "2", "5"}


@pytest.mark.slow
def test_masks_are_torchvisions_and_are_learned() -> None:
    network, images = detector(MASKS, norms=False), images_of(MASKS, 2)
    with torch.no_grad():
        found = network(images)
        roi, features = network.model.roi_heads, network.model.backbone(images)
        sizes = [(side(MASKS), side(MASKS))] * 2
        cut = roi.mask_roi_pool(features, list(found["found_boxes"]), sizes)
        labels = [own + 1 for own in found["found_labels"]]
        masks = maskrcnn_inference(roi.mask_predictor(roi.mask_head(cut)), labels)
    torch.testing.assert_close(found["mask_logits"].sigmoid(), torch.stack(masks)[:, :, 0], atol=1e-5, rtol=1e-4)
    assert found["mask_logits"].std() > 0
    task = InstancesTask(MASKS, num_classes=CLASSES, network_args=settings(MASKS)).train()
    targets = objects([[4.0, 4, 40, 40, 0], [50, 20, 90, 80, 2]], [])
    targets.masks = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    batch = Batch(torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8), targets, torch.arange(2), ["", ""])
    parts, _ = task.parts_and_outputs(batch)
    torch.autograd.backward(parts.sum())
    assert task.loss_counts(batch).tolist() == [2, 2]
    grads = {own: p.grad for own, p in task.network.named_parameters() if p.requires_grad}
    assert [own for own, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert max(grad.abs().max() for own, grad in grads.items() if "mask_fcn_logits" in own and grad is not None) > 0
    with pytest.raises(InputError, match="is for --model Instances"):
        Detection(MASKS, num_classes=CLASSES)


def saved(name: str, classes: int, path: Path) -> dict[str, Tensor]:
    """A file with random weights of torchvision's network, as torchvision would have trained it."""
    torch.manual_seed(5)
    own = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    # torchvision's pretrained backbones have frozen norms, which do not count batches.
    weights = {key: value for key, value in own.state_dict().items() if "num_batches" not in key}
    torch.save(weights, path)
    return weights


def test_weights_of_coco_are_loaded_but_for_the_last_layers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "torchvision" / f"{name}.pth"
    path.parent.mkdir()
    weights = saved(name, 91, path)
    network: Any = create_detector(name, CLASSES, weights=str(tmp_path))
    found = network.model.state_dict()
    same = {key for key, value in weights.items() if value.shape == found[key].shape}
    assert all(torch.equal(found[key], weights[key]) for key in same)
    others = set(weights) - same
    assert others
    assert all(re.search("classification_head|box_predictor|mask_fcn_logits", key) for key in others)
    fixed = [own for own, module in network.train().named_modules() if is_fixed(module)]
    assert bool(fixed) == TORCHVISION_DETECTORS[name].fixed_norms
    assert all(own.startswith("model.backbone.") for own in fixed)


def test_weights_of_the_same_classes_are_loaded_whole(name: str, tmp_path: Path) -> None:
    """COCO's 80 classes lie among 91 numbers; other trainings have a background before their classes."""
    assert TORCHVISION_DETECTORS[name]
    images = images_of(name, 1)
    for classes, wanted, numbers in ((91, 80, [1, 17, 90]), (CLASSES + 1, CLASSES, [1, 2, 3])):
        weights = saved(name, classes, tmp_path / "own.pth")
        whole: Any = create_detector(name, classes - first_label(name), weights=None)
        whole.model.load_state_dict(weights, strict=False)
        own: Any = create_detector(name, wanted, weights=str(tmp_path / "own.pth"))
        with torch.no_grad():
            expected, found = whole.eval()(images), own.eval()(images)
        of_whole = [number - whole.first_label for number in numbers]
        of_own = [0, 15, 79] if wanted == 80 else [0, 1, 2]
        if whole.first_label == 0:  # A softmax also depends on the classes that are left out.
            assert torch.allclose(expected["logits"][..., of_whole], found["logits"][..., of_own], atol=1e-5)
        elif classes == CLASSES + 1:
            assert torch.allclose(expected["logits"], found["logits"], atol=1e-5)
            assert torch.allclose(expected["boxes"], found["boxes"], atol=1e-3)


def test_weights_and_arguments_that_do_not_fit(tmp_path: Path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth does not hold weights for ssdlite320"):
        create_detector(name, CLASSES, weights=str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match=r"has no torchvision/ssdlite320_mobilenet_v3_large\.safetensors"):
        create_detector(name, CLASSES, weights=str(tmp_path))
    with pytest.raises(InputError, match="images of 3 channels, not 1"):
        create_detector(name, CLASSES, channels=1)
    with pytest.raises(InputError, match=r"model\.encoder is not for torchvision's ssdlite320"):
        create_detector(name, CLASSES, encoder="resnet18")
    with pytest.raises(InputError, match="finds objects, and does not classify"):
        create_network(name, CLASSES, 3)
    with pytest.raises(InputError, match=r"static_share is 0\.5, but network"):
        Detection(name, num_classes=CLASSES, static_share=0.5)


def test_a_task_uses_the_preprocessing_and_the_loss_of_the_network(tmp_path: Path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    saved(name, 91, tmp_path / "own.pth")
    task = Detection(name, num_classes=CLASSES, weights=str(tmp_path / "own.pth"))
    assert task.hparams["mean"] == task.hparams["std"] == [0.5, 0.5, 0.5]
    assert task.fetched_networks() == {"network": (name, str(tmp_path / "own.pth"))}
    pixels, targets = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8), objects([[4.0, 4, 40, 40, 0]], [])
    batch = Batch(pixels, targets, torch.arange(2), ["", ""])
    parts, outputs = task.parts_and_outputs(batch)
    assert parts.tolist() == pytest.approx([outputs["losses"].mean().item()])
    assert task.loss_counts(batch).tolist() == [2]
    assert task.decode(outputs)["boxes"].shape == (2, 100, 4)


def test_accumulation_is_exact() -> None:
    """The loss of an image does not depend on the others, so several batches are one larger batch."""
    network = detector("ssdlite320_mobilenet_v3_large")
    images = images_of("ssdlite320_mobilenet_v3_large", 3)
    targets = objects([[4.0, 4, 90, 40, 0]], [], [[9.0, 9, 80, 200, 1], [100, 9, 190, 70, 2]])
    loss = NetworkLoss()
    whole = loss(network(images, targets), targets)
    parts = [loss(network(images[own], targets[own]), targets[own]) for own in (slice(0, 2), slice(2, 3))]
    assert whole.item() == pytest.approx(((2 * parts[0] + parts[1]) / 3).item(), rel=1e-5)
    unknown = Objects(targets.boxes[:1], targets.labels[:1], targets.crowd[:1], torch.tensor([1, -1, -1]))
    assert loss(network(images, unknown), unknown).item() == pytest.approx(
        loss(network(images[:1], targets[0]), targets[0]).item(), rel=1e-5
    )


def test_networks_for_detection_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    models("models", ["--task", "detection", "--json", "*320*"])
    found = {row["network"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(found) == [name for name in TORCHVISION_DETECTORS if "320" in name]
    own = found["ssdlite320_mobilenet_v3_large"]
    assert (own["coco_map"], own["image"], own["weights"]) == (21.3, "3x320x320", "to fetch")
    assert all(row["parameters"] > 3e6 and row["multiply_adds"] > 5e8 for row in found.values())


@pytest.mark.slow
def test_a_barely_trained_network_goes_through_all_commands(tmp_path: Path, cnnlab: Cnnlab) -> None:
    """Export was refused: of two boxes with equal scores, the file kept the other one."""
    photos = write_objects(tmp_path / "photos", {"train": 4, "val": 5, "test": 2})
    flags = ["--data", "BoxFolder", "--data.root", str(photos), "--data.size", "64", "--data.batch_size", "2"]
    flags += ["--model", "Detection", "--model.network", "fasterrcnn_mobilenet_v3_large_320_fpn"]
    flags += [f"--model.network_args.{key}={value}" for key, value in FEWER.items()]
    for command in (
        ("fit", *flags, "--trainer.max_epochs", "1", "--run", "R"),
        ("resume", "R", "--trainer.max_epochs", "2"),
    ):
        done = cnnlab(*command)
        assert done.code == 0, done.err
    for command in (("test", "R"), ("predict", "R"), ("export", "R"), ("export", "R", "--raw")):
        done = cnnlab(*command)
        assert done.code == 0, done.err
    certificate = json.loads(Path("R/model.onnx.json").read_text())
    assert certificate["tolerance"] == 1e-4
    assert max(certificate["differences"].values()) <= 1e-4
    measured = json.loads(Path("R/test.json").read_text())
    assert 0 <= measured["test/map"] <= 1
    assert measured["test/loss"] > 0
    refused = cnnlab("fit", *flags, "--model.static_share", "0.5", "--run", "S")
    assert refused.code == 2
    assert "has a loss of its own" in refused.err
