"""Networks whose weights, gradients and optimizer states are spread over processes: PyTorch's fully_shard."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from cnnlab.models.groups import layer_groups


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a network over the processes of a mesh of one dimension, each layer group on its own; once only.

    As in DDP, the batch norms' statistics are those of the first process: each pass begins with them.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard  # Nothing that starts up without it.

    if isinstance(network, FSDPModule):
        return
    for parameter in network.parameters():
        # What it divides must lie in one piece; of channels_last it knows nothing.
        parameter.data = parameter.data.contiguous()
    for layers in layer_groups(network):
        # What the network itself owns is the last call's.
        if modules := [module for module in layers.modules_of(network) if module is not network]:
            fully_shard(modules, mesh=mesh)
    fully_shard(network, mesh=mesh)
    processes = mesh.get_group()
    network.register_forward_pre_hook(lambda module, _: _share_statistics(module, processes))


@torch.no_grad()
def _share_statistics(network: nn.Module, processes: dist.ProcessGroup) -> None:
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not statistics:
        return
    together = torch.cat([buffer.flatten() for buffer in statistics])
    sizes = [buffer.numel() for buffer in statistics]
    dist.broadcast(together, group=processes, group_src=0)
    for buffer, part in zip(statistics, torch.split(together, sizes), strict=True):
        buffer.copy_(part.view_as(buffer))
