"""Normalization layers compared: the axes of their statistics, and whether an image's result depends on its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cnnlab.errors import InputError


class Normalization(NamedTuple):
    """A kind of normalization, for features (N, C, H, W)."""

    name: str
    axes: str
    """The axes that mean and variance are taken over."""
    statistics: int
    """The number of means."""
    parameters: int
    depends_on_batch: bool
    """Whether the other images of a batch change an image's result in training; measured."""
    same_in_evaluation: bool
    """Whether the results in evaluation and in training are equal; measured."""


def normalizations(shape: tuple[int, int, int, int] = (8, 32, 14, 14), groups: int = 8) -> list[Normalization]:
    """Compare the normalization layers (Wu and He 2018, fig. 2).

    Args:
        shape: The features' shape: images, channels, height, width.
        groups: Groups of the group norm.

    Raises:
        InputError: If there are fewer than two images, or the groups do not divide the channels.

    >>> [kind.name for kind in normalizations() if kind.depends_on_batch]
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
    other_batch = torch.cat([features[:1], 3 * torch.randn((images - 1, *shape[1:]), generator=generator)])
    rows = []
    for name, axes, statistics, build in kinds:
        layer = build().train()
        with torch.no_grad():
            result, in_other_batch = layer(features)[0], layer(other_batch)[0]
            evaluated = layer.eval()(features)[0]
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        depends = not torch.allclose(result, in_other_batch, atol=1e-5)
        same = torch.allclose(result, evaluated, atol=1e-5)
        rows.append(Normalization(name, axes, statistics, parameters, depends, same))
    return rows
