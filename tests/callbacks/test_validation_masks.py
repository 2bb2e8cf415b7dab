"""Pictures of validation images: which network they show."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.callbacks import ExponentialMovingAverage, ValidationMasks
from cnnlab.data import Shapes
from cnnlab.tasks import Segmentation


class Spy(Callback):
    """Keeps what is about to be drawn."""

    def __init__(self, masks: ValidationMasks) -> None:
        self.masks = masks

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown = list(self.masks._shown)


def test_they_show_the_averaged_weights_where_those_are_validated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Shapes(root=str(tmp_path / "shapes"), images=16, side=32, batch_size=4, num_workers=0, seed=0)
    task = Segmentation(network_args={"base": 2, "depth": 2}, num_classes=4, lr=0.05)
    masks = ValidationMasks(images=3)
    spy = Spy(masks)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[ExponentialMovingAverage(decay=0.7), spy, masks],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    assert len(spy.shown) == 3
    # The averaged weights are what is left at the end.
    with torch.no_grad():
        for image, _, predicted in spy.shown:
            assert task.eval().logits(image[None]).argmax(dim=1)[0].equal(predicted)
    assert (tmp_path / "pictures/validation.png").is_file()
