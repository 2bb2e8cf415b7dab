"""Film-strips of Grad-CAM: what they show, that they go on after a resume, and that they change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnlab.callbacks import GradCamSnapshots
from cnnlab.filmstrips import add_frame, stack_strips
from tests.conftest import Cnnlab, run_process

CONF = Path(__file__).parents[1] / "conf"
Recipes = dict[str, tuple[str | Path, ...]]


def numbers(path: Path) -> list[int]:
    with Image.open(path) as picture:
        return list(json.loads(picture.info["frames"]))


def frame(level: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_a_strip_grows_to_the_right_and_forgets_what_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "new/strip.png"
    for number in (0, 2, 5):
        add_frame(path, number, frame(number * 40), [f"epoch {number}", "a very long caption that is cut"], side=40)
    assert numbers(path) == [0, 2, 5]
    pixels = np.asarray(Image.open(path))
    assert pixels.shape[1] == 3 * (60 + 8)
    assert [pixels[20, 68 * i + 30, 0] for i in range(3)] == [0, 80, 200]
    whole = path.read_bytes()
    add_frame(path, 2, frame(90), ["again"], side=40)
    assert numbers(path) == [0, 2]
    add_frame(path, 2, frame(80), ["epoch 2", "a very long caption that is cut"], side=40)
    add_frame(path, 5, frame(200), ["epoch 5", "a very long caption that is cut"], side=40)
    assert path.read_bytes() == whole
    add_frame(tmp_path / "other.png", 0, frame(0), [], side=40)
    stack_strips([path, tmp_path / "other.png"], tmp_path / "all.png")
    assert np.asarray(Image.open(tmp_path / "all.png")).shape[:2] == (2 * pixels.shape[0], pixels.shape[1])


@pytest.fixture
def recipes(mnist_root: Path) -> Recipes:
    """Flags of a tiny recipe for each task."""
    return {
        "classification": ("--config", CONF / "classification.yaml", "--data.root", mnist_root),
        "segmentation": ("--config", CONF / "segmentation.yaml"),
    }


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_training_is_what_it_is_without(cnnlab: Cnnlab, recipes: Recipes, tmp_path: Path, task: str) -> None:
    for name, value in (("R", '{"images": 3, "every_n_epochs": 2}'), ("S", "false")):
        flags = ("--model.dropout", "0.5", "--trainer.max_epochs", "4", "--callbacks.throughput", "false")
        done = cnnlab("fit", *recipes[task], "--run", name, *flags, "--callbacks.gradcam", value)
        assert done.code == 0, done.err
    weights = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in "RS"]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    assert (tmp_path / "R/metrics.csv").read_bytes() == (tmp_path / "S/metrics.csv").read_bytes()
    strips = sorted((tmp_path / "R/pictures/gradcam").iterdir())
    assert len(strips) == 3
    # The image itself, the first epoch, and each second one.
    assert [numbers(strip) for strip in strips] == [[-1, 0, 1, 3]] * 3
    assert (tmp_path / "R/pictures/gradcam.png").is_file()
    assert not (tmp_path / "S/pictures/gradcam").exists()


def test_a_resumed_run_goes_on_with_its_strips(cnnlab: Cnnlab, recipes: Recipes, tmp_path: Path) -> None:
    flags = (*recipes["classification"], "--callbacks.gradcam.images", "2", "--model.schedule", "constant")
    for name, epochs in (("whole", "3"), ("R", "2")):
        assert cnnlab("fit", *flags, "--run", name, "--trainer.max_epochs", epochs).code == 0
    assert cnnlab("resume", "R", "--trainer.max_epochs", "3").code == 0
    for strip in (tmp_path / "whole/pictures/gradcam").iterdir():
        assert numbers(strip) == [-1, 0, 1, 2]
        assert strip.read_bytes() == (tmp_path / "R/pictures/gradcam" / strip.name).read_bytes()


class Telling(GradCamSnapshots):
    """Leaves a file for each process that draws."""

    def _draw(self, shown: Any, epoch: int, folder: Path, task: Any) -> Path:
        folder.parent.mkdir(exist_ok=True)
        (folder.parent / f"drawn-by-{task.global_rank}").touch()
        return super()._draw(shown, epoch, folder, task)


@pytest.mark.slow
def test_two_processes_draw_once_and_do_not_wait_for_each_other(recipes: Recipes, tmp_path: Path) -> None:
    """Callbacks of one process alone let the others wait for ever (Lightning-AI/pytorch-lightning#18148)."""
    flags = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2")
    telling = ("--callbacks.gradcam", "tests.callbacks.test_gradcam.Telling")
    done = run_process("fit", *recipes["classification"], "--run", "R", *flags, *telling, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(numbers(strip) == [-1, 0, 1] for strip in (tmp_path / "R/pictures/gradcam").iterdir())
    assert [path.name for path in (tmp_path / "R/pictures").glob("drawn-by-*")] == ["drawn-by-0"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"images": 0}', "images is 0"),
        ('{"method": "cam"}', "expected one of gradcam"),
        ('{"every_n_epochs": 0}', "every_n_epochs is 0"),
    ],
)
def test_what_does_not_fit_is_said(cnnlab: Cnnlab, recipes: Recipes, value: str, message: str) -> None:
    done = cnnlab("fit", *recipes["classification"], "--callbacks.gradcam", value)
    assert done.code == 2
    assert message in done.err


def test_images_of_several_sizes_have_strips_too(cnnlab: Cnnlab, tmp_path: Path) -> None:
    for gray, split in enumerate(("train", "val")):
        for i in range(4):
            for kind in ("images", "masks"):
                path = tmp_path / f"photos/{kind}/{split}/{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.zeros((40, 40 + 8 * i), dtype=np.uint8)
                pixels[:20] = 1 if kind == "masks" else 200 + gray
                Image.fromarray(pixels).save(path)
    data = ("--data", "MaskFolder", "--data.root", "photos", "--data.crop", "32", "--data.batch_size", "2")
    network = ("--model", "Segmentation", "--model.network_args", '{"base":2,"depth":2}', "--trainer.max_epochs", "1")
    done = cnnlab("fit", *network, *data, "--data.num_workers", "0", "--run", "R", "--trainer.accelerator", "cpu")
    assert done.code == 0, done.err
    widths = set()
    for path in (tmp_path / "R/pictures/gradcam").iterdir():
        with Image.open(path) as strip:
            widths.add(strip.size[0])
    assert len(widths) == 4


class Flat(nn.Module):
    """A network without any map."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * 28 * 28, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


def test_a_network_without_maps_trains_all_the_same(cnnlab: Cnnlab, recipes: Recipes, tmp_path: Path) -> None:
    network = ("--model.network", "tests.callbacks.test_gradcam.Flat")
    with pytest.warns(UserWarning, match=r"callbacks\.gradcam draws nothing: no layer of .* gives a map"):
        done = cnnlab("fit", *recipes["classification"], *network, "--run", "R")
    assert done.code == 0, done.err
    assert not list((tmp_path / "R/pictures").glob("gradcam*"))


def test_a_layer_that_is_not_there_is_named_before_the_training(
    cnnlab: Cnnlab, recipes: Recipes, tmp_path: Path
) -> None:
    done = cnnlab("fit", *recipes["classification"], "--run", "R", "--callbacks.gradcam.layer", "featurs")
    assert done.code == 2
    assert "has no layer 'featurs': did you mean 'features'" in done.err
    assert not (tmp_path / "R/checkpoints").exists()
