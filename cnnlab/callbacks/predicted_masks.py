"""masks/, overlays/ and predictions.csv: what a segmentation task predicts of each image."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from cnnlab.callbacks.tables import SharedTable
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage, as_png, mask_as_png, overlay_mask, resized
from cnnlab.predictions import MASKS, mask_row
from cnnlab.run import Run
from cnnlab.tasks import Segmentation
from cnnlab.writing import write_atomically

_MOST_CLASSES = 256


class PredictedMasks(Callback):
    """Writes a mask for each image into the run's folder, as a PNG with a palette, as large as the image.

    masks/NAME.png has the classes' numbers; overlays/NAME.png is the image, and beside it the same coloured by them;
    predictions.csv has a row for each image: index, path, mask, and the share of the image that each class takes. NAME
    is the image's path from the folder on that all have in common, ending included. Each process writes what it
    predicts. What an earlier prediction of other images has left in these folders stays.

    Args:
        overlays: Whether to write overlays.
        probabilities: Whether to write probabilities/NAME.npz as well: ``probabilities``, float16 (K, H, W), at the
            size that the network saw.
    """

    def __init__(self, overlays: bool = True, probabilities: bool = False) -> None:
        self.overlays = overlays
        self.probabilities = probabilities
        self._table: SharedTable | None = None
        self._common = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part of the table."""
        if isinstance(pl_module, Segmentation):
            loaders: Any = trainer.predict_dataloaders
            paths = getattr(loaders.dataset, "paths", None)
            if not paths:
                raise InputError(
                    f"{type(loaders.dataset).__name__} has no paths, the list of its images' files, which "
                    "callbacks.masks names its own by: give it one, or switch it off (--callbacks.masks false)"
                )
            if pl_module.num_classes > _MOST_CLASSES:
                raise InputError(
                    f"a PNG mask has room for {_MOST_CLASSES} classes, the network has {pl_module.num_classes}: switch "
                    "callbacks.masks off, and take the arrays from trainer.predict"
                )
            self._table = SharedTable(trainer, Run(Path(trainer.default_root_dir)).predictions)
            self._common = Path(os.path.commonpath([Path(path).absolute().parent for path in paths]))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the masks of the batch."""
        if self._table is None:
            return
        assert isinstance(pl_module, Segmentation)
        run = Run(Path(trainer.default_root_dir))
        count = pl_module.num_classes
        for i, (index, path) in enumerate(zip(outputs.indices.tolist(), outputs.paths, strict=True)):
            image = LazyImage(path)
            classes = _at_size(outputs.classes[i].to(torch.uint8).cpu().numpy(), image.size)
            name = Path(path).absolute().relative_to(self._common)
            mask = run.masks / f"{name}.png"
            write_atomically(mask, mask_as_png(classes, count))
            if self.overlays:
                pixels = image.read()
                picture = np.concatenate([pixels, overlay_mask(pixels, classes, count)], axis=1)
                write_atomically(run.overlays / f"{name}.png", as_png(Image.fromarray(picture)))
            if self.probabilities:
                file = io.BytesIO()
                np.savez_compressed(file, probabilities=outputs.probabilities[i].half().cpu().numpy())
                write_atomically(run.folder / "probabilities" / f"{name}.npz", file.getbuffer())
            self._table.write(mask_row(index, path, mask.relative_to(run.folder), classes, count))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of the table."""
        if self._table is not None:
            self._table.merge([*MASKS, *pl_module.class_names])  # type: ignore[misc]
            self._table = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._table is not None:
            self._table.discard()


def _at_size(classes: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return resized(classes[..., None], size, "nearest")[..., 0]
