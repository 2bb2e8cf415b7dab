"""Batch norms that compute their statistics over all processes."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn


class SyncNorm(TorchSyncBatchNorm):
    """Implements --trainer.sync_batchnorm, also for timm's networks.

    torch's own conversion silently drops the activations that are part of timm's batch norms.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert all batch norms of a model."""
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = cast(Any, convert_sync_batchnorm)(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the model unchanged: in eval mode, converted norms are plain ones."""
        return model
