"""Batch norms that take their statistics over all processes."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn


class SyncNorm(TorchSyncBatchNorm):
    """What --trainer.sync_batchnorm asks for, for timm's networks too.

    torch's own conversion drops the activations that timm's batch norms bring along, without a word.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert all batch norms of a model."""
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = cast(Any, convert_sync_batchnorm)(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is: evaluated, the converted norms are plain ones."""
        return model
