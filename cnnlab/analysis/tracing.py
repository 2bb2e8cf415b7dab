"""The receptive field of every tensor that a network makes, by following its operations as they are called.

Of each tensor it is known which of its dimensions run over the image's rows or columns (a dimension may be made of
several, as tokens are), and what its first unit sees. Branches, slices, windows and tokens need no cases of their own:
what is summed over rows or columns sees all that was summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from cnnlab.analysis.receptive_field import PIXEL, Field

aten = torch.ops.aten


class _Factor(NamedTuple):
    """A part of a dimension."""

    axis: int
    """0 for the image's rows, 1 for its columns, 2 for positions in no order (tokens), -1 for anything else."""
    size: int
    stride: int = 1
    """From one position to the next, in positions along the axis."""


_Dimension = tuple[_Factor, ...]


@dataclass(frozen=True)
class Seen:
    """What a tensor's units see."""

    dimensions: tuple[_Dimension, ...]
    fields: tuple[Field, Field]
    """Along rows and columns, through windows: convolutions, poolings, patches."""
    everything: bool = False
    """Whether they see the whole image besides, through a mean over it, or by attention."""
    unknown: str | None = None
    """An operation on the way that is not understood; fields are meaningless then."""

    @classmethod
    def nothing_known(cls, operation: str, shape: tuple[int, ...]) -> Seen:
        """Of a tensor that such an operation has made."""
        return cls(tuple(map(_plain, shape)), (_NOWHERE, _NOWHERE), unknown=operation)

    def moved(self, axis: int, field: Field) -> Seen:
        """The same with another field along an axis."""
        fields = (field, self.fields[1]) if axis == 0 else (self.fields[0], field)
        return replace(self, fields=fields)


_NOWHERE = Field(math.inf, -math.inf, 0.0)
"""Of what has no place along an axis any more: with another field, that one."""


class FieldTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, follows what the tensors made of images see.

    Run the network without gradients: views lose their history with them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: Any = WeakTensorKeyDictionary()

    def begin(self, images: Tensor) -> None:
        """Take these for the image's pixels (B, C, H, W)."""
        batch, channels, height, width = images.shape
        dimensions = ((_Factor(-1, batch),), (_Factor(-1, channels),), (_Factor(0, height),), (_Factor(1, width),))
        self._seen[images] = Seen(dimensions, (PIXEL, PIXEL))

    def of(self, tensor: Tensor) -> Seen | None:
        """What a tensor's units see; None if it is not made of images."""
        found: Seen | None = self._seen.get(tensor)
        return found

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do it, and note what its results see."""
        before = [seen for tensor in _tensors((args, kwargs)) if (seen := self.of(tensor))]
        factors = [self.of(argument) if isinstance(argument, Tensor) else None for argument in args[:3]]
        result = operation(*args, **(kwargs or {}))
        self._note_writes(operation, args, before)
        if before and operation.overloadpacket not in _OF_SHAPES_ONLY:
            for tensor in _tensors(result):
                call = _Call(args, kwargs or {}, tuple(tensor.shape), factors)
                self._seen[tensor] = _after(operation, call, before)
        return result

    def _note_writes(self, operation: Any, args: tuple[Any, ...], before: Sequence[Seen]) -> None:
        """A write into a part of a tensor: the whole sees no less than what is written."""
        written = args[0] if args and isinstance(args[0], Tensor) and operation._schema.is_mutable else None
        whole = None if written is None else written._base
        if whole is None or not before:
            return
        known = self.of(whole)
        self._seen[whole] = (
            Seen.nothing_known(f"{operation} into a part", tuple(whole.shape))
            if known is None or any(seen.unknown for seen in [known, *before])
            else replace(_together([known, *before]), dimensions=known.dimensions)
        )


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _after(operation: Any, call: _Call, before: Sequence[Seen]) -> Seen:
    """What a result sees, made of tensors that see this."""
    unknown = next((seen.unknown for seen in before if seen.unknown), None)
    rule = _RULES.get(operation.overloadpacket)
    if unknown is None and rule is not None:
        # The first has the dimensions that are changed; of the others counts what they see.
        first = call.factors[0] or before[0]
        after = rule(_together([first, *(seen for seen in before if seen is not first)]), call)
    elif unknown is None and _is_unit_by_unit(operation):
        after = _broadcast(before, call.shape)
    else:
        return Seen.nothing_known(unknown or str(operation), call.shape)
    if after.unknown or [_size(own) for own in after.dimensions] != list(call.shape):
        return Seen.nothing_known(after.unknown or str(operation), call.shape)
    return _in_steps_of_one(after)


def _is_unit_by_unit(operation: Any) -> bool:
    return torch.Tag.pointwise in operation.tags or operation.overloadpacket in _UNIT_BY_UNIT


def _broadcast(factors: Sequence[Seen], shape: tuple[int, ...]) -> Seen:
    """What is computed unit by unit: its dimensions are of those that fit the ones that run over the image."""
    found = []
    for place, size in enumerate(reversed(shape), start=1):
        fitting = [
            seen.dimensions[-place]
            for seen in factors
            if len(seen.dimensions) >= place and _size(seen.dimensions[-place]) == size
        ]
        found.append(max(fitting, key=_is_spatial, default=_plain(size)))
    dimensions = tuple(reversed(found))
    together = _together(factors)
    for axis in (0, 1):
        # The grid is that of the factor whose positions the result has.
        own = {factor for dimension in dimensions for factor in dimension if factor.axis == axis and factor.size > 1}
        for seen in factors:
            if own <= {factor for dimension in seen.dimensions for factor in dimension} and seen.fields[axis].jump:
                together = together.moved(axis, together.fields[axis]._replace(jump=seen.fields[axis].jump))
                break
    return replace(together, dimensions=dimensions)


def _together(all_seen: Sequence[Seen]) -> Seen:
    merged = all_seen[0]
    for other in all_seen[1:]:
        fields = (merged.fields[0].together(other.fields[0]), merged.fields[1].together(other.fields[1]))
        merged = replace(merged, fields=fields, everything=merged.everything or other.everything)
    return merged


def _in_steps_of_one(seen: Seen) -> Seen:
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


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    """The result's."""
    factors: list[Seen | None]
    """What the first three arguments see, where they are tensors."""

    def get(self, place: int, name: str, otherwise: Any = None) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)


def _size(dimension: _Dimension) -> int:
    return math.prod(factor.size for factor in dimension)


def _is_spatial(dimension: _Dimension) -> bool:
    return any(factor.axis >= 0 for factor in dimension)


def _plain(size: int) -> _Dimension:
    return (_Factor(-1, size),)


def _summed(seen: Seen, dimension: _Dimension) -> Seen:
    """What sees all positions of a dimension at once."""
    for factor in dimension:
        if factor.axis < 0 or factor.size == 1:
            continue
        if factor.axis == 2:
            seen = replace(seen, everything=True, fields=(_NOWHERE, _NOWHERE))
            continue
        field = seen.fields[factor.axis]
        # What else runs along this axis says whether it was all of it; what overlaps is another tensor's copy of it.
        rest = [
            other
            for own in seen.dimensions
            for other in own
            if other.axis == factor.axis
            and (other.stride >= factor.stride * factor.size or other.stride * other.size <= factor.stride)
        ]
        if _size(tuple(rest)) == 1:
            seen = replace(seen.moved(factor.axis, _NOWHERE), everything=True)
        else:
            further = (factor.size - 1) * factor.stride * field.jump
            seen = seen.moved(factor.axis, field._replace(high=field.high + further))
    return seen


