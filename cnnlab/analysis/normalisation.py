"""Normalisation layers side by side: over what each takes its mean, and whether an image's result depends on others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cnnlab.errors import InputError


class Normalisation(NamedTuple):
    """A kind of normalisation, for features (N, C, H, W)."""

    name: str
    axes: str
    """What mean and variance are taken over."""
    statistics: int
    """How many means that makes."""
    parameters: int
    depends_on_batch: bool
    """Whether an image's result changes with the other images of its batch, in training; measured."""
    same_in_evaluation: bool
    """Whether evaluation computes what training does; measured."""


def normalisations(shape: tuple[int, int, int, int] = (8, 32, 14, 14), groups: int = 8) -> list[Normalisation]:
    """Compare the normalisation layers (Wu and He 2018, fig. 2).

    Args:
        shape: The features': images, channels, height, width.
        groups: Of group norm.

    Raises:
        InputError: If there is one image only, which nothing could depend on, or if the groups do not divide the
            channels.

    >>> [kind.name for kind in normalisations() if kind.depends_on_batch]
    ['batch']
    """
    from timm.layers import LayerNorm2d

    images, channels, height, width = shape
    if images < 2:
        raise InputError(f"shape is {shape}, expected two images or more")
    if groups < 1 or channels % groups:
        raise InputError(f"groups is {groups}, expected a divisor of {channels} channels")
    kinds: list[tuple[str, str, int, Callable[[], nn.Module]]] = [
        ("batch", "N, H, W", channels, lambda: nn.BatchNorm2d(channels)),
        ("layer", "C, H, W", images, lambda: nn.GroupNorm(1, channels)),
        ("layer, of each position", "C", images * height * width, lambda: LayerNorm2d(channels)),
        ("instance", "H, W", images * channels, lambda: nn.InstanceNorm2d(channels, affine=True)),
        ("group", "C / groups, H, W", images * groups, lambda: nn.GroupNorm(groups, channels)),
    ]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator)
    others = torch.cat([features[:1], 3 * torch.randn((images - 1, *shape[1:]), generator=generator)])
    found = []
    for name, axes, statistics, make in kinds:
        layer = make().train()
        with torch.no_grad():
            alone, among = layer(features)[0], layer(others)[0]
            later = layer.eval()(features)[0]
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        depends = not torch.allclose(alone, among, atol=1e-5)
        found.append(
            Normalisation(name, axes, statistics, parameters, depends, torch.allclose(alone, later, atol=1e-5))
        )
    return found
