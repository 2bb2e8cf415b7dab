"""Without the command line: public names, and tasks, data and callbacks with a trainer of one's own."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path

import lightning
import pytest
import torch

from cnnlab.callbacks import default_callbacks
from cnnlab.data import MNIST, ImageFolder, InMemoryDataModule, Shapes
from cnnlab.loggers import MetricsCsv
from cnnlab.run import Run
from cnnlab.tasks import Classification, Distillation, Segmentation
from tests.conftest import Cnnlab

PACKAGES = ("analysis", "callbacks", "cluster", "data", "interpret", "loggers", "models", "report", "tasks")
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(f"cnnlab.{package}").__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package}.{name}" for package, name in PUBLIC])
def test_each_public_name_is_explained(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(f"cnnlab.{package}"), name)
    if not getattr(thing, "__module__", "").startswith("cnnlab"):
        # What stands below a constant is read by people only.
        assert thing
        return
    explained = inspect.getdoc(thing)
    assert explained
    assert explained[0].isupper() or explained[0].isdigit()
    if not inspect.isclass(thing):
        parameters = [name for name in inspect.signature(thing).parameters if not name.startswith("_")]
    elif "__init__" in vars(thing) and not dataclasses.is_dataclass(thing):
        parameters = [name for name in list(inspect.signature(thing.__init__).parameters)[1:] if name != "kwargs"]
    else:
        return
    if len(parameters) > 2:
        missing = [name for name in parameters if f"{name}:" not in explained]
        assert not missing, f"{package}.{name} says nothing of {missing}"


def trainer(run: Run, **kwargs: object) -> lightning.Trainer:
    settings: dict[str, object] = {
        "default_root_dir": run.folder,
        "max_epochs": 1,
        "accelerator": "cpu",
        "callbacks": default_callbacks(),
        "logger": MetricsCsv(run.metrics),
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(**{**settings, **kwargs})  # type: ignore[arg-type]


def test_a_trainer_of_one_s_own_leaves_the_run_that_the_command_line_leaves(
    tmp_path: Path, cnnlab: Cnnlab, mnist_root: Path
) -> None:
    run = Run(tmp_path / "mine")
    lightning.seed_everything(0)
    data = MNIST(root=str(mnist_root), val_size=64, batch_size=64)
    task = Classification.for_data(data, network="simple_cnn", optimizer="adam", lr=1e-3)
    own = trainer(run)
    own.fit(task, datamodule=data)
    own.test(task, datamodule=data, ckpt_path=run.best, weights_only=True, verbose=False)
    own.predict(task, datamodule=data, return_predictions=False)

    model = ("--model", "Classification", "--model.network", "simple_cnn", "--model.optimizer", "adam")
    images = ("--data", "MNIST", "--data.root", mnist_root, "--data.val_size", "64", "--data.batch_size", "64")
    settings = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run", "R")
    result = cnnlab("fit", *model, "--model.lr", "1e-3", *images, *settings)
    assert result.code == 0, result.err
    assert cnnlab("test", "R").code == 0
    assert cnnlab("predict", "R").code == 0
    other = Run(tmp_path / "R")
    found = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*")}
    expected = {str(path.relative_to(other.folder)) for path in other.folder.rglob("*")}
    # What comes of the command line's configuration.
    assert expected - found == {"config.yaml"}
    assert found <= expected
    weights = [torch.load(one.best, weights_only=True)["state_dict"] for one in (run, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert json.loads(run.test.read_text()) == json.loads(other.test.read_text())
    assert run.predictions.read_bytes() == other.predictions.read_bytes()
    # And every command takes it.
    assert cnnlab("report", run.folder).code == 0


def test_for_data_tells_a_task_what_the_command_line_would(tmp_path: Path, photos: Path) -> None:
    images = ImageFolder(root=str(photos))
    task = Classification.for_data(images, network="small_resnet", lr=0.5)
    assert task.class_names == list(images.class_names)
    assert task.hparams["channels"] == 3
    assert task.hparams["mean"] == list(images.mean)
    assert task.hparams["lr"] == 0.5
    student = Distillation.for_data(images, network="small_resnet", teacher="nowhere")
    assert student.num_classes == 3
    shapes = Shapes(root=str(tmp_path / "shapes"), images=8, side=32)
    pixels = Segmentation.for_data(shapes, network="unet", network_args={"base": 4})
    assert pixels.num_classes == 4
    assert pixels.hparams["ignore_index"] == shapes.ignore_index
    # What is given counts.
    named = Classification.for_data(images, network="small_resnet", class_names=["a", "b", "c"])
    assert named.class_names == ["a", "b", "c"]


def test_a_data_module_keeps_only_the_arguments_that_it_takes() -> None:
    """Else a checkpoint could not make it again."""

    class Own(InMemoryDataModule):
        channels = 1
        class_names = ("a", "b")
        mean = std = (0.5,)

        def __init__(self, images: int = 8) -> None:
            super().__init__(val_size=2, batch_size=4)
            self.images = images

        def load(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(self.images, 1, 8, 8, dtype=torch.uint8), torch.arange(self.images) % 2

    assert dict(Own(images=12).hparams) == {"images": 12}
    assert MNIST(root="nowhere", batch_size=5).hparams["batch_size"] == 5
