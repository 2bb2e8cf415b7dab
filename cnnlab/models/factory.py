"""Networks by name: cnnlab's own, timm's, torchvision's, and the user's by import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cnnlab.errors import InputError, nearest
from cnnlab.imports import by_path
from cnnlab.models.simple_cnn import SimpleCNN

NETWORKS: dict[str, Callable[..., nn.Module]] = {"simple_cnn": SimpleCNN}
"""cnnlab's own, each called with num_classes, channels and further keyword arguments."""


def create_network(
    name: str, num_classes: int, channels: int, dropout: float | None = None, **kwargs: Any
) -> nn.Module:
    """Make a network with random weights that returns logits (B, num_classes).

    Args:
        name: A name in NETWORKS; else a timm model; else a torchvision model; else the import path of a callable of
            the user's (``package.module.Class``) that takes num_classes and channels. ``timm/`` or ``torchvision/``
            before the name says whose it is.
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0..1; the network's own if None.
        **kwargs: Handed to the network.

    Raises:
        InputError: If there is no such network, or if it does not take these arguments.
    """
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}, expected 0 up to (not including) 1")
        kwargs["dropout"] = dropout
    make = _find(name)
    try:
        return make(num_classes=num_classes, channels=channels, **kwargs)
    except TypeError as error:
        raise InputError(f"network {name!r} does not take these arguments: {error}") from error


def _find(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    # These two take a second each to import: not before a name asks for them.
    import timm
    import torchvision

    origin, _, bare = name.rpartition("/")
    if origin in ("", "timm") and timm.is_model(bare):
        return lambda num_classes, channels, **kwargs: _timm(bare, num_classes, channels, **kwargs)
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if origin in ("", "torchvision") and bare in classifiers:
        return lambda num_classes, channels, **kwargs: _torchvision(bare, num_classes, channels, **kwargs)
    if not origin and "." in name:
        make: Callable[..., nn.Module] = by_path(name)
        return make
    raise InputError(
        f"there is no network {name!r}: {nearest(bare, [*NETWORKS, *timm.list_models(), *classifiers])} "
        "(or give the import path of your own, package.module.Class)"
    )


def _timm(name: str, num_classes: int, channels: int, dropout: float | None = None, **kwargs: Any) -> nn.Module:
    import timm

    if dropout is not None:
        kwargs["drop_rate"] = dropout
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **kwargs)


def _torchvision(name: str, num_classes: int, channels: int, **kwargs: Any) -> nn.Module:
    import torchvision

    if channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, not {channels}: timm's networks take any number"
        )
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
    return network
