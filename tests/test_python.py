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
MODULES = (
    "deploy.benchmark",
    "deploy.export",
    "deploy.prune",
    "deploy.quantize",
    "deploy.runtime",
    "deploying",
    "losses",
)
"""What has no list of its public names: all that does not begin with an underscore, and is its own."""
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(f"cnnlab.{package}").__all__]
PUBLIC += [
    (module, name)
    for module in MODULES
    for name, thing in vars(importlib.import_module(f"cnnlab.{module}")).items()
    if not name.startswith("_") and getattr(thing, "__module__", None) == f"cnnlab.{module}"
]


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


class Own(InMemoryDataModule):
    """Takes fewer arguments than the class above it."""

    channels = 1
    class_names = ("a", "b")
    mean = std = (0.5,)

    def __init__(self, images: int = 8) -> None:
        super().__init__(val_size=2, batch_size=4)
        self.images = images

    def load(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(self.images, 1, 8, 8, dtype=torch.uint8), torch.arange(self.images) % 2


class Mine(Classification):
    """The same of a task."""

    def __init__(self, num_classes: int, channels: int, lr: float = 0.1) -> None:
        super().__init__("simple_cnn", num_classes=num_classes, channels=channels, lr=lr)


def test_a_checkpoint_keeps_the_arguments_that_its_classes_take(tmp_path: Path) -> None:
    """Else it could not make them again."""
    run = Run(tmp_path / "run")
    data = Own(images=12)
    trainer(run).fit(Mine.for_data(data, lr=0.2), datamodule=data)
    kept = torch.load(run.last, weights_only=True)
    assert kept["hyper_parameters"] == {"num_classes": 2, "channels": 1, "lr": 0.2}
    assert kept["datamodule_hyper_parameters"] == {"images": 12}
    again = Mine.load_from_checkpoint(run.last, weights_only=True)
    assert again.hparams["lr"] == 0.2
    assert Own(**kept["datamodule_hyper_parameters"]).images == 12
