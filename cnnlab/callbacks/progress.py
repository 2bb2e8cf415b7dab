"""Progress without a terminal for a progress bar: one line per epoch."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


def _is_shown(name: str) -> bool:
    return "_step" not in name and not name.startswith(("lr-", "gradients/"))


class EpochLines(Callback):
    """Prints a line with the metrics after each epoch, on the first process; for log files."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the finished epoch's line once all its metrics are known."""
        if trainer.current_epoch > 0:
            self._print(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch's line."""
        self._print(trainer, trainer.current_epoch)

    @staticmethod
    def _print(trainer: Trainer, epochs: int) -> None:
        if trainer.is_global_zero:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            shown = "  ".join(f"{key} {value:.4g}" for key, value in sorted(metrics.items()) if _is_shown(key))
            print(f"epoch {epochs}/{trainer.max_epochs}  step {trainer.global_step}  {shown}", flush=True)
