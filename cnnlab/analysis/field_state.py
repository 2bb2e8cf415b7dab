"""The receptive field of a tensor's units, and how it changes when tensors are reduced or combined.

Each tensor records which of its dimensions run over the image's rows or columns, and the field of its first unit. One
dimension may combine several axes, as with tokens. A sum over rows or columns has the field of all its terms, so
branches, slices, windows and tokens need no special cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cnnlab.analysis.receptive_field import Field


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
