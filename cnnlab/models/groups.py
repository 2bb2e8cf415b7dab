"""A network's layer groups, in order from input to head, for unfreezing and layer decay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

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
        head = LayerGroup("", tuple(_parameter_owners(network.head)))
        return [*_prefix_groups("backbone", layer_groups(network.backbone)), *_prefix_groups("head", [head])]
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


def _prefix_groups(prefix: str, groups: list[LayerGroup]) -> list[LayerGroup]:
    def add_prefix(name: str) -> str:
        return f"{prefix}.{name}" if name else prefix

    return [LayerGroup(add_prefix(group.name), tuple(map(add_prefix, group.modules))) for group in groups]


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
