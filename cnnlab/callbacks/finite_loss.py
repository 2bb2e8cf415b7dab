"""Stop a run whose loss is not finite, before it overwrites good checkpoints; refuse metrics that do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnnlab.callbacks.monitors import check_names
from cnnlab.errors import TrainingError
from cnnlab.run import Run


class FiniteLoss(Callback):
    """Stops at a loss that is NaN or infinite, and names the step; refuses to monitor a metric that does not exist.

    On an accelerator, or with several processes, the losses are checked at intervals, before each save, and at the end
    of an epoch, since each check makes the device or the processes wait.

    Args:
        every_n_steps: Batches between two checks; a single process on the CPU checks each batch.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad: Tensor | None = None
        self._validated: set[str] = set()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record which metrics a validation logs."""
        self._validated = set(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state, and check that the metrics exist that callbacks and schedules monitor.

        Raises:
            InputError: If a monitored metric does not exist.
        """
        self._first_bad = None
        check_names(trainer, pl_module, self._validated)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step of the first bad loss, on the device."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        batch_number = trainer.fit_loop.epoch_loop.total_batch_idx
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=loss.device)
        is_first = ~torch.isfinite(loss.detach()) & (self._first_bad < 0)
        self._first_bad = torch.where(is_first, batch_number, self._first_bad)
        at_once = loss.device.type == "cpu" and trainer.world_size == 1
        if at_once or batch_idx % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check again, so that no epoch ends with a bad loss."""
        self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save after a bad loss."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._first_bad is None:
            return
        # All processes stop together, even if only one has a bad loss.
        batch = int(trainer.strategy.reduce(self._first_bad.clone(), reduce_op="max"))
        if batch < 0:
            return
        folder = Run(Path(trainer.default_root_dir)).checkpoints
        kept = sorted(path.name for path in folder.glob("*.ckpt"))
        raise TrainingError(
            f"the loss of training batch {batch} (counted from 0, optimizer step about {trainer.global_step}, epoch "
            f"{trainer.current_epoch}) is not a finite number; stopped"
            + (f", keeping {' and '.join(kept)} of before in {folder}" if kept else "")
            + ". Usual causes: a learning rate that is too high (--model.lr), 16-mixed precision where bf16-mixed "
            "would do, no clipping (--trainer.gradient_clip_val 1)"
        )
