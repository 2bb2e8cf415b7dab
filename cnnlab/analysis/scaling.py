"""Compound scaling: EfficientNet-B0 made larger in depth, width and resolution at once (Tan and Le 2019)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.skeleton import made_on_meta
from cnnlab.errors import InputError

DEPTH, WIDTH, RESOLUTION = 1.2, 1.1, 1.15
"""What each is multiplied by when phi grows by one (equation 3 with the constants of section 3.3)."""


class Coefficients(NamedTuple):
    """How much larger than B0."""

    depth: float
    """Blocks of each stage, times this, rounded up."""
    width: float
    """Channels, times this, rounded to a multiple of 8."""
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
"""B0 to B7 as they were published (efficientnet_builder.py of github.com/tensorflow/tpu), which is not what the formula
gives."""

_STAGES = ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320))
"""B0's blocks and channels (table 1)."""


def compound(phi: float) -> Coefficients:
    """The formula: depth 1.2^phi, width 1.1^phi, resolution 224 x 1.15^phi.

    Depth x width^2 x resolution^2, which the cost grows with, is then close to 2^phi.

    >>> compound(1)
    Coefficients(depth=1.2, width=1.1, resolution=258)
    """
    if phi < 0:
        raise InputError(f"phi is {phi}, expected 0 or more")
    return Coefficients(DEPTH**phi, WIDTH**phi, round(224 * RESOLUTION**phi))


def relative_cost(coefficients: Coefficients) -> float:
    """Depth x width^2 x resolution^2, B0's being 1."""
    return coefficients.depth * coefficients.width**2 * (coefficients.resolution / 224) ** 2


def stages(coefficients: Coefficients) -> list[tuple[int, int]]:
    """Blocks and channels of the seven stages.

    >>> stages(RELEASED[1])[:3]
    [(2, 16), (3, 24), (3, 40)]
    """
    return [
        (math.ceil(blocks * coefficients.depth), _rounded(channels * coefficients.width))
        for blocks, channels in _STAGES
    ]


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, but not below 90 % of it."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Scaled(NamedTuple):
    """One of the family."""

    name: str
    formula: Coefficients
    released: Coefficients
    parameters: int
    multiply_adds: int
    relative: float
    """Multiply-adds, B0's being 1."""
    expected: float
    """2^phi."""


def family() -> list[Scaled]:
    """B0 to B7: what the formula says, what was released, and what timm's networks cost."""
    import timm

    found: list[Scaled] = []
    for number, released in RELEASED.items():
        network = made_on_meta(functools.partial(timm.create_model, f"tf_efficientnet_b{number}"))
        cost = network_cost(network, (3, released.resolution, released.resolution))
        first = found[0].multiply_adds if found else cost.multiply_adds
        found.append(
            Scaled(
                f"B{number}",
                compound(number),
                released,
                cost.parameters,
                cost.multiply_adds,
                cost.multiply_adds / first,
                2.0**number,
            )
        )
    return found
