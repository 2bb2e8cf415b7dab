"""The parts of a network: layer groups from input to head, for unfreezing, layer decay and sharding; the backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from cnnlab.models.transfer import TransferModel

_LISTS = ("features", "stages", "layers", "blocks")
"""A child whose name ends with one of these is a list of groups; any other child is one group."""


class LayerGroup(NamedTuple):
    """Layers that are frozen or trained together, with one learning rate."""

    name: str
    modules: tuple[str, ...]
    """The names of the modules that own the group's parameters."""

    def modules_of(self, network: nn.Module) -> Iterator[nn.Module]:
        """The group's modules in a network, or in a copy of it."""
        return (network.get_submodule(name) for name in self.modules)

    def parameters_of(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """The group's parameters in a network, with their names."""
        for name in self.modules:
            for own, parameter in network.get_submodule(name).named_parameters(recurse=False):
                yield (f"{name}.{own}" if name else own), parameter


def layer_groups(network: nn.Module) -> list[LayerGroup]:
    """Divide a network's parameters into groups, from the input to the head; each parameter is in one group.

    A network's own method ``layer_groups`` (group names to prefixes of modules) is used first, then the matcher of
    timm's networks. In all other networks each child is a group. A child called features, stages, layers or blocks is
    divided: each of its children is a group.

    >>> from cnnlab.models import SimpleCNN
    >>> [group.name for group in layer_groups(SimpleCNN())]
    ['features.0', 'features.2', 'features.4', 'head']
    """
    if isinstance(network, TransferModel):
        groups = [("backbone", *group) for group in layer_groups(network.backbone)]
        groups.append(("head", "", tuple(_parameter_owners(network.head))))
        return [
            LayerGroup(f"{part}.{name}".rstrip("."), tuple(f"{part}.{module}".rstrip(".") for module in modules))
            for part, name, modules in groups
        ]
    if callable(own := getattr(network, "layer_groups", None)):
        return _group_by_prefixes(network, own().items())
    if hasattr(network, "group_matcher"):
        # Some timm matchers have no coarse groups.
        with contextlib.suppress(AssertionError):
            return _group_by_matcher(network)
    prefixes: list[str] = []
    for name, child in network.named_children():
        listed = name.rpartition("_")[2] in _LISTS and isinstance(child, (nn.Sequential, nn.ModuleList))
        prefixes += [f"{name}.{inner}" for inner, _ in child.named_children()] if listed else [name]
    return _group_by_prefixes(network, [(prefix, (prefix,)) for prefix in prefixes])


def _group_by_prefixes(network: nn.Module, prefixes: Iterable[tuple[str, tuple[str, ...]]]) -> list[LayerGroup]:
    """Group the modules that own parameters by their prefixes; those without one belong to the first group."""
    groups: dict[str, list[str]] = {name: [] for name, _ in prefixes}
    for owner in _parameter_owners(network):
        names = [name for name, own in prefixes if any(f"{owner}.".startswith(f"{prefix}.") for prefix in own)]
        groups[names[0] if names else next(iter(groups))].append(owner)
    return [LayerGroup(name, tuple(modules)) for name, modules in groups.items() if modules]


def _parameter_owners(network: nn.Module) -> list[str]:
    """The names of the modules that own parameters."""
    return [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]


def _group_by_matcher(network: nn.Module) -> list[LayerGroup]:
    from timm.models import group_parameters

    # timm groups the classifier with the layers before it; here it is a separate group.
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    groups: list[LayerGroup] = []
    head: dict[str, None] = {}
    assigned: set[str] = set()
    for names in group_parameters(network, network.group_matcher(coarse=True)).values():  # type: ignore[operator]
        # If the matcher divides a module's parameters (tokens of the network itself), all go to the first group.
        owners = dict.fromkeys(owner for name in names if (owner := name.rpartition(".")[0]) not in assigned)
        assigned |= set(owners)
        head_owners = {name: None for name in owners if any(f"{name}.".startswith(f"{prefix}.") for prefix in heads)}
        head |= head_owners
        if rest := tuple(name for name in owners if name not in head_owners):
            groups.append(LayerGroup(_group_name(names[0]), rest))
    if head:
        groups.append(LayerGroup(heads[0], tuple(head)))
    return [group._replace(name=_unique_name(group, groups)) for group in groups]


def _unique_name(group: LayerGroup, groups: list[LayerGroup]) -> str:
    namesakes = [other for other in groups if other.name == group.name]
    return group.name if len(namesakes) == 1 else f"{group.name}#{namesakes.index(group)}"


def _group_name(name: str) -> str:
    """The name of a group, from its first parameter's name.

    >>> _group_name("blocks.1.0.bn1.weight"), _group_name("layer1.0.conv1.weight"), _group_name("cls_token")
    ('blocks.1', 'layer1', 'cls_token')
    """
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in _LISTS else 1])


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard weights, gradients and optimizer states over a one-dimensional mesh, one layer group at a time; once only.

    PyTorch's fully_shard does it. As in DDP, each forward pass starts with the first process's batch norm statistics.
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


_BACKBONES = ("backbone.", "encoder.", "network.encoder.model.")
"""The prefixes of the backbone in cnnlab's own networks; in other networks, the whole network is the backbone."""


def backbone_prefix(network: nn.Module) -> str:
    """The prefix of the names of a network's backbone: its attribute ``backbone_prefix``, or a known prefix.

    >>> from cnnlab.models import SimpleCNN, UNet
    >>> backbone_prefix(UNet(2, base=4)), backbone_prefix(SimpleCNN())
    ('encoder.', '')
    """
    own = getattr(network, "backbone_prefix", None)
    return str(own) if isinstance(own, str) else _prefix_among(network.state_dict())


def backbone_names(names: Iterable[str], of: nn.Module | str | None) -> dict[str, str]:
    """The tensors of a network's backbone: their full names, by their names within the backbone.

    timm calls the same layer "stages.0" in a classifier and "stages_0" in an encoder, so both are "stages_0" here.

    Args:
        names: All names in the network's state dict.
        of: The network, or its backbone's prefix, as in a checkpoint; determined from the names if None.

    >>> backbone_names(["encoder.stem.0.weight", "head.weight"], "encoder.")
    {'stem_0_weight': 'encoder.stem.0.weight'}
    """
    names = list(names)
    prefix = backbone_prefix(of) if isinstance(of, nn.Module) else _prefix_among(names) if of is None else of
    return {name.removeprefix(prefix).replace(".", "_"): name for name in names if name.startswith(prefix)}


def _prefix_among(names: Iterable[str]) -> str:
    names = list(names)
    return next((prefix for prefix in _BACKBONES if any(name.startswith(prefix) for name in names)), "")
