"""Lightning's searches of a learning rate and of a batch size, whose results the run then really uses."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from cnnlab.errors import InputError


class LearningRateSearch(LearningRateFinder):
    """Lightning's search over some steps before the training (Smith 2017); the run goes on with what it finds.

    It needs as many training steps as it tries rates. Weights and data begin anew afterwards.

    Args:
        min_lr: The lowest rate that is tried.
        max_lr: The highest.
        num_training_steps: How many rates are tried.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 1.0, num_training_steps: int = 100) -> None:
        super().__init__(min_lr=min_lr, max_lr=max_lr, num_training_steps=num_training_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, then make the optimizer and the schedule with the rate that was found.

        Raises:
            InputError: If another callback sets the layers' rates, or if the rate is scaled.
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
        # The schedule that was made before keeps its own idea of the rate.
        trainer.strategy.setup_optimizers(trainer)


class BatchSizeSearch(BatchSizeFinder):
    """Lightning's search of the largest batch that fits into memory; the run goes on with what it finds.

    Args:
        init_val: The first size that is tried; each next is twice as large.
        max_trials: How many are tried at the most.
        steps_per_trial: Training steps with each.
    """

    def __init__(self, init_val: int = 2, max_trials: int = 25, steps_per_trial: int = 3) -> None:
        super().__init__(init_val=init_val, max_trials=max_trials, steps_per_trial=steps_per_trial)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, then lay out the schedule for the number of steps that an epoch has now."""
        super().on_fit_start(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)
