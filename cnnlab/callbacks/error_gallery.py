"""errors/: the images of a validation or a test with the largest error or uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.callbacks.tables import from_all, results_of
from cnnlab.data.samplers import EvalSampler
from cnnlab.errors import InputError
from cnnlab.figures import CORRECT, WRONG, contact_sheet
from cnnlab.imaging import Pixels
from cnnlab.loggers import Row, write_picture, write_table
from cnnlab.models.decoding import Answers
from cnnlab.outputs import Output
from cnnlab.pictures import as_rgb, numpy_answers, numpy_targets, thumbnail
from cnnlab.tasks import VisionTask
from cnnlab.writing import write_csv

_T = TypeVar("_T")


class _Hard(NamedTuple):
    """An image and its prediction."""

    place: int
    """The number of images that this process saw before it; later its index in the data set, -1 if that is unknown."""
    error: float
    uncertainty: float
    """-inf if the network does not give one."""
    pixels: Pixels
    """(H, W, 3)."""
    answer: Mapping[str, npt.NDArray[Any]]
    """The decoder's arrays, with B = 1."""
    target: npt.NDArray[Any]


class ErrorGallery(Callback):
    """Shows the images with the largest errors, and those with the largest uncertainty.

    ``errors/val.csv`` is for the last validation of a training, or for a validation by itself; ``errors/test.csv`` is
    for a test. They have a row for each image: the truth, the prediction and its probability. A folder of the same
    name (``errors/val``) has the pictures, and ``pictures/`` a contact sheet of all. Each process keeps its own images,
    and the first one writes. Wrong labels often show up here first.

    Args:
        images: The number of images of each of the two groups.

    Raises:
        InputError: If ``images`` is below 1.
    """

    def __init__(self, images: int = 16) -> None:
        if images < 1:
            raise InputError(f"callbacks.errors.images is {images}, expected 1 or more")
        self.images = images
        self._seen = 0
        self._hard: list[_Hard] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no images."""
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
        """Keep the hardest images of the batch."""
        # A user's own task may not return its answers.
        has_answers = isinstance(outputs, Mapping) and dataloader_idx == 0 and not trainer.sanity_checking
        if has_answers and isinstance(pl_module, VisionTask) and pl_module.kind is not None:
            self._take(pl_module, outputs, Batch.of(batch))

    on_test_batch_end = on_validation_batch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the images of the last validation."""
        self._show(trainer, pl_module, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the images if the command was validate."""
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the images of the test."""
        self._show(trainer, pl_module, "test")

    def _take(self, task: VisionTask, answers: Answers, batch: Batch) -> None:
        with torch.inference_mode():
            found = task.decode.difficulty(answers, batch.targets) if len(batch) else None
            small = task.decode.compact(answers)
        if found is None:
            return
        errors = found.error.float().nan_to_num(-math.inf).tolist()
        # An answer that is right is none of the worst, however near the others were.
        errors = [
            -math.inf if error > -math.inf and _is_right(task.output, small, batch, i) else error
            for i, error in enumerate(errors)
        ]
        doubts = [-math.inf] * len(errors) if found.uncertainty is None else found.uncertainty.float().tolist()
        full = len(self._hard) >= self.images
        least_error, least_doubt = (
            _ranked(self._hard, field)[: self.images][-1][field] if full else -math.inf for field in (1, 2)
        )
        candidates = [
            _Candidate(self._seen + i, error, doubt)
            for i, (error, doubt) in enumerate(zip(errors, doubts, strict=True))
            # Most images are not among the hardest, and are not copied.
            if error > least_error or doubt > least_doubt
        ]
        everything: list[Any] = [*self._hard, *candidates]
        hardest = {
            one.place: one for one in _ranked(everything, 1)[: self.images] + _ranked(everything, 2)[: self.images]
        }
        self._hard = [
            one if isinstance(one, _Hard) else _copied(one, one.place - self._seen, small, batch)
            for one in hardest.values()
        ]
        self._seen += len(errors)

    def _show(self, trainer: Trainer, task: LightningModule, stage: Literal["val", "test"]) -> None:
        """Gather the images, and let the first process write them; every process must call this."""
        if not isinstance(task, VisionTask) or task.kind is None:
            return
        loader: Any = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        loader = loader[0] if isinstance(loader, list) else loader
        sampler = getattr(loader, "batch_sampler", None)
        # With other samplers, the drawn indices are not known afterwards.
        indices = sampler.indices if isinstance(sampler, EvalSampler) else None
        self._hard = [one._replace(place=-1 if indices is None else indices[one.place]) for one in self._hard]
        seen = sum(from_all(trainer, [self._seen]))
        if trainer.world_size > 1:
            # Only the hardest of all are sent.
            known = from_all(trainer, [(one.error, one.uncertainty) for one in self._hard])
            bars = [sorted(values, reverse=True)[: self.images][-1] for values in zip(*known, strict=True)]
            own = [one for one in self._hard if one.error >= bars[0] or one.uncertainty >= bars[1]]
            self._hard = from_all(trainer, own)
        if not trainer.is_global_zero or not self._hard:
            return
        paths = getattr(getattr(loader, "dataset", None), "paths", ())
        worst = [one for one in _ranked(self._hard, 1)[: self.images] if one.error > -math.inf]
        # Of few images, the others are the more certain half.
        most = min(self.images, (seen + 1) // 2)
        uncertain = [one for one in _ranked(self._hard, 2)[:most] if one.uncertainty > -math.inf]
        uncertain = [one for one in uncertain if all(one is not other for other in worst)]
        shown = [("worst", one) for one in worst] + [("least certain", one) for one in uncertain]
        self._hard = []
        _write(trainer, stage, shown, paths, task.output)


class _Candidate(NamedTuple):
    """The first fields of _Hard, for an image that is still in its batch."""

    place: int
    error: float
    uncertainty: float


def _ranked(images: list[_T], field: int) -> list[_T]:
    """Sort images by their error (1) or uncertainty (2), the hardest first."""
    return sorted(images, key=lambda one: (-one[field], one[0]))  # type: ignore[index]


def _is_right(output: Output, answers: Answers, batch: Batch, i: int) -> bool:
    """Whether the answer to an image of a batch is right; False if that is not defined."""
    (answer,) = output.answers(numpy_answers({name: value[i : i + 1] for name, value in answers.items()}), [""], [None])
    return bool(output.is_right(answer, output.known(numpy_targets(batch.targets[i : i + 1])[0])))


def _copied(one: _Candidate, i: int, answers: Answers, batch: Batch) -> _Hard:
    """Copy one image: a view would keep its whole batch in memory."""
    arrays = numpy_answers({name: value[i : i + 1].clone() for name, value in answers.items()})
    (target,) = numpy_targets(batch.targets[i : i + 1])
    return _Hard(*one, as_rgb(batch.images[i]).copy(), arrays, target.copy())


def _write(
    trainer: Trainer, stage: Literal["val", "test"], shown: list[tuple[str, _Hard]], paths: Any, output: Output
) -> None:
    run = results_of(trainer)
    table = run.errors(stage)
    folder = table.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    rows: list[Row] = []
    pictures, titles, colors = [], [], []
    for number, (group, one) in enumerate(shown, start=1):
        (answer,), truth = output.answers(one.answer, [""], [None]), output.known(one.target)
        pixels = thumbnail(output.picture(one.pixels, answer, truth))
        picture = folder / f"{number:02}.png"
        Image.fromarray(pixels).save(picture)
        rows.append(
            {
                "kind": group,
                "index": None if one.place < 0 else one.place,
                "path": paths[one.place] if 0 <= one.place < len(paths) else "",
                **output.describe(answer, truth),
                "uncertainty": round(one.uncertainty, 6) if math.isfinite(one.uncertainty) else None,
                "picture": picture.relative_to(table.parent),
            }
        )
        pictures.append(np.moveaxis(pixels, -1, 0))
        titles.append(f"{group}\n{output.caption(answer, truth)}")
        colors.append({True: CORRECT, False: WRONG, None: "black"}[output.is_right(answer, truth)])
    write_csv(table, rows)
    name = {"val": "validation", "test": "test"}[stage]
    sheet = run.pictures / f"{stage}_errors.png"
    contact_sheet(pictures, titles, sheet, f"The worst and the least certain {name} images", columns=8, colors=colors)
    step = trainer.global_step - 1 if trainer.state.fn == "fit" else None
    write_picture(trainer, f"{stage}/errors", sheet, step)
    write_table(trainer, f"{stage}/hardest", [{**row, "picture": table.parent / row["picture"]} for row in rows], step)
