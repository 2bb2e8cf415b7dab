"""predictions.csv: a row for each image, in order, whatever the number of processes; and a picture of the hardest."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnnlab.callbacks.tables import SharedTable
from cnnlab.figures import Prediction, prediction_sheet
from cnnlab.predictions import CLASSES, class_row
from cnnlab.run import Run
from cnnlab.tasks import Segmentation


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
        self._table: SharedTable | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part."""
        self._hardest = []
        if not isinstance(pl_module, Segmentation):
            self._table = SharedTable(trainer, Run(Path(trainer.default_root_dir)).predictions)

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
        if self._table is None:
            return
        probabilities = outputs.probabilities.cpu()
        names = _class_names(pl_module, probabilities.shape[1])
        several = bool(getattr(pl_module, "multi_label", False))
        labels = [row.nonzero().flatten().tolist() for row in probabilities >= 0.5]
        if not several:
            labels = [[label] for label in probabilities.argmax(dim=1).tolist()]
        indices = outputs.indices.tolist()
        for index, path, target, found, row in zip(
            indices, outputs.paths, outputs.targets.cpu(), labels, probabilities.tolist(), strict=True
        ):
            self._table.write(class_row(index, path, _known(target), found, [names[label] for label in found], row))
        if trainer.is_global_zero and not several:
            targets = outputs.targets.tolist()
            self._keep_hardest(batch.images, probabilities, targets, indices, names)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts; draw the picture."""
        if self._table is None:
            return
        names = _class_names(pl_module, getattr(pl_module, "num_classes", 0))
        self._table.merge([*CLASSES, *names])
        self._table = None
        if self._hardest:
            hardest = [prediction for *_, prediction in sorted(self._hardest, key=lambda item: -item[0])]
            prediction_sheet(hardest, Run(Path(trainer.default_root_dir)).pictures / "predictions.png")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._table is not None:
            self._table.discard()

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


def _class_names(pl_module: LightningModule, count: int) -> list[str]:
    return list(getattr(pl_module, "class_names", None) or map(str, range(count)))
