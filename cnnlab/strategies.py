"""Strategies for runs with several processes, in addition to Lightning's."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry

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


StrategyRegistry.register(
    "fully_shard", FullyShard, description="weights and optimizer states spread over all processes"
)