def _window(step: Callable[[Field, int], Field]) -> Callable[[Seen, _Call, int], Seen]:
    """A rule for the dimensions that a window runs over: the last so many."""

    def rule(seen: Seen, call: _Call, axes: int) -> Seen:
        dimensions = list(seen.dimensions)
        for place in range(axes):
            at = len(dimensions) - axes + place
            spatial = [factor for factor in dimensions[at] if factor.axis >= 0]
            size = call.shape[len(call.shape) - axes + place]
            if len(spatial) > 1 or any(factor.axis == 2 for factor in spatial):
                # Tokens in a row, whose neighbours may be anywhere.
                seen = replace(seen, everything=True)
                dimensions[at] = (_Factor(2, size),)
                continue
            if spatial:
                (factor,) = spatial
                field = seen.fields[factor.axis]
                moved = step(field._replace(jump=field.jump * factor.stride), place)
                seen = seen.moved(factor.axis, moved)
                dimensions[at] = (_Factor(factor.axis, size),)
                continue
            dimensions[at] = _plain(size)
        return replace(seen, dimensions=tuple(dimensions))

    return rule


def _pair(value: Any, place: int) -> int:
    if isinstance(value, int):
        return value
    return int(value[place if len(value) > 1 else 0])


def _convolution(seen: Seen, call: _Call) -> Seen:
    weight = call.args[1]
    axes = weight.ndim - 2
    stride, padding, dilation, transposed = call.args[3:7]
    seen = _summed(seen, seen.dimensions[1])
    seen = replace(seen, dimensions=(seen.dimensions[0], _plain(call.shape[1]), *seen.dimensions[2:]))

    def step(field: Field, place: int) -> Field:
        after = field.after_transposed if transposed else field.after
        kernel = weight.shape[2 + place]
        return after(kernel, _pair(stride, place), _pair(padding, place), _pair(dilation, place))

    return _window(step)(seen, call, axes)


def _pool(seen: Seen, call: _Call) -> Seen:
    kernel = call.args[1]
    stride = call.get(2, "stride") or kernel
    padding = call.get(3, "padding", 0)
    # Average pooling has no dilation; its fifth argument is another.
    dilation = call.get(4, "dilation", 1)
    spread = dilation if not isinstance(dilation, bool) else 1

    def step(field: Field, place: int) -> Field:
        return field.after(_pair(kernel, place), _pair(stride, place), _pair(padding, place), _pair(spread, place))

    return _window(step)(seen, call, 2)


