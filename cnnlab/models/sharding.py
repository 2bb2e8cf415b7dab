"""Shard a network's weights, gradients and optimizer states over processes, with PyTorch's fully_shard."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from cnnlab.models.groups import layer_groups


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network over the processes of a one-dimensional mesh, one layer group at a time; once only.

    As in DDP, each forward pass starts with the first process's batch norm statistics.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard  # Only imported when needed.

    if isinstance(network, FSDPModule):
        return
    for parameter in network.parameters():
        # fully_shard needs contiguous parameters, and does not support channels_last.
        parameter.data = parameter.data.contiguous()
    for layers in layer_groups(network):
        # Parameters of the network itself belong to the last call.
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
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    sizes = [buffer.numel() for buffer in statistics]
    dist.broadcast(flat, group=processes, group_src=0)
    for buffer, part in zip(statistics, torch.split(flat, sizes), strict=True):
        buffer.copy_(part.view_as(buffer))
