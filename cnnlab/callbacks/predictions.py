"""predictions.csv and its files: the answer to each image, in order, for any number of processes."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.batch import Batch
from cnnlab.callbacks.tables import SharedTable, results_of, write_measured
from cnnlab.data.file_data import FileDataModule
from cnnlab.figures import CORRECT, WRONG, contact_sheet
from cnnlab.loggers import announce
from cnnlab.models.decoding import Answers
from cnnlab.outputs import AnswerWriter, Output
from cnnlab.outputs.object_files import check_format, write_objects
from cnnlab.pictures import as_rgb, numpy_answers, numpy_targets, thumbnail
from cnnlab.run import Run
from cnnlab.tasks import VisionTask

_LINES = 100
"""The images whose answers are printed."""


class _Shown(NamedTuple):
    """An image of the contact sheet, ordered by its difficulty."""

    difficulty: float
    place: int
    """Its index times -1, so that of equally difficult images the earlier are kept."""
    picture: Any
    """(3, H, W)."""
    caption: str
    is_right: bool | None


class PredictionTable(Callback):
    """Writes what a task predicts into the run's folder: predictions.csv, the files beside it, and a picture.

    The columns and files depend on the task (see outputs). For classification: index, path, target (the true class's
    number, if known), label, name, and each class's probability. For segmentation: masks/NAME.png, overlays/NAME.png,
    and the share of each class. Each process writes its own part during the run; the first one merges them in order.
    Files of earlier predictions of other images are not removed.

    Args:
        pictures: The number of images in the picture of the hardest, 0 for no picture. These are the most wrong images
            of the first process, or the least certain ones if the truth is not known.
        files: Whether to write the files beside the table, such as masks.
        overlays: Whether the files include pictures with the answer drawn on the image.
        probabilities: Whether the files include the network's own arrays, such as each pixel's probabilities.
        conf: The least score of objects in the table, 0..1; all objects if None.
        format: csv; or yolo or coco, for objects in the files of other tools beside the table: see
            outputs.object_files.

    Raises:
        InputError: When predicting, if conf is out of range, or if the answers have no scores or no such format.
    """

    def __init__(
        self,
        pictures: int = 32,
        files: bool = True,
        overlays: bool = True,
        probabilities: bool = False,
        conf: float | None = None,
        format: Literal["csv", "yolo", "coco"] = "csv",
    ) -> None:
        self.pictures = pictures
        self.files = files
        self.overlays = overlays
        self.probabilities = probabilities
        self.conf = conf
        self.format = format
        self._hardest: list[_Shown] = []
        self._said = 0
        self._table: SharedTable | None = None
        self._writer: AnswerWriter | None = None
        self._run = Run(Path())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the part of this process."""
        self._hardest = []
        self._said = 0
        if not isinstance(pl_module, VisionTask) or pl_module.kind is None:
            return
        loaders: Any = trainer.predict_dataloaders
        self._run = run = results_of(trainer)
        output = pl_module.output if self.conf is None else pl_module.output.limited(self.conf)
        check_format(self.format, output)
        self._writer = AnswerWriter(
            output,
            run.folder,
            list(getattr(loaders.dataset, "paths", ())),
            self.files,
            self.overlays,
            self.probabilities,
            data.eval_transform() if isinstance(data := getattr(trainer, "datamodule", None), FileDataModule) else None,
        )
        self._table = SharedTable(trainer, run.predictions)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Write the rows of each image of the batch."""
        if self._table is None or self._writer is None:
            return
        assert isinstance(pl_module, VisionTask)
        output, batch = self._writer.output, outputs.batch
        places = self._writer.places(batch.paths)
        kept = outputs.answers if self.probabilities else pl_module.decode.compact(outputs.answers)
        answers = output.answers(numpy_answers(kept), batch.paths, places)
        truths = [output.known(target) for target in numpy_targets(batch.targets)]
        for index, answer, truth in zip(batch.indices.tolist(), answers, truths, strict=True):
            for row in self._writer.rows(index, answer, truth):
                self._table.write(row)
            self._say(trainer, answer.path, output.line(answer))
        if trainer.is_global_zero and self.pictures:
            self._keep_hardest(pl_module, output, outputs.answers, batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, and draw the picture."""
        if self._table is None or self._writer is None:
            return
        self._table.merge(self._writer.header)
        if trainer.is_global_zero:
            write_measured(trainer, self._run)
            write_objects(
                self.format,
                self._run.predictions,
                self._writer.output,
                self._writer.paths,
                getattr(getattr(trainer, "datamodule", None), "image_ids", None),
            )
        self._table = None
        if self._hardest:
            hardest = sorted(self._hardest, reverse=True)
            colors = [{True: CORRECT, False: WRONG, None: "black"}[one.is_right] for one in hardest]
            path = self._run.pictures / "predictions.png"
            images, captions = [one.picture for one in hardest], [one.caption for one in hardest]
            contact_sheet(images, captions, path, "Predictions, hardest first", colors=colors)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the part."""
        if self._table is not None:
            self._table.discard()

    def _say(self, trainer: Trainer, path: str, line: str) -> None:
        """Print the answer to one of the first images that the user has named."""
        if getattr(getattr(trainer, "datamodule", None), "results_source", None) is None or not trainer.is_global_zero:
            return
        self._said += 1
        if self._said <= _LINES:
            announce(f"{path}: {line}")
        elif self._said == _LINES + 1:
            announce(f"... and so on, in {self._run.predictions}")

    def _keep_hardest(self, task: VisionTask, output: Output, answers: Answers, batch: Batch) -> None:
        found = task.decode.difficulty(answers, batch.targets)
        if found is None:
            return
        values = (
            found.error
            if found.uncertainty is None
            else torch.where(found.error.isnan(), found.uncertainty, found.error)
        )
        small = task.decode.compact(answers)
        for i in values.nan_to_num(-1.0).argsort(descending=True)[: self.pictures].tolist():
            order = (float(values[i]), -int(batch.indices[i]))
            if len(self._hardest) == self.pictures and order <= self._hardest[0][:2]:
                break
            (answer,) = output.answers(numpy_answers({k: v[i : i + 1] for k, v in small.items()}), [""], [None])
            truth = output.known(numpy_targets(batch.targets[i : i + 1])[0])
            pixels = thumbnail(output.picture(as_rgb(batch.images[i]), answer, truth))
            shown = _Shown(
                *order, np.moveaxis(pixels, -1, 0), output.caption(answer, truth), output.is_right(answer, truth)
            )
            heapq.heappush(self._hardest, shown)
            if len(self._hardest) > self.pictures:
                heapq.heappop(self._hardest)
