"""What a unit of a network sees of the image: of a list of layers, and of any network by following its operations.

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
    """What the first unit of a feature map sees along one axis, in pixels of the image; pixel 0 is the first."""

    low: float
    """The first pixel; below 0 in the padding."""
    high: float
    """The last one."""
    jump: float
    """How many pixels lie between one unit and the next: the product of the strides."""

    @property
    def size(self) -> float:
        """How many pixels."""
        return self.high - self.low + 1

    @property
    def start(self) -> float:
        """Where the centre is."""
        return (self.low + self.high) / 2

    def after(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Field:
        """The field of a window's result.

        >>> PIXEL.after(kernel=7, stride=2, padding=3)
        Field(low=-3.0, high=3.0, jump=2.0)
        """
        return self._over(-padding, dilation * (kernel - 1), self.jump * stride)

    def after_transposed(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Field:
        """The field of a transposed convolution's result: of the units that see most."""
        # Of the taps that an output meets, every so-manyth has an input under it.
        step = stride // math.gcd(stride, dilation)
        span = dilation * ((kernel - 1) // step * step) // stride
        first = -(-(padding - dilation * (kernel - 1)) // stride)
        return self._over(first, span, self.jump / stride)

    def _over(self, first: int, span: int, jump: float) -> Field:
        """The field of what is made of units from this one on to so many behind it."""
        return Field(self.low + first * self.jump, self.high + (first + span) * self.jump, jump)

    def together(self, other: Field) -> Field:
        """The field of what is made of both, on the grid of this one: the largest path counts."""
        return Field(min(self.low, other.low), max(self.high, other.high), self.jump or other.jump)


PIXEL = Field(0.0, 0.0, 1.0)
"""A pixel sees itself."""


def receptive_field(layers: Iterable[Layer]) -> list[Field]:
    """What the units of each layer see, along one axis.

    Args:
        layers: From the image on.

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
