"""What a tensor's units see of the image, and what becomes of that when tensors meet.

Of each tensor it is known which of its dimensions run over the image's rows or columns (a dimension may be made of
several, as tokens are), and what its first unit sees. Branches, slices, windows and tokens need no cases of their own:
what is summed over rows or columns sees all that was summed.
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
    """0 for the image's rows, 1 for its columns, 2 for positions in no order (tokens), -1 for anything else."""
    size: int
    stride: int = 1
    """From one position to the next, in positions along the axis."""


Dimension = tuple[Factor, ...]
"""Of a tensor, from the outer factor to the inner."""


@dataclass(frozen=True)
class Seen:
    """What a tensor's units see."""

    dimensions: tuple[Dimension, ...]
    fields: tuple[Field, Field]
    """Along rows and columns, through windows: convolutions, poolings, patches."""
    everything: bool = False
    """Whether they see the whole image besides, through a mean over it, or by attention."""
    unknown: str | None = None
    """An operation on the way that is not understood; fields are meaningless then."""

    @classmethod
    def nothing_known(cls, operation: str, shape: tuple[int, ...]) -> Seen:
        """Of a tensor that such an operation has made."""
        return cls(tuple(map(plain, shape)), (NOWHERE, NOWHERE), unknown=operation)

    def moved(self, axis: int, field: Field) -> Seen:
        """The same with another field along an axis."""
        fields = (field, self.fields[1]) if axis == 0 else (self.fields[0], field)
        return replace(self, fields=fields)


NOWHERE = Field(math.inf, -math.inf, 0.0)
"""Of what has no place along an axis any more: with another field, that one."""


def size_of(dimension: Dimension) -> int:
    """How many positions a dimension has."""
    return math.prod(factor.size for factor in dimension)


def is_spatial(dimension: Dimension) -> bool:
    """Whether a dimension runs over the image."""
    return any(factor.axis >= 0 for factor in dimension)


def plain(size: int) -> Dimension:
    """A dimension that does not."""
    return (Factor(-1, size),)


def summed(seen: Seen, dimension: Dimension) -> Seen:
    """What sees all positions of a dimension at once."""
    for factor in dimension:
        if factor.axis < 0 or factor.size == 1:
            continue
        if factor.axis == 2:
            seen = replace(seen, everything=True, fields=(NOWHERE, NOWHERE))
            continue
        field = seen.fields[factor.axis]
        if _is_all_along_its_axis(seen, factor):
            seen = replace(seen.moved(factor.axis, NOWHERE), everything=True)
        else:
            further = (factor.size - 1) * factor.stride * field.jump
            seen = seen.moved(factor.axis, field._replace(high=field.high + further))
    return seen


def _is_all_along_its_axis(seen: Seen, factor: Factor) -> bool:
    """Whether nothing else runs along a factor's axis; what overlaps with it is another tensor's copy of it."""
    rest = [
        other
        for own in seen.dimensions
        for other in own
        if other.axis == factor.axis
        and (other.stride >= factor.stride * factor.size or other.stride * other.size <= factor.stride)
    ]
    return size_of(tuple(rest)) == 1


def _is_all_there_is(seen: Seen, dimension: Dimension) -> bool:
    return all(factor.axis == 2 or _is_all_along_its_axis(seen, factor) for factor in dimension if factor.axis >= 0)


def with_other_positions(seen: Seen, at: int, size: int) -> Seen:
    """The same with positions of a dimension added or taken away, where nobody knows which."""
    dimension = seen.dimensions[at]
    whole = plain(size)
    if size_of(dimension) == size:
        return seen
    if is_spatial(dimension):
        if _is_all_there_is(seen, dimension):
            whole = (Factor(2, size),)
        else:  # Neighbours that were put side by side: as if they were mixed already.
            seen = summed(seen, dimension)
    return replace(seen, dimensions=(*seen.dimensions[:at], whole, *seen.dimensions[at + 1 :]))


def broadcast(factors: Sequence[Seen], shape: tuple[int, ...]) -> Seen:
    """What is computed unit by unit: its dimensions are of those that fit the ones that run over the image."""
    found = []
    for place, size in enumerate(reversed(shape), start=1):
        fitting = [
            seen.dimensions[-place]
            for seen in factors
            if len(seen.dimensions) >= place and size_of(seen.dimensions[-place]) == size
        ]
        found.append(max(fitting, key=is_spatial, default=plain(size)))
    dimensions = tuple(reversed(found))
    # The grid is that of the factor whose positions the result has.
    first = max(factors, key=lambda seen: sum(is_spatial(own) and own in dimensions for own in seen.dimensions))
    return replace(together([first, *(seen for seen in factors if seen is not first)]), dimensions=dimensions)


def together(all_seen: Sequence[Seen]) -> Seen:
    """What is made of several sees, with the first one's dimensions."""
    merged = all_seen[0]
    for other in all_seen[1:]:
        fields = (merged.fields[0].together(other.fields[0]), merged.fields[1].together(other.fields[1]))
        merged = replace(merged, fields=fields, everything=merged.everything or other.everything)
    return merged


def in_steps_of_one(seen: Seen) -> Seen:
    """The same, where only every second row is left, with rows twice as far apart."""
    for axis in (0, 1):
        strides = [f.stride for own in seen.dimensions for f in own if f.axis == axis and f.size > 1]
        if strides and (least := min(strides)) > 1 and all(stride % least == 0 for stride in strides):
            field = seen.fields[axis]
            seen = replace(
                seen.moved(axis, field._replace(jump=field.jump * least)),
                dimensions=tuple(
                    tuple(f._replace(stride=f.stride // least) if f.axis == axis and f.size > 1 else f for f in own)
                    for own in seen.dimensions
                ),
            )
    return seen
