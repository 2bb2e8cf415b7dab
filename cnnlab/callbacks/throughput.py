"""The training speed of a run."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.batch import Batch
from cnnlab.loggers import write_metrics


class Throughput(Callback):
    """Logs train/images_per_second after each epoch: over all processes, without validation."""

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._started: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        self._images, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images."""
        self._images += len(Batch.of(batch))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's rate."""
        self._pause()
        if self._images and self._seconds:
            rate = self._images * trainer.world_size / self._seconds
            write_metrics(trainer, {"train/images_per_second": rate}, trainer.global_step - 1)

    def _pause(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None
