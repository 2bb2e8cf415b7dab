"""Averages of the weights during training."""

from __future__ import annotations

import warnings

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from cnnlab.errors import InputError
from cnnlab.strategies import spreads_weights


class ExponentialMovingAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights, which is validated, saved, and kept as the weights at the end.

    Args:
        decay: The share of the old average that each update keeps, from 0 to below 1. The average covers about
            1 / (1 - decay) updates; if the training is not many times as long, the average lags behind.
        update_every_n_steps: Optimizer steps between updates.
        update_starting_at_step: The first step that is averaged.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callbacks.ema.decay is {decay}, expected 0 up to (not including) 1")
        super().__init__(
            decay=decay, update_every_n_steps=update_every_n_steps, update_starting_at_step=update_starting_at_step
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the copy that holds the averages.

        Raises:
            InputError: If the strategy spreads the weights over processes.
        """
        if spreads_weights(trainer.strategy):
            raise InputError(
                f"callbacks.ema cannot average weights that {type(trainer.strategy).__name__} spreads over processes: "
                "switch it off, or use --trainer.strategy ddp"
            )
        with warnings.catch_warnings():
            # Only those strategies need the hook that every VisionTask has.
            warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)
