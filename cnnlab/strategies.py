"""How the processes of a run share its work, where Lightning's own strategies do not say it well."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry

from cnnlab.lightning_compat import set_data_parallel_size


def spreads_weights(strategy: Strategy | str) -> bool:
    """Whether each process holds a part of the weights only, so that a pass on one of them waits for the others."""
    if isinstance(strategy, str):
        return strategy.startswith(("fsdp", "fully_shard"))
    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))


class FullyShard(ModelParallelStrategy):
    """PyTorch's fully_shard: each process holds a part of the weights, the gradients and the optimizer's states.

    Each has its part of the batch, as in DDP. It is for networks that do not fit on one device; others are faster with
    DDP. Checkpoints are whole, plain files, as they are without it. --trainer.strategy fully_shard
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Take all processes for the data: Lightning counts nodes."""
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()


StrategyRegistry.register(
    "fully_shard", FullyShard, description="weights and optimizer states spread over all processes"
)
