"""What happens to the weights between steps: averages, and zeros that are kept."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from cnnlab.deploy.prune import weighted
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


class Sparsity(Callback):
    """Keeps weights of convolutions and linear layers at zero if they are zero when training starts."""

    def __init__(self) -> None:
        self._zeros: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record where the zeros are.

        Raises:
            InputError: If no weight is zero.
        """
        weights = [layer.weight for layer in weighted(pl_module)]
        self._zeros = [(weight, weight == 0) for weight in weights if bool((weight == 0).any())]
        if not self._zeros:
            raise InputError(
                "callbacks.sparsity: no weight is zero, so there is nothing to keep: start from pruned weights "
                "(cnnlab prune RUN --method unstructured), or switch it off"
            )

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Set these weights to zero again."""
        for weight, zeros in self._zeros:
            weight.masked_fill_(zeros, 0.0)
