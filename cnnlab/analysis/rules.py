"""What each operation does to what its tensors see. A new operation is a line in RULES, and at most a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cnnlab.analysis.receptive_field import Field
from cnnlab.analysis.seen import (
    Dimension,
    Factor,
    Seen,
    plain,
    size_of,
    summed,
    together,
    with_other_positions,
)

aten = torch.ops.aten


class Call(NamedTuple):
    """A call of an operation."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    """The result's."""
    factors: list[Seen | None]
    """What the first three arguments see, where they are tensors."""

    def get(self, place: int, name: str, otherwise: Any = None) -> Any:
        """An argument, wherever it stands."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)


def _window(step: Callable[[Field, int], Field]) -> Callable[[Seen, Call, int], Seen]:
    """A rule for the dimensions that a window runs over: the last so many."""

    def rule(seen: Seen, call: Call, axes: int) -> Seen:
        dimensions = list(seen.dimensions)
        for place in range(axes):
            at = len(dimensions) - axes + place
            spatial = [factor for factor in dimensions[at] if factor.axis >= 0]
            size = call.shape[len(call.shape) - axes + place]
            if len(spatial) > 1 or any(factor.axis == 2 for factor in spatial):
                # Tokens in a row, whose neighbours may be anywhere.
                seen = replace(seen, everything=True)
                dimensions[at] = (Factor(2, size),)
                continue
            if spatial:
                (factor,) = spatial
                field = seen.fields[factor.axis]
                moved = step(field._replace(jump=field.jump * factor.stride), place)
                seen = seen.moved(factor.axis, moved)
                dimensions[at] = (Factor(factor.axis, size),)
                continue
            dimensions[at] = plain(size)
        return replace(seen, dimensions=tuple(dimensions))

    return rule


def _pair(value: Any, place: int) -> int:
    if isinstance(value, int):
        return value
    return int(value[place if len(value) > 1 else 0])


def _convolution(seen: Seen, call: Call) -> Seen:
    weight = call.args[1]
    axes = weight.ndim - 2
    stride, padding, dilation, transposed = call.args[3:7]
    seen = summed(seen, seen.dimensions[1])
    seen = replace(seen, dimensions=(seen.dimensions[0], plain(call.shape[1]), *seen.dimensions[2:]))

    def step(field: Field, place: int) -> Field:
        after = field.after_transposed if transposed else field.after
        kernel = weight.shape[2 + place]
        return after(kernel, _pair(stride, place), _pair(padding, place), _pair(dilation, place))

    return _window(step)(seen, call, axes)


def _pool(seen: Seen, call: Call) -> Seen:
    kernel = call.args[1]
    stride = call.get(2, "stride") or kernel
    padding = call.get(3, "padding", 0)
    # Average pooling has no dilation; its fifth argument is another.
    dilation = call.get(4, "dilation", 1)
    spread = dilation if not isinstance(dilation, bool) else 1

    def step(field: Field, place: int) -> Field:
        return field.after(_pair(kernel, place), _pair(stride, place), _pair(padding, place), _pair(spread, place))

    return _window(step)(seen, call, 2)


def _adaptive(seen: Seen, call: Call) -> Seen:
    sizes = [size_of(own) for own in seen.dimensions[-2:]]
    whole = [own for own, size in zip(seen.dimensions[-2:], call.shape[-2:], strict=True) if size == 1]
    for own in whole:
        seen = summed(seen, own)

    def step(field: Field, place: int) -> Field:
        size, wanted = sizes[place], call.shape[len(call.shape) - 2 + place]
        if wanted == 1:
            return field
        # Windows begin and end at rounded places: the largest counts.
        kernel = max(-(-(unit + 1) * size // wanted) - unit * size // wanted for unit in range(wanted))
        return field.after(kernel)._replace(jump=field.jump * size / wanted)

    return _window(step)(seen, call, 2)


def _resized(neighbours: int) -> Callable[[Seen, Call], Seen]:
    """A rule for interpolation between so many positions along each axis."""

    def rule(seen: Seen, call: Call) -> Seen:
        sizes = [size_of(own) for own in seen.dimensions[-2:]]

        def step(field: Field, place: int) -> Field:
            scale = sizes[place] / call.shape[len(call.shape) - 2 + place]
            if scale == 1:
                return field
            return field.after(neighbours, padding=(neighbours - 1) // 2)._replace(jump=field.jump * scale)

        return _window(step)(seen, call, 2)

    return rule


def _reduced(place: int) -> Callable[[Seen, Call], Seen]:
    """A rule for sums over dimensions, which stand at a place among the arguments."""

    def rule(seen: Seen, call: Call) -> Seen:
        count = len(seen.dimensions)
        asked = call.get(place, "dim")
        asked = [asked] if isinstance(asked, int) else asked
        places = {at % count for at in asked} if asked else set(range(count))
        for at in places:
            seen = summed(seen, seen.dimensions[at])
        kept = len(call.shape) == count
        return replace(
            seen,
            dimensions=tuple(
                plain(1) if at in places else own for at, own in enumerate(seen.dimensions) if kept or at not in places
            ),
        )

    return rule


def _product(place: int) -> Callable[[Seen, Call], Seen]:
    """A rule for matrix products: the last dimension of one factor and the last but one of the other are summed over.

    The factors stand at this place among the arguments, and at the next.
    """

    def rule(seen: Seen, call: Call) -> Seen:
        left, right = call.factors[place : place + 2]
        rows, columns = plain(call.shape[-2]), plain(call.shape[-1])
        made_of = [] if place == 0 or call.factors[0] is None else [call.factors[0]]
        if left is not None:
            rows = left.dimensions[-2]
            made_of.append(summed(left, left.dimensions[-1]))
        if right is not None:
            columns = right.dimensions[-1]
            made_of.append(summed(right, right.dimensions[-2]))
        leading = (left or right or seen).dimensions[:-2]
        return replace(together(made_of), dimensions=(*leading, rows, columns))

    return rule


def _normalised(seen: Seen, call: Call) -> Seen:
    for own in seen.dimensions[len(seen.dimensions) - len(call.args[1]) :]:
        seen = summed(seen, own)
    return seen if len(call.shape) == len(seen.dimensions) else replace(seen, unknown="layer norm's statistics")


def _softmax(seen: Seen, call: Call) -> Seen:
    return summed(seen, seen.dimensions[call.args[1]])


def _regrouped(seen: Seen, call: Call) -> Seen:
    """A view: the same positions in other dimensions."""
    left = [factor for own in seen.dimensions for factor in own if factor.size != 1]
    found: list[Dimension] = []
    for size in call.shape:
        own: list[Factor] = []
        missing = size
        while missing > 1 and left:
            factor = left.pop(0)
            if factor.size > missing:
                inner, across = divmod(factor.size, missing)
                if across:
                    return replace(seen, unknown=seen.unknown or "a view across dimensions")
                left.insert(0, Factor(factor.axis, inner, factor.stride))
                factor = Factor(factor.axis, missing, factor.stride * inner)
            if missing % factor.size:
                return replace(seen, unknown=seen.unknown or "a view across dimensions")
            own.append(factor)
            missing //= factor.size
        found.append(_joined(own) or plain(1))
    return replace(seen, dimensions=tuple(found))


def _joined(factors: Sequence[Factor]) -> Dimension:
    """Neighbours that are one run along their axis, as one."""
    joined: list[Factor] = []
    for factor in factors:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.axis == factor.axis
            and (factor.axis < 0 or last.stride == factor.size * factor.stride)
        ):
            joined[-1] = Factor(factor.axis, last.size * factor.size, factor.stride)
        else:
            joined.append(factor)
    return tuple(joined)


def _permuted(seen: Seen, call: Call) -> Seen:
    return replace(seen, dimensions=tuple(seen.dimensions[at] for at in call.args[1]))


def _transposed(seen: Seen, call: Call) -> Seen:
    dimensions = list(seen.dimensions)
    one, other = call.args[1:3] if len(call.args) > 2 else (0, -1)
    dimensions[one], dimensions[other] = dimensions[other], dimensions[one]
    return replace(seen, dimensions=tuple(dimensions))


def _sliced(seen: Seen, call: Call) -> Seen:
    at, begin, step = call.get(1, "dim", 0), call.get(2, "start") or 0, call.get(4, "step", 1)
    size = call.shape[at]
    dimensions = list(seen.dimensions)
    before = size_of(dimensions[at])
    if before == size:
        return seen
    if len(dimensions[at]) == 1 and (factor := dimensions[at][0]).axis in (0, 1):
        begin = begin + before if begin < 0 else begin
        field = seen.fields[factor.axis]
        shift = begin * factor.stride * field.jump
        seen = seen.moved(factor.axis, Field(field.low + shift, field.high + shift, field.jump * step))
        dimensions[at] = (Factor(factor.axis, size, factor.stride),)
        return replace(seen, dimensions=tuple(dimensions))
    return with_other_positions(seen, at, size)


def _padded(seen: Seen, call: Call) -> Seen:
    around = call.args[1]
    for number in range(len(around) // 2):
        at = len(seen.dimensions) - 1 - number
        size = call.shape[at]
        if len(seen.dimensions[at]) == 1 and (factor := seen.dimensions[at][0]).axis in (0, 1):
            field = seen.fields[factor.axis]
            shift = around[2 * number] * factor.stride * field.jump
            seen = seen.moved(factor.axis, Field(field.low - shift, field.high - shift, field.jump))
            dimensions = list(seen.dimensions)
            dimensions[at] = (Factor(factor.axis, size, factor.stride),)
            seen = replace(seen, dimensions=tuple(dimensions))
        else:
            seen = with_other_positions(seen, at, size)
    return seen


def _with_other_positions(place: int, otherwise: int = 0) -> Callable[[Seen, Call], Seen]:
    """A rule for what joins or divides a dimension, which is named at this place among the arguments."""

    def rule(seen: Seen, call: Call) -> Seen:
        at = call.get(place, "dim", otherwise) % len(seen.dimensions)
        return with_other_positions(seen, at, call.shape[at])

    return rule


def _stacked(seen: Seen, call: Call) -> Seen:
    at = call.get(1, "dim", 0) % (len(seen.dimensions) + 1)
    return replace(seen, dimensions=(*seen.dimensions[:at], plain(call.shape[at]), *seen.dimensions[at:]))


def _without(seen: Seen, call: Call) -> Seen:
    """One position of a dimension, or each of them on its own."""
    at = call.get(1, "dim", 0) % len(seen.dimensions)
    rest = seen.dimensions[:at] + seen.dimensions[at + 1 :]
    return replace(seen, dimensions=rest)


def _with_one_more(seen: Seen, call: Call) -> Seen:
    at = call.args[1] % (len(seen.dimensions) + 1)
    return replace(seen, dimensions=(*seen.dimensions[:at], plain(1), *seen.dimensions[at:]))


def _without_ones(seen: Seen, call: Call) -> Seen:
    asked = call.get(1, "dim")
    count = len(seen.dimensions)
    places = {at % count for at in ([asked] if isinstance(asked, int) else range(count) if asked is None else asked)}
    kept = [own for at, own in enumerate(seen.dimensions) if at not in places or size_of(own) != 1]
    return replace(seen, dimensions=tuple(kept))


def _expanded(seen: Seen, call: Call) -> Seen:
    more = len(call.shape) - len(seen.dimensions)
    own = (*[plain(1)] * more, *seen.dimensions)
    dimensions = [
        before if size_of(before) == size else plain(size) for before, size in zip(own, call.shape, strict=True)
    ]
    return replace(seen, dimensions=tuple(dimensions))


def _shuffled(seen: Seen, call: Call) -> Seen:
    """Channels to pixels between the pixels, or such pixels to channels."""
    places = (len(seen.dimensions) - 2, len(seen.dimensions) - 1)
    factors = [seen.dimensions[at][0] for at in places]
    if any(len(seen.dimensions[at]) != 1 for at in places) or {factor.axis for factor in factors} != {0, 1}:
        return replace(seen, unknown="a shuffle of what is no image")
    dimensions = [plain(size) for size in call.shape]
    for at, factor in zip(places, factors, strict=True):
        field = seen.fields[factor.axis]
        field = field._replace(jump=field.jump * factor.stride)
        scale = factor.size / call.shape[at]
        # Of what is put together, the first pixel and the last.
        high = field.high + max(scale - 1, 0) * field.jump
        seen = seen.moved(factor.axis, field._replace(high=high, jump=field.jump * scale))
        dimensions[at] = (Factor(factor.axis, call.shape[at]),)
    return replace(seen, dimensions=tuple(dimensions))


def _attended(seen: Seen, call: Call) -> Seen:
    return replace(seen, everything=True)


RULES: dict[Any, Callable[[Seen, Call], Seen]] = {
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
    aten.cat: _with_other_positions(1),
    aten.stack: _stacked,
    aten.split: _with_other_positions(2),
    aten.split_with_sizes: _with_other_positions(2),
    aten.unsafe_split: _with_other_positions(2),
    aten.glu: _with_other_positions(1, -1),
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

OF_SHAPES_ONLY = frozenset(
    {aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full, aten.zeros_like, aten.ones_like, aten.empty_like}
)
"""What has an image's shape, and nothing of its values."""


def is_unit_by_unit(operation: Any) -> bool:
    """Whether an operation computes each unit from those in the same place."""
    return torch.Tag.pointwise in operation.tags or operation.overloadpacket in _UNIT_BY_UNIT
