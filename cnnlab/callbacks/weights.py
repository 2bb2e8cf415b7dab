"""Averages of the weights over the training."""

from __future__ import annotations

import warnings

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from cnnlab.errors import InputError
from cnnlab.strategies import spreads_weights


class ExponentialMovingAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights: it is what is validated, saved as the weights, and left at the end.

    Args:
        decay: The share of the old average that each update keeps, 0..1. About 1 / (1 - decay) updates are looked back
            on; where the training has not many times as many, the average lags behind.
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
            InputError: If the weights are spread over processes.
        """
        if spreads_weights(trainer.strategy):
            raise InputError(
                f"callbacks.ema cannot average weights that {type(trainer.strategy).__name__} spreads over processes: "
                "switch it off, or use --trainer.strategy ddp"
            )
        with warnings.catch_warnings():
            # Only those strategies have a use for the hook that every VisionTask has.
            warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)
