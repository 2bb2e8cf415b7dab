"""The parameters of a network's backbone, under names that do not depend on the head or decoder."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_KNOWN = ("backbone.", "encoder.", "network.encoder.model.")
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
    return next((prefix for prefix in _KNOWN if any(name.startswith(prefix) for name in names)), "")
