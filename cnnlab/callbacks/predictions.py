"""predictions.csv: a row for each image, in order, whatever the number of processes; and a picture of the hardest."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnnlab.figures import Prediction, prediction_sheet
from cnnlab.run import Run


class PredictionTable(Callback):
    """Writes what a classification task predicts into the run's folder.

    Columns: index (its place in the data set), path (where images are files), target (the true class's number, where
    it is known), label (the predicted class's number), name (of the predicted class), and each class's
    probability. Where an image may have several classes, they are separated by ";", and those of at least 0.5
    are predicted. Each process writes its own part as it goes; the first one merges them in order.

    Args:
        pictures: How many images the picture of the hardest shows, 0 for no picture: those whose true class (or, where
            it is not known, whose predicted class) has the least probability, among those of the first process.
    """

    def __init__(self, pictures: int = 32) -> None:
        self.pictures = pictures
        self._hardest: list[tuple[float, int, Prediction]] = []
        self._file: IO[str] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part."""
        self._hardest = []
        part = self._part(trainer, trainer.global_rank)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = part.open("w", newline="", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a row for each image of the batch."""
        assert self._file is not None
        probabilities = outputs.probabilities.cpu()
        names = _class_names(pl_module, probabilities.shape[1])
        several = bool(getattr(pl_module, "multi_label", False))
        labels = [row.nonzero().flatten().tolist() for row in probabilities >= 0.5]
        if not several:
            labels = [[label] for label in probabilities.argmax(dim=1).tolist()]
        indices = outputs.indices.tolist()
        writer = csv.writer(self._file, lineterminator="\n")
        for index, path, target, found, row in zip(
            indices, outputs.paths, outputs.targets.cpu(), labels, probabilities.tolist(), strict=True
        ):
            called = ";".join(names[label] for label in found)
            numbers = ";".join(map(str, found))
            writer.writerow([index, path, _known(target), numbers, called, *(f"{value:.6g}" for value in row)])
        if trainer.is_global_zero and not several:
            targets = outputs.targets.tolist()
            self._keep_hardest(batch.images, probabilities, targets, indices, names)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts; draw the picture."""
        assert self._file is not None
        self._file.close()
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
        names = _class_names(pl_module, getattr(pl_module, "num_classes", 0))
        merged = run.folder / f".predictions.{os.getpid()}.part"
        with merged.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["index", "path", "target", "label", "name", *names])
            rows: Iterator[list[str]] = heapq.merge(*map(_rows, parts), key=_index)
            writer.writerows(rows)
        merged.replace(run.predictions)
        for part in parts:
            part.unlink()
        if self._hardest:
            hardest = [prediction for *_, prediction in sorted(self._hardest, key=lambda item: -item[0])]
            prediction_sheet(hardest, run.pictures / "predictions.png")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._file is not None:
            self._file.close()
            self._part(trainer, trainer.global_rank).unlink(missing_ok=True)

    @staticmethod
    def _part(trainer: Trainer, rank: int) -> Path:
        return Path(trainer.default_root_dir) / f".predictions.rank{rank}.csv"

    def _keep_hardest(
        self, images: Tensor, probabilities: Tensor, targets: list[int], indices: list[int], names: list[str]
    ) -> None:
        if not self.pictures:
            return
        truth = torch.tensor(targets)
        predicted = probabilities.argmax(dim=1)
        asked = torch.where(truth >= 0, truth, predicted)
        sureness = probabilities.gather(1, asked[:, None])[:, 0]
        for i in map(int, sureness.argsort()[: self.pictures]):
            label, target = int(predicted[i]), targets[i]
            prediction = Prediction(
                image=images[i].cpu().numpy().copy(),
                name=names[label],
                probability=float(probabilities[i, label]),
                truth=names[target] if target >= 0 else None,
            )
            heapq.heappush(self._hardest, (-float(sureness[i]), -indices[i], prediction))
            if len(self._hardest) > self.pictures:
                heapq.heappop(self._hardest)


def _known(target: Tensor) -> str:
    """The true class, or classes, as text; "" where the truth is not known."""
    if target.ndim:
        return ";".join(map(str, target.nonzero().flatten().tolist()))
    return str(int(target)) if target >= 0 else ""


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def _index(row: list[str]) -> int:
    return int(row[0])


def _class_names(pl_module: LightningModule, count: int) -> list[str]:
    return list(getattr(pl_module, "class_names", None) or map(str, range(count)))
