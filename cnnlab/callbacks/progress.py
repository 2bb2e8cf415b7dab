"""The progress of a run without a terminal for a progress bar, and its speed."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.batch import Batch
from cnnlab.loggers import write_metrics


class EpochLines(Callback):
    """Prints a line with the metrics after each epoch, on the first process; for log files."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the finished epoch's line once all its metrics are known."""
        if trainer.current_epoch > 0:
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch's line."""
        self._print(trainer)

    @staticmethod
    def _print(trainer: Trainer) -> None:
        if trainer.is_global_zero:
            shown = "  ".join(
                f"{name} {float(value):.4g}"
                for name, value in sorted(trainer.callback_metrics.items())
                if "_step" not in name and not name.startswith(("lr-", "gradients/"))
            )
            print(
                f"epoch {trainer.current_epoch}/{trainer.max_epochs}  step {trainer.global_step}  {shown}", flush=True
            )


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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
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
