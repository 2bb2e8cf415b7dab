"""Pictures of validation images: which network they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.callbacks import ExponentialMovingAverage, ValidationPictures
from cnnlab.data import Shapes
from cnnlab.imaging import overlay_mask
from cnnlab.pictures import as_rgb
from cnnlab.tasks import Segmentation


class Spy(Callback):
    """Keeps what is about to be drawn."""

    def __init__(self, pictures: ValidationPictures) -> None:
        self.pictures = pictures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown = list(self.pictures._shown)


def test_they_show_the_averaged_weights_where_those_are_validated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Shapes(root=str(tmp_path / "shapes"), images=16, side=32, batch_size=4, num_workers=0, seed=0)
    task = Segmentation(network_args={"base": 2, "depth": 2}, num_classes=4, lr=0.05)
    pictures = ValidationPictures(images=3)
    spy = Spy(pictures)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[ExponentialMovingAverage(decay=0.7), spy, pictures],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    assert len(spy.shown) == 3
    # The averaged weights are what is left at the end.
    batch = data.val_set.__getitems__([0, 1, 2])
    with torch.no_grad():
        predicted = task.eval().evaluate(batch.images).argmax(dim=1).numpy()
    for (picture, _), image, truth, own in zip(spy.shown, batch.images, batch.targets.numpy(), predicted, strict=True):
        pixels = as_rgb(image)
        expected = [pixels, *(overlay_mask(pixels, classes, 4) for classes in (truth, own))]
        np.testing.assert_array_equal(picture, np.concatenate(expected, axis=1))
    assert (tmp_path / "pictures/validation.png").is_file()
