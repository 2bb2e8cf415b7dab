"""Receptive fields along one axis, and those of a list of layers; ``tracing`` finds those of any network.

Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", doi:10.23915/distill.00021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from cnnlab.errors import InputError


class Layer(NamedTuple):
    """A convolution or a pooling, along one axis."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


class Field(NamedTuple):
    """The receptive field of a feature map's first unit along one axis, in pixels of the image, counted from 0."""

    low: float
    """The first pixel; negative inside the padding."""
    high: float
    """The last pixel."""
    jump: float
    """The distance from one unit's field to the next in pixels: the product of the strides."""

    @property
    def size(self) -> float:
        """The number of pixels."""
        return self.high - self.low + 1

    @property
    def center(self) -> float:
        """The pixel at the center."""
        return (self.low + self.high) / 2

    def after(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Field:
        """The field after a convolution or pooling.

        >>> PIXEL.after(kernel=7, stride=2, padding=3)
        Field(low=-3.0, high=3.0, jump=2.0)
        """
        return self._cover(-padding, dilation * (kernel - 1), self.jump * stride)

    def after_transposed(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Field:
        """The field after a transposed convolution, for the units whose field is largest."""
        # Only every step-th tap of an output position has an input.
        step = stride // math.gcd(stride, dilation)
        span = dilation * ((kernel - 1) // step * step) // stride
        first = -(-(padding - dilation * (kernel - 1)) // stride)
        return self._cover(first, span, self.jump / stride)

    def _cover(self, first: int, span: int, jump: float) -> Field:
        """The field of a result of ``span + 1`` neighboring units, the first of which is at offset ``first``."""
        return Field(self.low + first * self.jump, self.high + (first + span) * self.jump, jump)

    def merge(self, other: Field) -> Field:
        """The smallest field that covers both, on this one's grid; so the largest path decides."""
        return Field(min(self.low, other.low), max(self.high, other.high), self.jump or other.jump)


PIXEL = Field(0.0, 0.0, 1.0)
"""The field of a pixel: the pixel itself."""


def receptive_field(layers: Iterable[Layer]) -> list[Field]:
    """The receptive field of each layer's units along one axis.

    Args:
        layers: The layers, from the image on.

    Raises:
        InputError: If a kernel, stride or dilation is below 1, or a padding below 0.

    >>> vgg16 = [Layer(3, padding=1), Layer(3, padding=1), Layer(2, stride=2)]
    >>> [(field.size, field.jump) for field in receptive_field(vgg16)]
    [(3.0, 1.0), (5.0, 1.0), (6.0, 2.0)]
    """
    fields: list[Field] = []
    field = PIXEL
    for number, layer in enumerate(layers):
        if min(layer.kernel, layer.stride, layer.dilation) < 1 or layer.padding < 0:
            raise InputError(f"layer {number} is {layer}: expected 1 or more, and 0 or more for the padding")
        field = field.after(*layer)
        fields.append(field)
    return fields
