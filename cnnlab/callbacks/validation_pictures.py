"""pictures/validation.png: predictions drawn on the same validation images after each validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.batch import Batch
from cnnlab.callbacks.pace import Pace
from cnnlab.errors import InputError
from cnnlab.figures import contact_sheet
from cnnlab.imaging import Pixels, Place
from cnnlab.loggers import write_marked, write_picture
from cnnlab.outputs.base import Marks
from cnnlab.pictures import as_rgb, numpy_answers, numpy_targets
from cnnlab.run import Run
from cnnlab.tasks import VisionTask


class ValidationPictures(Callback):
    """Draws the first validation images with truth and prediction, on the first process: masks and objects.

    The picture in the run's folder is the latest; wandb and TensorBoard keep one for each validation, and wandb also
    gets the objects, which its viewer draws. Where pictures would take too long, some are left out: see pace.Pace. The
    training is not affected: neither weights nor random states change.

    Args:
        images: The number of images.

    Raises:
        InputError: If ``images`` is below 1.
    """

    def __init__(self, images: int = 4) -> None:
        if images < 1:
            raise InputError(f"callbacks.validation_pictures.images is {images}, expected 1 or more")
        self.images = images
        self._shown: list[tuple[Pixels, str]] = []
        self._marked: list[tuple[Pixels, dict[str, Marks]]] = []
        self._pace = Pace()
        self._drawn = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count the time."""
        self._pace.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no images."""
        self._shown, self._marked = [], []
        self._drawn = self._pace.allows(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Draw the first images."""
        missing = self.images - len(self._shown) if self._drawn else 0
        if not missing or not trainer.is_global_zero or trainer.sanity_checking or not isinstance(outputs, Mapping):
            return
        if not isinstance(pl_module, VisionTask) or pl_module.kind is None:
            return
        if not pl_module.output.dense and not pl_module.output.placed:
            return
        with self._pace.timed():
            self._show(pl_module, outputs, Batch.of(batch).first(missing))

    def _show(self, pl_module: VisionTask, outputs: Mapping[str, Any], shown: Batch) -> None:
        """Draw images with truth and prediction."""
        output = pl_module.output
        small = pl_module.decode.compact({name: value[: len(shown)] for name, value in outputs.items()})
        size = (shown.images.shape[-2], shown.images.shape[-1])
        place = Place(size, size) if output.placed else None
        answers = output.answers(numpy_answers(small), [""] * len(shown), [place] * len(shown))
        for image, target, answer in zip(shown.images, numpy_targets(shown.targets), answers, strict=True):
            truth = output.known(target)
            pixels = as_rgb(image)
            self._shown.append((output.picture(pixels, answer, truth), output.caption(answer, truth)))
            if marks := output.marks(answer, truth):
                self._marked.append((pixels, marks))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        if self._shown:
            with self._pace.timed():
                self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture, and hand it to the loggers."""
        path = Run(Path(trainer.default_root_dir)).pictures / "validation.png"
        heading = f"Validation images after step {trainer.global_step}: image, truth, prediction"
        pictures = [np.moveaxis(pixels, -1, 0) for pixels, _ in self._shown]
        contact_sheet(pictures, [caption for _, caption in self._shown], path, heading, columns=2)
        self._shown = []
        write_picture(trainer, "val/predictions", path, trainer.global_step - 1)
        if self._marked and isinstance(pl_module, VisionTask):
            images, marks = zip(*self._marked, strict=True)
            write_marked(trainer, "val/objects", images, marks, pl_module.output.names, trainer.global_step - 1)
