"""errors/: the worst and the least certain images of a validation or a test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from cnnlab.data.samplers import EvalSampler
from cnnlab.errors import InputError
from cnnlab.figures import as_rgb, contact_sheet
from cnnlab.imaging import Pixels, overlay_mask
from cnnlab.loggers import Row, write_picture, write_table
from cnnlab.run import Run
from cnnlab.tasks import Classification, Segmentation
from cnnlab.tasks.base import VisionTask
from cnnlab.writing import write_csv

_T = TypeVar("_T")

_LARGEST = 320
"""The longer side of a picture in pixels; larger images are shrunk."""


class _Hard(NamedTuple):
    """An image."""

    place: int
    """How many this process has seen before."""
    error: float
    doubt: float
    image: Tensor
    """(C, H, W)."""
    prediction: Tensor
    """(K,) logits, or of each pixel the class, (H, W)."""
    target: Tensor

    def copied(self) -> _Hard:
        """The same, of its own and on the CPU."""
        image, prediction, target = (value.detach().cpu().clone() for value in self[3:])
        return self._replace(image=image, prediction=prediction, target=target)


class ErrorGallery(Callback):
    """Shows the images that a network is most wrong about, and those that it is least certain of.

    ``errors/val.csv`` (of the last validation of a training, or of a validation by itself) and ``errors/test.csv`` have
    a row for each: what is true, what is predicted, how probable that is; beside them lie the pictures, and in
    ``pictures/`` a sheet of all. Each process looks at its own images, and the first one writes. Labels that are wrong
    show up here first.

    Args:
        images: How many of either kind.

    Raises:
        InputError: If that is below 1.
    """

    def __init__(self, images: int = 16) -> None:
        if images < 1:
            raise InputError(f"callbacks.errors.images is {images}, expected 1 or more")
        self.images = images
        self._seen = 0
        self._hard: list[_Hard] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with none."""
        self._seen, self._hard = 0, []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the hardest of the batch."""
        if dataloader_idx == 0 and not trainer.sanity_checking:
            self._take(pl_module, outputs, batch)

    on_test_batch_end = on_validation_batch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last validation's."""
        self._show(trainer, pl_module, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show them where the validation was all that was asked for."""
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the test's."""
        self._show(trainer, pl_module, "test")

    def _take(self, task: LightningModule, outputs: Any, batch: Any) -> None:
        # A task of one's own may keep its predictions to itself.
        if not isinstance(task, VisionTask) or not _are_predictions(outputs, batch):
            return
        images, targets = batch
        with torch.inference_mode():
            hardness = task.difficulty(outputs, targets)
        if hardness is None:
            return
        errors, doubts = (values.float().tolist() for values in hardness)
        full = len(self._hard) >= self.images
        least_error = self._worst()[-1].error if full else -math.inf
        least_doubt = self._least_certain()[-1].doubt if full else -math.inf
        for i, (error, doubt) in enumerate(zip(errors, doubts, strict=True)):
            # Most are not among the hardest, and stay where they are.
            if error > least_error or doubt > least_doubt:
                prediction = outputs[i].argmax(dim=0) if outputs.ndim == 4 else outputs[i].float()
                self._hard.append(_Hard(self._seen + i, error, doubt, images[i], prediction, targets[i]))
        hardest = {one.place: one for one in self._worst() + self._least_certain()}.values()
        # Copies: a view would keep its whole batch.
        self._hard = [one if one.place < self._seen else one.copied() for one in hardest]
        self._seen += len(errors)

    def _worst(self) -> list[_Hard]:
        return sorted(self._hard, key=lambda one: (-one.error, one.place))[: self.images]

    def _least_certain(self) -> list[_Hard]:
        return sorted(self._hard, key=lambda one: (-one.doubt, one.place))[: self.images]

    def _show(self, trainer: Trainer, task: LightningModule, stage: Literal["val", "test"]) -> None:
        """Gather them, and let the first process write; every process calls it."""
        if not isinstance(task, (Classification, Segmentation)):
            return
        loader: Any = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        loader = loader[0] if isinstance(loader, list) else loader
        sampler = getattr(loader, "batch_sampler", None)
        # Which samples other samplers have drawn is not known afterwards.
        indices = sampler.indices if isinstance(sampler, EvalSampler) else None
        self._hard = [one._replace(place=-1 if indices is None else indices[one.place]) for one in self._hard]
        if trainer.world_size > 1:
            self._gather(trainer.world_size)
        if not trainer.is_global_zero or not self._hard:
            return
        paths = getattr(getattr(loader, "dataset", None), "paths", ())
        worst = self._worst()
        uncertain = [one for one in self._least_certain() if all(one is not other for other in worst)]
        shown = [("worst", one) for one in worst] + [("least certain", one) for one in uncertain]
        self._hard = []
        _write(Run(Path(trainer.default_root_dir)), stage, shown, paths, task, trainer)

    def _gather(self, world_size: int) -> None:
        """Take in those of all processes; only what is among the hardest of all is sent."""
        known = _from_all([(one.error, one.doubt) for one in self._hard], world_size)
        bars = [sorted(values, reverse=True)[: self.images][-1] for values in zip(*known, strict=True)]
        own = [one for one in self._hard if one.error >= bars[0] or one.doubt >= bars[1]]
        self._hard = _from_all(own, world_size)


def _are_predictions(outputs: Any, batch: Any) -> bool:
    """Whether a step has returned a prediction for each image of a batch (images, targets)."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)
    return pair and isinstance(outputs, Tensor) and outputs.ndim > 1 and len(outputs) == len(batch[0])


def _from_all(own: list[_T], world_size: int) -> list[_T]:
    """What each process has, in the processes' order; every process calls it."""
    parts: list[list[_T]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, own)
    return [one for part in parts for one in part]


def _write(
    run: Run,
    stage: Literal["val", "test"],
    shown: list[tuple[str, _Hard]],
    paths: Any,
    task: Classification | Segmentation,
    trainer: Trainer,
) -> None:
    table = run.errors(stage)
    folder = table.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    rows: list[Row] = []
    pictures, titles = [], []
    for number, (kind, one) in enumerate(shown, start=1):
        picture = folder / f"{number:02}.png"
        pixels, said = _segmented(one, task) if isinstance(task, Segmentation) else _classified(one, task)
        image = Image.fromarray(pixels)
        width = _LARGEST * (3 if isinstance(task, Segmentation) else 1)
        image.thumbnail((width, _LARGEST))
        image.save(picture)
        rows.append(
            {
                "kind": kind,
                "index": None if one.place < 0 else one.place,
                "path": paths[one.place] if 0 <= one.place < len(paths) else "",
                **said,
                "uncertainty": round(one.doubt, 6),
                "picture": picture.relative_to(table.parent),
            }
        )
        pictures.append(np.moveaxis(np.asarray(image), -1, 0))
        titles.append("\n".join([kind, *_lines(said)]))
    write_csv(table, rows)
    name = {"val": "validation", "test": "test"}[stage]
    sheet = run.pictures / f"{stage}_errors.png"
    contact_sheet(pictures, titles, sheet, f"The worst and the least certain {name} images", columns=8)
    step = trainer.global_step - 1 if trainer.state.fn == "fit" else None
    write_picture(trainer, f"{stage}/errors", sheet, step)
    write_table(trainer, f"{stage}/hardest", [{**row, "picture": table.parent / row["picture"]} for row in rows], step)


def _classified(one: _Hard, task: Classification) -> tuple[Pixels, dict[str, Any]]:
    probabilities = task.probabilities(one.prediction[None])[0]
    if task.multi_label:
        truth = [task.class_names[i] for i in one.target.nonzero().flatten().tolist()]
        found = [task.class_names[i] for i in (probabilities >= 0.5).nonzero().flatten().tolist()]
        said: dict[str, Any] = {"truth": "; ".join(truth) or "-", "predicted": "; ".join(found) or "-"}
    else:
        label = int(probabilities.argmax())
        said = {
            "truth": task.class_names[int(one.target)],
            "predicted": task.class_names[label],
            "probability": round(float(probabilities[label]), 6),
            "probability of the truth": round(float(probabilities[int(one.target)]), 6),
        }
    return np.ascontiguousarray(as_rgb(one.image)), said


def _segmented(one: _Hard, task: Segmentation) -> tuple[Pixels, dict[str, Any]]:
    """The image, its true and its predicted classes side by side."""
    pixels = as_rgb(one.image)
    overlays = [overlay_mask(pixels, classes.numpy(), task.num_classes) for classes in (one.target, one.prediction)]
    return np.concatenate([pixels, *overlays], axis=1), {"wrong pixels": round(one.error, 6)}


def _lines(said: dict[str, Any]) -> list[str]:
    """What stands over a picture: short lines, each probability behind its class.

    >>> _lines({"truth": "1", "predicted": "7", "probability": 0.982, "probability of the truth": 0.007})
    ['truth: 1 (0.7%)', 'predicted: 7 (98.2%)']
    """
    behind = {"truth": "probability of the truth", "predicted": "probability"}
    return [
        f"{name}: {_short(value)}" + (f" ({_short(said[behind[name]])})" if behind.get(name) in said else "")
        for name, value in said.items()
        if name not in behind.values()
    ]


def _short(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)
