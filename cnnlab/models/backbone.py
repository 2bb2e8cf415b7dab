"""Which of a network's parameters are its backbone, under the same names whatever head or decoder stands on it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_KNOWN = ("backbone.", "encoder.", "network.encoder.model.")
"""Where cnnlab's own networks have their backbone; of others the whole network is one."""


def backbone_prefix(network: nn.Module) -> str:
    """What the names of a network's backbone begin with: its attribute ``backbone_prefix``, or the usual places.

    >>> from cnnlab.models import SimpleCNN, UNet
    >>> backbone_prefix(UNet(2, base=4)), backbone_prefix(SimpleCNN())
    ('encoder.', '')
    """
    own = getattr(network, "backbone_prefix", None)
    return str(own) if isinstance(own, str) else _prefix_among(network.state_dict())


def backbone_names(names: Iterable[str], of: nn.Module | str | None) -> dict[str, str]:
    """The backbone's tensors among those of a network: their names in the whole, by their names in the backbone.

    timm calls the same layer "stages.0" in a classifier and "stages_0" in an encoder, so both are "stages_0" here.

    Args:
        names: All names in the network's state dict.
        of: The network, or its backbone's prefix, as a checkpoint says it; found by the names if None.

    >>> backbone_names(["encoder.stem.0.weight", "head.weight"], "encoder.")
    {'stem_0_weight': 'encoder.stem.0.weight'}
    """
    names = list(names)
    prefix = backbone_prefix(of) if isinstance(of, nn.Module) else _prefix_among(names) if of is None else of
    return {name.removeprefix(prefix).replace(".", "_"): name for name in names if name.startswith(prefix)}


def _prefix_among(names: Iterable[str]) -> str:
    names = list(names)
    return next((prefix for prefix in _KNOWN if any(name.startswith(prefix) for name in names)), "")
