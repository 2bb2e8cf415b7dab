"""Compound scaling: EfficientNet-B0 enlarged in depth, width and resolution together (Tan and Le 2019)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.meta import build_on_meta
from cnnlab.errors import InputError

DEPTH, WIDTH, RESOLUTION = 1.2, 1.1, 1.15
"""The factor of each when phi grows by one (equation 3 with the constants of section 3.3)."""


class Coefficients(NamedTuple):
    """A network's size relative to B0."""

    depth: float
    """Factor for the blocks of each stage, rounded up."""
    width: float
    """Factor for the channels, rounded to a multiple of 8."""
    resolution: int
    """Height and width of the images."""


RELEASED = {
    0: Coefficients(1.0, 1.0, 224),
    1: Coefficients(1.1, 1.0, 240),
    2: Coefficients(1.2, 1.1, 260),
    3: Coefficients(1.4, 1.2, 300),
    4: Coefficients(1.8, 1.4, 380),
    5: Coefficients(2.2, 1.6, 456),
    6: Coefficients(2.6, 1.8, 528),
    7: Coefficients(3.1, 2.0, 600),
}
"""B0 to B7 as released (efficientnet_builder.py of github.com/tensorflow/tpu); they differ from the formula."""


def compound_scaling(phi: float) -> Coefficients:
    """The paper's formula: depth 1.2^phi, width 1.1^phi, resolution 224 x 1.15^phi.

    The cost grows with depth x width^2 x resolution^2, which is then close to 2^phi.

    >>> compound_scaling(1)
    Coefficients(depth=1.2, width=1.1, resolution=258)
    """
    if phi < 0:
        raise InputError(f"phi is {phi}, expected 0 or more")
    return Coefficients(DEPTH**phi, WIDTH**phi, round(224 * RESOLUTION**phi))


class ScaledNetwork(NamedTuple):
    """One of EfficientNet-B0 to B7."""

    name: str
    formula: Coefficients
    released: Coefficients
    parameters: int
    multiply_adds: int
    relative: float
    """Multiply-adds relative to B0."""
    expected: float
    """Multiply-adds relative to B0 by the formula: 2^phi."""


def efficientnet_family() -> list[ScaledNetwork]:
    """B0 to B7: the formula's coefficients, the released ones, and the cost of timm's networks."""
    import timm

    networks: list[ScaledNetwork] = []
    for number, released in RELEASED.items():
        network = build_on_meta(functools.partial(timm.create_model, f"tf_efficientnet_b{number}"))
        cost = network_cost(network, (3, released.resolution, released.resolution))
        first = networks[0].multiply_adds if networks else cost.multiply_adds
        networks.append(
            ScaledNetwork(
                f"B{number}",
                compound_scaling(number),
                released,
                cost.parameters,
                cost.multiply_adds,
                cost.multiply_adds / first,
                2.0**number,
            )
        )
    return networks