def _adaptive(seen: Seen, call: _Call) -> Seen:
    sizes = [_size(own) for own in seen.dimensions[-2:]]
    whole = [own for own, size in zip(seen.dimensions[-2:], call.shape[-2:], strict=True) if size == 1]
    for own in whole:
        seen = _summed(seen, own)

    def step(field: Field, place: int) -> Field:
        size, wanted = sizes[place], call.shape[len(call.shape) - 2 + place]
        if wanted == 1:
            return field
        # Windows begin and end at rounded places: the largest counts.
        kernel = max(-(-(unit + 1) * size // wanted) - unit * size // wanted for unit in range(wanted))
        return field.after(kernel)._replace(jump=field.jump * size / wanted)

    return _window(step)(seen, call, 2)


def _resized(neighbours: int) -> Callable[[Seen, _Call], Seen]:
    """A rule for interpolation between so many positions along each axis."""

    def rule(seen: Seen, call: _Call) -> Seen:
        sizes = [_size(own) for own in seen.dimensions[-2:]]

        def step(field: Field, place: int) -> Field:
            scale = sizes[place] / call.shape[len(call.shape) - 2 + place]
            if scale == 1:
                return field
            return field.after(neighbours, padding=(neighbours - 1) // 2)._replace(jump=field.jump * scale)

        return _window(step)(seen, call, 2)

    return rule


def _reduced(place: int) -> Callable[[Seen, _Call], Seen]:
    """A rule for sums over dimensions, which stand at a place among the arguments."""

    def rule(seen: Seen, call: _Call) -> Seen:
        count = len(seen.dimensions)
        asked = call.get(place, "dim")
        asked = [asked] if isinstance(asked, int) else asked
        places = {at % count for at in asked} if asked else set(range(count))
        for at in places:
            seen = _summed(seen, seen.dimensions[at])
        kept = len(call.shape) == count
        return replace(
            seen,
            dimensions=tuple(
                _plain(1) if at in places else own for at, own in enumerate(seen.dimensions) if kept or at not in places
            ),
        )

    return rule


def _product(place: int) -> Callable[[Seen, _Call], Seen]:
    """A rule for matrix products: the last dimension of one factor and the last but one of the other are summed over.

    The factors stand at this place among the arguments, and at the next.
    """

    def rule(seen: Seen, call: _Call) -> Seen:
        left, right = call.factors[place : place + 2]
        rows, columns = _plain(call.shape[-2]), _plain(call.shape[-1])
        made_of = [] if place == 0 or call.factors[0] is None else [call.factors[0]]
        if left is not None:
            rows = left.dimensions[-2]
            made_of.append(_summed(left, left.dimensions[-1]))
        if right is not None:
            columns = right.dimensions[-1]
            made_of.append(_summed(right, right.dimensions[-2]))
        leading = (left or right or seen).dimensions[:-2]
        return replace(_together(made_of), dimensions=(*leading, rows, columns))

    return rule


def _normalised(seen: Seen, call: _Call) -> Seen:
    for own in seen.dimensions[len(seen.dimensions) - len(call.args[1]) :]:
        seen = _summed(seen, own)
    return seen if len(call.shape) == len(seen.dimensions) else replace(seen, unknown="layer norm's statistics")


def _softmax(seen: Seen, call: _Call) -> Seen:
    return _summed(seen, seen.dimensions[call.args[1]])


def _regrouped(seen: Seen, call: _Call) -> Seen:
    """A view: the same positions in other dimensions."""
    left = [factor for own in seen.dimensions for factor in own if factor.size != 1]
    found: list[_Dimension] = []
    for size in call.shape:
        own: list[_Factor] = []
        missing = size
        while missing > 1 and left:
            factor = left.pop(0)
            if factor.size > missing:
                inner, across = divmod(factor.size, missing)
                if across:
                    return replace(seen, unknown=seen.unknown or "a view across dimensions")
                left.insert(0, _Factor(factor.axis, inner, factor.stride))
                factor = _Factor(factor.axis, missing, factor.stride * inner)
            if missing % factor.size:
                return replace(seen, unknown=seen.unknown or "a view across dimensions")
            own.append(factor)
            missing //= factor.size
        found.append(_joined(own) or _plain(1))
    return replace(seen, dimensions=tuple(found))


def _joined(factors: Sequence[_Factor]) -> _Dimension:
    """Neighbours that are one run along their axis, as one."""
    joined: list[_Factor] = []
    for factor in factors:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.axis == factor.axis
            and (factor.axis < 0 or last.stride == factor.size * factor.stride)
        ):
            joined[-1] = _Factor(factor.axis, last.size * factor.size, factor.stride)
        else:
            joined.append(factor)
    return tuple(joined)


def _permuted(seen: Seen, call: _Call) -> Seen:
    return replace(seen, dimensions=tuple(seen.dimensions[at] for at in call.args[1]))


def _transposed(seen: Seen, call: _Call) -> Seen:
    dimensions = list(seen.dimensions)
    one, other = call.args[1:3] if len(call.args) > 2 else (0, -1)
    dimensions[one], dimensions[other] = dimensions[other], dimensions[one]
    return replace(seen, dimensions=tuple(dimensions))


def _sliced(seen: Seen, call: _Call) -> Seen:
    at, begin, step = call.get(1, "dim", 0), call.get(2, "start") or 0, call.get(4, "step", 1)
    size = call.shape[at]
    dimensions = list(seen.dimensions)
    before = _size(dimensions[at])
    if before == size:
        return seen
    if len(dimensions[at]) == 1 and (factor := dimensions[at][0]).axis in (0, 1):
        begin = begin + before if begin < 0 else begin
        field = seen.fields[factor.axis]
        shift = begin * factor.stride * field.jump
        seen = seen.moved(factor.axis, Field(field.low + shift, field.high + shift, field.jump * step))
        dimensions[at] = (_Factor(factor.axis, size, factor.stride),)
    else:
        dimensions[at] = _anywhere(dimensions[at], size)
    return replace(seen, dimensions=tuple(dimensions))


def _anywhere(dimension: _Dimension, size: int) -> _Dimension:
    """What a dimension is with other positions added or taken away."""
    return (_Factor(2, size),) if _is_spatial(dimension) else _plain(size)


def _padded(seen: Seen, call: _Call) -> Seen:
    dimensions = list(seen.dimensions)
    around = call.args[1]
    for number in range(len(around) // 2):
        at = len(dimensions) - 1 - number
        size = call.shape[at]
        if len(dimensions[at]) == 1 and (factor := dimensions[at][0]).axis in (0, 1):
            field = seen.fields[factor.axis]
            shift = around[2 * number] * factor.stride * field.jump
            seen = seen.moved(factor.axis, Field(field.low - shift, field.high - shift, field.jump))
            dimensions[at] = (_Factor(factor.axis, size, factor.stride),)
        elif size != _size(dimensions[at]):
            dimensions[at] = _anywhere(dimensions[at], size)
    return replace(seen, dimensions=tuple(dimensions))


def _concatenated(seen: Seen, call: _Call) -> Seen:
    at = call.get(1, "dim", 0) % len(seen.dimensions)
    if at == 1 and len(seen.dimensions) == 4:
        # Channels that hold neighbouring pixels: as if they were mixed already.
        seen = _summed(seen, seen.dimensions[at])
        return replace(seen, dimensions=(*seen.dimensions[:at], _plain(call.shape[at]), *seen.dimensions[at + 1 :]))
    dimensions = list(seen.dimensions)
    dimensions[at] = _anywhere(dimensions[at], call.shape[at])
    return replace(seen, dimensions=tuple(dimensions))


def _stacked(seen: Seen, call: _Call) -> Seen:
    at = call.get(1, "dim", 0) % (len(seen.dimensions) + 1)
    return replace(seen, dimensions=(*seen.dimensions[:at], _plain(call.shape[at]), *seen.dimensions[at:]))


def _divided(seen: Seen, call: _Call) -> Seen:
    at = call.get(2, "dim", 0) % len(seen.dimensions)
    dimensions = list(seen.dimensions)
    dimensions[at] = _anywhere(dimensions[at], call.shape[at])
    return replace(seen, dimensions=tuple(dimensions))


def _halved(seen: Seen, call: _Call) -> Seen:
    at = call.get(1, "dim", -1) % len(seen.dimensions)
    dimensions = list(seen.dimensions)
    dimensions[at] = _anywhere(dimensions[at], call.shape[at])
    return replace(seen, dimensions=tuple(dimensions))


def _without(seen: Seen, call: _Call) -> Seen:
    """One position of a dimension, or each of them on its own."""
    at = call.get(1, "dim", 0) % len(seen.dimensions)
    rest = seen.dimensions[:at] + seen.dimensions[at + 1 :]
    return replace(seen, dimensions=rest)


def _with_one_more(seen: Seen, call: _Call) -> Seen:
    at = call.args[1] % (len(seen.dimensions) + 1)
    return replace(seen, dimensions=(*seen.dimensions[:at], _plain(1), *seen.dimensions[at:]))


def _without_ones(seen: Seen, call: _Call) -> Seen:
    asked = call.get(1, "dim")
    count = len(seen.dimensions)
    places = {at % count for at in ([asked] if isinstance(asked, int) else range(count) if asked is None else asked)}
    kept = [own for at, own in enumerate(seen.dimensions) if at not in places or _size(own) != 1]
    return replace(seen, dimensions=tuple(kept))


def _expanded(seen: Seen, call: _Call) -> Seen:
    more = len(call.shape) - len(seen.dimensions)
    own = (*[_plain(1)] * more, *seen.dimensions)
    dimensions = [
        before if _size(before) == size else _plain(size) for before, size in zip(own, call.shape, strict=True)
    ]
    return replace(seen, dimensions=tuple(dimensions))


def _shuffled(seen: Seen, call: _Call) -> Seen:
    """Channels to pixels between the pixels, or such pixels to channels."""
    places = (len(seen.dimensions) - 2, len(seen.dimensions) - 1)
    factors = [seen.dimensions[at][0] for at in places]
    if any(len(seen.dimensions[at]) != 1 for at in places) or {factor.axis for factor in factors} != {0, 1}:
        return replace(seen, unknown="a shuffle of what is no image")
    dimensions = [_plain(size) for size in call.shape]
    for at, factor in zip(places, factors, strict=True):
        field = seen.fields[factor.axis]
        field = field._replace(jump=field.jump * factor.stride)
        scale = factor.size / call.shape[at]
        # Of what is put together, the first pixel and the last.
        high = field.high + max(scale - 1, 0) * field.jump
        seen = seen.moved(factor.axis, field._replace(high=high, jump=field.jump * scale))
        dimensions[at] = (_Factor(factor.axis, call.shape[at]),)
    return replace(seen, dimensions=tuple(dimensions))


def _attended(seen: Seen, call: _Call) -> Seen:
    return replace(seen, everything=True)


_RULES: dict[Any, Callable[[Seen, _Call], Seen]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _adaptive,
    aten.adaptive_max_pool2d: _adaptive,
    aten.upsample_nearest2d: _resized(1),
    aten.upsample_bilinear2d: _resized(2),
    aten.upsample_bicubic2d: _resized(4),
    aten._upsample_nearest_exact2d: _resized(1),
    aten.mean: _reduced(1),
    aten.sum: _reduced(1),
    aten.amax: _reduced(1),
    aten.amin: _reduced(1),
    aten.max: _reduced(1),
    aten.min: _reduced(1),
    aten.var: _reduced(1),
    aten.var_mean: _reduced(1),
    aten.std: _reduced(1),
    aten.linalg_vector_norm: _reduced(2),
    aten.mm: _product(0),
    aten.bmm: _product(0),
    aten.addmm: _product(1),
    aten.baddbmm: _product(1),
    aten.native_layer_norm: _normalised,
    aten._softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten._log_softmax: _softmax,
    aten.view: _regrouped,
    aten._unsafe_view: _regrouped,
    aten._reshape_copy: _regrouped,
    aten.permute: _permuted,
    aten.transpose: _transposed,
    aten.t: _transposed,
    aten.slice: _sliced,
    aten.constant_pad_nd: _padded,
    aten.reflection_pad2d: _padded,
    aten.replication_pad2d: _padded,
    aten.cat: _concatenated,
    aten.stack: _stacked,
    aten.split: _divided,
    aten.split_with_sizes: _divided,
    aten.unsafe_split: _divided,
    aten.glu: _halved,
    aten.select: _without,
    aten.unbind: _without,
    aten.unsqueeze: _with_one_more,
    aten.squeeze: _without_ones,
    aten.expand: _expanded,
    aten.repeat: _expanded,
    aten.pixel_shuffle: _shuffled,
    aten.pixel_unshuffle: _shuffled,
    aten._native_multi_head_attention: _attended,
    aten._scaled_dot_product_flash_attention_for_cpu: _attended,
    aten._scaled_dot_product_attention_math: _attended,
}

_UNIT_BY_UNIT = frozenset(
    {
        # Statistics of batches and groups are not counted as seen.
        aten.native_batch_norm,
        aten._native_batch_norm_legit_no_training,
        aten.native_group_norm,
        aten.clone,
        aten.copy_,
        aten.detach,
        aten.alias,
        aten.as_strided_,  # How an adaptive pooling marks its one pixel as channels_last.
        aten.channel_shuffle,
        aten._prelu_kernel,
        aten.hardswish,
        aten.hardswish_,
        aten._to_copy,
        aten.roll,
    }
)
"""What torch does not mark as pointwise, and is here."""

_OF_SHAPES_ONLY = frozenset(
    {aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full, aten.zeros_like, aten.ones_like, aten.empty_like}
)
"""What has an image's shape, and nothing of its values."""
