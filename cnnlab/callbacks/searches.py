"""Lightning's searches for a learning rate and for a batch size; the run uses the results."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from cnnlab.errors import InputError


class LearningRateSearch(LearningRateFinder):
    """Searches for a learning rate over some steps before the training (Smith 2017); the run uses the result.

    It needs at least as many training steps as it tries rates. Afterwards, weights and data start from the beginning.

    Args:
        min_lr: The lowest rate to try.
        max_lr: The highest rate to try.
        num_training_steps: The number of rates to try.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 1.0, num_training_steps: int = 100) -> None:
        super().__init__(min_lr=min_lr, max_lr=max_lr, num_training_steps=num_training_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, then make the optimizer and the schedule with the rate found.

        Raises:
            InputError: If another callback sets the layers' rates, or if the rate is scaled (model.lr_scaling).
        """
        if getattr(pl_module, "hparams", {}).get("lr_scaling") is not None:
            raise InputError(
                "callbacks.lr_finder searches the rate for the batch as it is, and model.lr_scaling would scale it "
                "again: leave one of them out"
            )
        if getattr(pl_module, "layer_rates", None) is not None:
            raise InputError(
                "callbacks.lr_finder searches one learning rate, and callbacks.unfreezing sets one for each section: "
                "switch one of them off"
            )
        super().on_fit_start(trainer, pl_module)
        # The schedule made before still has the old rate.
        trainer.strategy.setup_optimizers(trainer)


class BatchSizeSearch(BatchSizeFinder):
    """Searches for the largest batch that fits into memory; the run uses the result.

    Args:
        init_val: The first size to try; each following one is twice as large.
        max_trials: The maximum number of sizes to try.
        steps_per_trial: Training steps with each size.
    """

    def __init__(self, init_val: int = 2, max_trials: int = 25, steps_per_trial: int = 3) -> None:
        super().__init__(init_val=init_val, max_trials=max_trials, steps_per_trial=steps_per_trial)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, then make the schedule for the new number of steps per epoch."""
        super().on_fit_start(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)
