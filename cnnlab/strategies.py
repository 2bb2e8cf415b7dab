"""Strategies and batch norms for runs with several processes, in addition to Lightning's."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn

from cnnlab.lightning_compat import set_data_parallel_size


def spreads_weights(strategy: Strategy | str) -> bool:
    """Whether each process holds only a part of the weights, so that a forward pass needs all processes."""
    if isinstance(strategy, str):
        return strategy.startswith(("fsdp", "fully_shard"))
    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))


class FullyShard(ModelParallelStrategy):
    """PyTorch's fully_shard: each process holds a part of the weights, the gradients and the optimizer's states.

    Each process has its part of the batch, as in DDP. It is for networks that do not fit on one device; others are
    faster with DDP. Checkpoints are complete, plain files, as without it. --trainer.strategy fully_shard
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Share the data among all processes; Lightning's default is one share for each node."""
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()


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


StrategyRegistry.register(
    "fully_shard", FullyShard, description="weights and optimizer states spread over all processes"
)
