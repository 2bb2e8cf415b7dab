"""pictures/validation.png: what a segmentation task makes of the same validation images, after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnnlab.errors import InputError
from cnnlab.figures import as_bytes, contact_sheet
from cnnlab.imaging import overlay_mask
from cnnlab.loggers import write_picture
from cnnlab.run import Run
from cnnlab.tasks import Segmentation


class ValidationMasks(Callback):
    """Draws the first validation images, their masks, and what is predicted of them, on the first process.

    The picture in the run's folder is the latest; wandb and TensorBoard keep one of each validation. Nothing of the
    training changes: neither weights nor random states.

    Args:
        images: How many.

    Raises:
        InputError: If that is below 1.
    """

    def __init__(self, images: int = 4) -> None:
        if images < 1:
            raise InputError(f"callbacks.validation_masks.images is {images}, expected 1 or more")
        self.images = images
        self._shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with none."""
        self._shown = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images, and what was predicted of them."""
        missing = self.images - len(self._shown)
        known = isinstance(pl_module, Segmentation) and isinstance(outputs, Tensor) and outputs.ndim == 4
        if missing and known and trainer.is_global_zero and not trainer.sanity_checking:
            images, truths = (values[:missing] for values in batch)
            predicted = outputs[:missing].argmax(dim=1)
            self._shown += list(zip(images, truths, predicted, strict=True))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        if not self._shown:
            return
        assert isinstance(pl_module, Segmentation)
        pictures: list[npt.NDArray[np.uint8]] = []
        titles: list[str] = []
        for image, truth, predicted in self._shown:
            pixels = as_bytes(image)
            pictures += [pixels, *(_coloured(pixels, classes, pl_module.num_classes) for classes in (truth, predicted))]
            known = truth != pl_module.hparams["ignore_index"]
            right = (predicted == truth)[known].float().mean().item() if known.any() else 0.0
            titles += ["image", "truth", f"predicted, {right:.0%} right"]
        self._shown = []
        path = Run(Path(trainer.default_root_dir)).pictures / "validation.png"
        heading = f"Validation images after step {trainer.global_step}"
        contact_sheet(pictures, titles, path, heading, columns=6 if len(pictures) > 3 else 3)
        write_picture(trainer, "val/masks", path, trainer.global_step - 1)


def _coloured(pixels: npt.NDArray[np.uint8], classes: Tensor, count: int) -> npt.NDArray[np.uint8]:
    coloured = overlay_mask(np.moveaxis(pixels, 0, -1), classes.cpu().numpy(), count)
    return np.moveaxis(coloured, -1, 0)
