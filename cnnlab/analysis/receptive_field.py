"""Receptive fields of a list of layers along one axis, and of tensors; ``tracing`` finds those of any network.

Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", doi:10.23915/distill.00021.

A tensor's FieldState records which of its dimensions run over the image's rows or columns, and the field of its first
unit. One dimension may combine several axes, as with tokens. A sum over rows or columns has the field of all its terms,
so branches, slices, windows and tokens need no special cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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


class Factor(NamedTuple):
    """A part of a dimension."""

    axis: int
    """0 for the image's rows, 1 for its columns, 2 for positions without order (tokens), -1 for anything else."""
    size: int
    stride: int = 1
    """From one position to the next, in positions along the axis."""


Dimension = tuple[Factor, ...]
"""A tensor's dimension, from the outer factor to the inner."""


@dataclass(frozen=True)
class FieldState:
    """The receptive field of a tensor's units."""

    dimensions: tuple[Dimension, ...]
    fields: tuple[Field, Field]
    """Along rows and columns, through windows: convolutions, poolings, patches."""
    whole_image: bool = False
    """Whether the units also see the whole image, through a mean over it or through attention."""
    unknown: str | None = None
    """An operation on the path that has no rule; the fields are meaningless then."""

    @classmethod
    def unknown_after(cls, operation: str, shape: tuple[int, ...]) -> FieldState:
        """The state of a tensor after an operation without a rule."""
        return cls(tuple(map(non_spatial, shape)), (NO_FIELD, NO_FIELD), unknown=operation)

    def with_field(self, axis: int, field: Field) -> FieldState:
        """The same state with another field along an axis."""
        fields = (field, self.fields[1]) if axis == 0 else (self.fields[0], field)
        return replace(self, fields=fields)

    def with_dimension(self, index: int, dimension: Dimension) -> FieldState:
        """The same state with another dimension at an index, 0 or more."""
        return replace(self, dimensions=(*self.dimensions[:index], dimension, *self.dimensions[index + 1 :]))


NO_FIELD = Field(math.inf, -math.inf, 0.0)
"""The field of units without a position along an axis; merged with another field, it gives that one."""


def size_of(dimension: Dimension) -> int:
    """The number of positions in a dimension."""
    return math.prod(factor.size for factor in dimension)


def is_spatial(dimension: Dimension) -> bool:
    """Whether a dimension runs over the image."""
    return any(factor.axis >= 0 for factor in dimension)


def non_spatial(size: int) -> Dimension:
    """A dimension that does not run over the image."""
    return (Factor(-1, size),)


def reduce_dimension(state: FieldState, dimension: Dimension) -> FieldState:
    """The state of units that depend on all positions of a dimension at once."""
    for factor in dimension:
        if factor.axis < 0 or factor.size == 1:
            continue
        if factor.axis == 2:
            state = replace(state, whole_image=True, fields=(NO_FIELD, NO_FIELD))
            continue
        field = state.fields[factor.axis]
        if _spans_axis(state, factor):
            state = replace(state.with_field(factor.axis, NO_FIELD), whole_image=True)
        else:
            extent = (factor.size - 1) * factor.stride * field.jump
            state = state.with_field(factor.axis, field._replace(high=field.high + extent))
    return state


def _spans_axis(state: FieldState, factor: Factor) -> bool:
    """Whether a factor is the only one on its axis; an overlapping factor is another tensor's copy of it."""
    rest = [
        other
        for dimension in state.dimensions
        for other in dimension
        if other.axis == factor.axis
        and (other.stride >= factor.stride * factor.size or other.stride * other.size <= factor.stride)
    ]
    return size_of(tuple(rest)) == 1


def resize_dimension(state: FieldState, index: int, size: int) -> FieldState:
    """The state after an operation adds or removes positions of a dimension without recording which."""
    dimension = state.dimensions[index]
    resized = non_spatial(size)
    if size_of(dimension) == size:
        return state
    if is_spatial(dimension):
        if all(factor.axis == 2 or _spans_axis(state, factor) for factor in dimension if factor.axis >= 0):
            resized = (Factor(2, size),)
        else:  # Neighbors put side by side: treated as already mixed.
            state = reduce_dimension(state, dimension)
    return state.with_dimension(index, resized)


def broadcast(states: Sequence[FieldState], shape: tuple[int, ...]) -> FieldState:
    """The state of a pointwise result; for each dimension, a spatial one of matching size is preferred."""
    reversed_dimensions = []
    for place, size in enumerate(reversed(shape), start=1):
        matching = [
            state.dimensions[-place]
            for state in states
            if len(state.dimensions) >= place and size_of(state.dimensions[-place]) == size
        ]
        reversed_dimensions.append(max(matching, key=is_spatial, default=non_spatial(size)))
    dimensions = tuple(reversed(reversed_dimensions))
    # The grid is that of the input that has the positions of the result.
    first = max(states, key=lambda state: sum(is_spatial(own) and own in dimensions for own in state.dimensions))
    return replace(merge([first, *(state for state in states if state is not first)]), dimensions=dimensions)


def merge(states: Sequence[FieldState]) -> FieldState:
    """The state of a result that depends on several tensors; it has the first one's dimensions."""
    merged = states[0]
    for other in states[1:]:
        fields = (merged.fields[0].merge(other.fields[0]), merged.fields[1].merge(other.fields[1]))
        merged = replace(merged, fields=fields, whole_image=merged.whole_image or other.whole_image)
    return merged


def normalize_strides(state: FieldState) -> FieldState:
    """The same state with strides of 1: a stride of 2 along an axis becomes a jump twice as large."""
    for axis in (0, 1):
        strides = [f.stride for own in state.dimensions for f in own if f.axis == axis and f.size > 1]
        if strides and (least := min(strides)) > 1 and all(stride % least == 0 for stride in strides):
            field = state.fields[axis]
            state = replace(
                state.with_field(axis, field._replace(jump=field.jump * least)),
                dimensions=tuple(
                    tuple(f._replace(stride=f.stride // least) if f.axis == axis and f.size > 1 else f for f in own)
                    for own in state.dimensions
                ),
            )
    return state
