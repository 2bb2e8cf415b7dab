"""A network's layer groups, in order from input to head: what unfreezing and layer decay count in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from cnnlab.models.transfer import TransferModel

_LISTS = ("features", "stages", "layers", "blocks")
"""Children whose names end with these are lists of groups; any other child is one."""


class LayerGroup(NamedTuple):
    """Layers that are frozen, trained and given a learning rate together."""

    name: str
    modules: tuple[str, ...]
    """The names of the modules that own the group's parameters."""

    def modules_of(self, network: nn.Module) -> Iterator[nn.Module]:
        """The modules themselves, in a network (or a copy of it)."""
        return (network.get_submodule(name) for name in self.modules)

    def parameters_of(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """The names and parameters of the group, in a network."""
        for name in self.modules:
            for own, parameter in network.get_submodule(name).named_parameters(recurse=False):
                yield (f"{name}.{own}" if name else own), parameter


def layer_groups(network: nn.Module) -> list[LayerGroup]:
    """Divide a network's parameters into groups, from the input to the head; each parameter is in one.

    A network that has a method ``layer_groups`` (names of groups to prefixes of modules) decides for itself; timm's
    networks by their own matcher; of all others, each child is a group, and each child of a child called features,
    stages, layers or blocks.

    >>> from cnnlab.models import SimpleCNN
    >>> [group.name for group in layer_groups(SimpleCNN())]
    ['features.0', 'features.2', 'features.4', 'head']
    """
    if isinstance(network, TransferModel):
        head = LayerGroup("", tuple(_owning(network.head)))
        return [*_within("backbone", layer_groups(network.backbone)), *_within("head", [head])]
    if callable(own := getattr(network, "layer_groups", None)):
        return _owners(network, own().items())
    if hasattr(network, "group_matcher"):
        # Some of timm's matchers know no coarse groups.
        with contextlib.suppress(AssertionError):
            return _by_matcher(network)
    prefixes: list[str] = []
    for name, child in network.named_children():
        listed = name.rpartition("_")[2] in _LISTS and isinstance(child, (nn.Sequential, nn.ModuleList))
        prefixes += [f"{name}.{inner}" for inner, _ in child.named_children()] if listed else [name]
    return _owners(network, [(prefix, (prefix,)) for prefix in prefixes])


def _within(prefix: str, groups: list[LayerGroup]) -> list[LayerGroup]:
    def inside(name: str) -> str:
        return f"{prefix}.{name}" if name else prefix

    return [LayerGroup(inside(group.name), tuple(map(inside, group.modules))) for group in groups]


def _owners(network: nn.Module, prefixes: Iterable[tuple[str, tuple[str, ...]]]) -> list[LayerGroup]:
    """Groups of the modules below prefixes that own parameters; what is below none belongs to the first."""
    found: dict[str, list[str]] = {name: [] for name, _ in prefixes}
    for owner in _owning(network):
        homes = [name for name, below in prefixes if any(f"{owner}.".startswith(f"{prefix}.") for prefix in below)]
        found[homes[0] if homes else next(iter(found))].append(owner)
    return [LayerGroup(name, tuple(modules)) for name, modules in found.items() if modules]


def _owning(network: nn.Module) -> list[str]:
    """The names of the modules that own parameters."""
    return [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]


def _by_matcher(network: nn.Module) -> list[LayerGroup]:
    from timm.models import group_parameters

    # A classifier of timm's own shares a group with the last layers before it; here it is one of its own.
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    groups: list[LayerGroup] = []
    head: dict[str, None] = {}
    seen: set[str] = set()
    for names in group_parameters(network, network.group_matcher(coarse=True)).values():  # type: ignore[operator]
        # A module whose parameters the matcher divides (tokens of the network itself) belongs to the first group.
        owners = dict.fromkeys(owner for name in names if (owner := name.rpartition(".")[0]) not in seen)
        seen |= set(owners)
        mine = {name: None for name in owners if any(f"{name}.".startswith(f"{prefix}.") for prefix in heads)}
        head |= mine
        if rest := tuple(name for name in owners if name not in mine):
            groups.append(LayerGroup(_short(names[0]), rest))
    if head:
        groups.append(LayerGroup(heads[0], tuple(head)))
    return [group._replace(name=_told_apart(group, groups)) for group in groups]


def _told_apart(group: LayerGroup, groups: list[LayerGroup]) -> str:
    alike = [other for other in groups if other.name == group.name]
    return group.name if len(alike) == 1 else f"{group.name}#{alike.index(group)}"


def _short(name: str) -> str:
    """What a group is called by the name of its first parameter.

    >>> _short("blocks.1.0.bn1.weight"), _short("layer1.0.conv1.weight"), _short("cls_token")
    ('blocks.1', 'layer1', 'cls_token')
    """
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in _LISTS else 1])
