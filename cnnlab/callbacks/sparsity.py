"""Keep pruned weights at zero."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cnnlab.deploy.prune import weighted
from cnnlab.errors import InputError


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
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set these weights to zero again."""
        for weight, zeros in self._zeros:
            weight.masked_fill_(zeros, 0.0)
