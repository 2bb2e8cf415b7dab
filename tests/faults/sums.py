"""Data with unknown targets, and trainings on them that differ in how their steps are divided only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.conftest import processes
from tests.data.objects.pictures import write_objects

DATA = '''\
import torch
from cnnlab.batch import Batch
from cnnlab.data.base import BatchDataset, VisionDataModule

class Fixed(BatchDataset):
    def __init__(self, images, targets):
        self.images, self.targets = images, targets
    def __len__(self):
        return len(self.images)
    def __getitems__(self, draws):
        chosen = torch.tensor([draw[1] if isinstance(draw, tuple) else draw for draw in draws], dtype=torch.long)
        return Batch(self.images[chosen], self.targets[chosen], chosen, [""] * len(chosen))

class Own(VisionDataModule):
    """27 images of 16x16, of three classes, values or masks, many of them unknown; the last epochs' step has 3."""
    channels, mean, std = 3, [0.5] * 3, [0.5] * 3
    num_classes, class_names, ignore_index = 3, ["a", "b", "c"], 255
    value_names, value_mean, value_std = ["a", "b"], [0.0, 0.0], [1.0, 1.0]
    PROVIDES = (*VisionDataModule.PROVIDES, "num_classes", "class_names", "multi_label", "ignore_index")
    PROVIDES = (*PROVIDES, "value_names", "value_mean", "value_std")
    def __init__(self, form: str = "classes", **kwargs):
        super().__init__(**kwargs)
        self.form = form
    @property
    def multi_label(self):
        return self.form == "labels"
    def setup(self, stage):
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (27, 3, 16, 16), generator=random, dtype=torch.uint8)
        unknown = torch.rand(27, 3, generator=random) < torch.linspace(0, 0.9, 27)[:, None]
        if self.form == "classes":
            targets = torch.randint(0, 3, (27,), generator=random)
            targets[unknown[:, 0]] = -1
        elif self.form == "labels":
            targets = torch.randint(0, 2, (27, 3), generator=random).float().masked_fill(unknown, torch.nan)
        elif self.form == "values":
            targets = torch.randn(27, 2, generator=random).masked_fill(unknown[:, :2], torch.nan)
        else:
            targets = torch.randint(0, 3, (27, 16, 16), generator=random)
            targets[torch.rand(27, 16, 16, generator=random) < torch.linspace(0, 1, 27)[:, None, None]] = 255
        self.train_set = self.val_set = self.test_set = Fixed(images, targets)
'''

LABELS = ["--model", "cnnlab.tasks.Classification", "--model.network", "simple_cnn", "--model.dropout", "0"]
MASKS = ["--model", "cnnlab.tasks.Segmentation", "--model.network_args", "{base: 4, depth: 2}", "--data.form", "masks"]
BOXES = [
    *("--data", "cnnlab.data.BoxFolder", "--data.root", "boxes", "--data.size", "64", "--data.num_workers", "0"),
    *("--data.augment", "light", "--model", "cnnlab.tasks.Detection", "--model.network", "one_stage_s"),
    *("--model.encoder", "resnet10t", "--model.network_args", "{width: 16, depth: 1}"),
]
TASKS: dict[str, list[str]] = {
    "boxes": BOXES,
    "single-label": [*LABELS, "--model.label_smoothing", "0.1"],
    "multi-label": [*LABELS, "--data.form", "labels"],
    **{
        f"values, {loss}": [
            *("--model", "cnnlab.tasks.Regression", "--model.network", "simple_cnn", "--model.dropout", "0"),
            *("--model.loss", loss, "--data.form", "values"),
        ]
        for loss in ("mse", "l1", "smooth_l1", "gaussian_nll")
    },
    **{
        f"masks, {loss}": [*MASKS, "--model.loss", loss]
        for loss in ("cross_entropy_dice", "cross_entropy", "dice", "tversky", "focal")
    },
    "masks, class weights": [*MASKS, "--model.loss_args", "{class_weights: [0.2, 1.0, 3.0]}"],
}
"""Flags of each task and loss."""


def train(run: Callable[..., object], folder: Path, task: Sequence[str], batches: int, count: int) -> torch.Tensor:
    """Train five steps of 12 images, in so many batches on so many processes; return all weights, one after another."""
    (folder / "unknown_targets.py").write_text(DATA)
    name = f"R-{batches}-{count}"
    if "--data" in task:
        write_objects(folder / "boxes", {"train": 27, "val": 2})
    own = () if "--data" in task else ("--data", "unknown_targets.Own")
    flags = [*own, *task, "--data.drop_last", "false"]
    flags += ["--data.batch_size", str(12 // batches // count)]
    flags += [
        "--model.group_norm",
        "true",
        "--model.optimizer",
        "sgd",
        "--model.lr",
        "0.1",
        "--model.schedule",
        "constant",
    ]
    flags += ["--model.channels_last", "false", "--trainer.max_steps", "5", "--trainer.accelerator", "cpu"]
    flags += ["--trainer.accumulate_grad_batches", str(batches), "--trainer.limit_val_batches", "0"]
    flags += ["--trainer.log_every_n_steps", "1", "--callbacks.gradcam", "false", "--callbacks.errors", "false"]
    flags += ["--callbacks.best", "false", "--callbacks.validation_pictures", "false"]
    run("fit", *flags, "--run", name, *processes(count))
    saved = torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    return torch.cat([value.flatten().double() for value in saved["state_dict"].values()])
