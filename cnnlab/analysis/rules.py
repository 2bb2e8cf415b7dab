"""The effect of each operation on the receptive field. A new operation needs a line in RULES, or also a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnnlab.analysis.receptive_field import (
    Dimension,
    Factor,
    Field,
    FieldState,
    merge,
    non_spatial,
    reduce_dimension,
    resize_dimension,
    size_of,
)

aten = torch.ops.aten


class Call(NamedTuple):
    """A call of an operation."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    """The shape of the result."""
    inputs: list[FieldState | None]
    """The states of the first three arguments; None for those that are not tensors."""

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def _slide_window(step: Callable[[Field, int], Field]) -> Callable[[FieldState, Call, int], FieldState]:
    """A rule for an operation whose window runs over the last ``axes`` dimensions."""

    def rule(state: FieldState, call: Call, axes: int) -> FieldState:
        for axis in range(axes):
            index = len(state.dimensions) - axes + axis
            spatial = [factor for factor in state.dimensions[index] if factor.axis >= 0]
            place = spatial[0].axis if spatial else -1
            if len(spatial) > 1 or place == 2:
                # A sequence of tokens, whose neighbors may be anywhere in the image.
                place, state = 2, replace(state, whole_image=True)
            elif spatial:
                field = state.fields[place]
                state = state.with_field(place, step(field._replace(jump=field.jump * spatial[0].stride), axis))
            state = state.with_dimension(index, (Factor(place, call.shape[len(call.shape) - axes + axis]),))
        return state

    return rule


def _value_at(value: Any, axis: int) -> int:
    """A setting that is one number for all axes, or one for each."""
    if isinstance(value, int):
        return value
    return int(value[axis if len(value) > 1 else 0])


def _convolve(state: FieldState, call: Call) -> FieldState:
    weight = call.args[1]
    axes = weight.ndim - 2
    stride, padding, dilation, transposed = call.args[3:7]
    state = reduce_dimension(state, state.dimensions[1]).with_dimension(1, non_spatial(call.shape[1]))

    def step(field: Field, axis: int) -> Field:
        after = field.after_transposed if transposed else field.after
        kernel = weight.shape[2 + axis]
        return after(kernel, _value_at(stride, axis), _value_at(padding, axis), _value_at(dilation, axis))

    return _slide_window(step)(state, call, axes)


def _pool(state: FieldState, call: Call) -> FieldState:
    kernel = call.args[1]
    stride = call.get(2, "stride") or kernel
    padding = call.get(3, "padding", 0)
    dilation = call.get(4, "dilation", 1)
    if isinstance(dilation, bool):  # Average pooling has no dilation; its fifth argument is ceil_mode.
        dilation = 1

    def step(field: Field, axis: int) -> Field:
        settings = (_value_at(setting, axis) for setting in (kernel, stride, padding, dilation))
        return field.after(*settings)

    return _slide_window(step)(state, call, 2)


def _pool_adaptively(state: FieldState, call: Call) -> FieldState:
    sizes = [size_of(own) for own in state.dimensions[-2:]]
    pooled = [own for own, size in zip(state.dimensions[-2:], call.shape[-2:], strict=True) if size == 1]
    for own in pooled:
        state = reduce_dimension(state, own)

    def step(field: Field, axis: int) -> Field:
        size, units = sizes[axis], call.shape[len(call.shape) - 2 + axis]
        if units == 1:
            return field
        # Windows begin and end at rounded positions: the largest one is used.
        kernel = max(-(-(unit + 1) * size // units) - unit * size // units for unit in range(units))
        return field.after(kernel)._replace(jump=field.jump * size / units)

    return _slide_window(step)(state, call, 2)


def _interpolate(neighbors: int) -> Callable[[FieldState, Call], FieldState]:
    """A rule for interpolation between a number of neighboring positions along each axis."""

    def rule(state: FieldState, call: Call) -> FieldState:
        sizes = [size_of(own) for own in state.dimensions[-2:]]

        def step(field: Field, axis: int) -> Field:
            scale = sizes[axis] / call.shape[len(call.shape) - 2 + axis]
            if scale == 1:
                return field
            return field.after(neighbors, padding=(neighbors - 1) // 2)._replace(jump=field.jump * scale)

        return _slide_window(step)(state, call, 2)

    return rule


def _reduce(position: int) -> Callable[[FieldState, Call], FieldState]:
    """A rule for reductions over the dimensions that the argument at this position names."""

    def rule(state: FieldState, call: Call) -> FieldState:
        count = len(state.dimensions)
        dims = call.get(position, "dim")
        dims = [dims] if isinstance(dims, int) else dims or range(count)
        reduced = {index % count for index in dims}
        for index in reduced:
            state = reduce_dimension(state, state.dimensions[index])
        keepdim = len(call.shape) == count
        dimensions = [
            non_spatial(1) if index in reduced else own
            for index, own in enumerate(state.dimensions)
            if keepdim or index not in reduced
        ]
        return replace(state, dimensions=tuple(dimensions))

    return rule


def _multiply_matrices(position: int) -> Callable[[FieldState, Call], FieldState]:
    """A rule for matrix products of the arguments at this position and the next.

    They sum over the left matrix's last dimension and the right matrix's last but one.
    """

    def rule(state: FieldState, call: Call) -> FieldState:
        left, right = call.inputs[position : position + 2]
        rows, columns = non_spatial(call.shape[-2]), non_spatial(call.shape[-1])
        terms = [] if position == 0 or call.inputs[0] is None else [call.inputs[0]]
        if left is not None:
            rows = left.dimensions[-2]
            terms.append(reduce_dimension(left, left.dimensions[-1]))
        if right is not None:
            columns = right.dimensions[-1]
            terms.append(reduce_dimension(right, right.dimensions[-2]))
        leading = (left or right or state).dimensions[:-2]
        return replace(merge(terms), dimensions=(*leading, rows, columns))

    return rule


def _normalize_layer(state: FieldState, call: Call) -> FieldState:
    for own in state.dimensions[len(state.dimensions) - len(call.args[1]) :]:
        state = reduce_dimension(state, own)
    return state if len(call.shape) == len(state.dimensions) else replace(state, unknown="layer norm's statistics")


def _softmax(state: FieldState, call: Call) -> FieldState:
    return reduce_dimension(state, state.dimensions[call.args[1]])


def _view(state: FieldState, call: Call) -> FieldState:
    """Any view: its strides in a contiguous tensor tell which parts of the old dimensions each new one runs over."""
    old = torch.empty([size_of(own) for own in state.dimensions], device="meta")
    new = call.operation(old, *call.args[1:], **call.kwargs)
    new = new if isinstance(new, Tensor) else new[0]
    factors = [factor for own in state.dimensions for factor in own]
    steps = [math.prod(inner.size for inner in factors[place + 1 :]) for place in range(len(factors))]
    dimensions: list[Dimension] = []
    for size, stride in zip(new.shape, new.stride(), strict=True):
        parts: list[Factor] = []
        for factor, step in zip(factors, steps, strict=True):
            first, end = max(stride, step), min(stride * size, step * factor.size)
            if first >= end:
                continue
            if first % step or end % first:
                return replace(state, unknown=state.unknown or "a view across dimensions")
            parts.append(Factor(factor.axis, end // first, factor.stride * (first // step)))
        dimensions.append(_join_factors(parts) or non_spatial(size))
    return replace(state, dimensions=tuple(dimensions))


def _join_factors(factors: Sequence[Factor]) -> Dimension:
    """Join neighboring factors that continue each other along the same axis."""
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


def _crop(state: FieldState, index: int, size: int, start: int, step: int = 1) -> FieldState:
    """Every ``step``-th position of a dimension from ``start`` on, which is negative if positions are added."""
    if len(state.dimensions[index]) == 1 and (factor := state.dimensions[index][0]).axis in (0, 1):
        field = state.fields[factor.axis]
        shift = start * factor.stride * field.jump
        state = state.with_field(factor.axis, Field(field.low + shift, field.high + shift, field.jump * step))
        return state.with_dimension(index, (Factor(factor.axis, size, factor.stride),))
    return resize_dimension(state, index, size)


def _slice(state: FieldState, call: Call) -> FieldState:
    index, start, step = call.get(1, "dim", 0), call.get(2, "start") or 0, call.get(4, "step", 1)
    before = size_of(state.dimensions[index])
    if before == call.shape[index]:
        return state
    return _crop(state, index % len(state.dimensions), call.shape[index], start + before if start < 0 else start, step)


def _pad(state: FieldState, call: Call) -> FieldState:
    for number, added in enumerate(call.args[1][::2]):
        index = len(state.dimensions) - 1 - number
        state = _crop(state, index, call.shape[index], -added)
    return state


def _resize(position: int, default: int = 0) -> Callable[[FieldState, Call], FieldState]:
    """A rule for operations that join or divide the dimension that the argument at this position names."""

    def rule(state: FieldState, call: Call) -> FieldState:
        index = call.get(position, "dim", default) % len(state.dimensions)
        return resize_dimension(state, index, call.shape[index])

    return rule


def _stack(state: FieldState, call: Call) -> FieldState:
    index = call.get(1, "dim", 0) % (len(state.dimensions) + 1)
    stacked = non_spatial(call.shape[index])
    return replace(state, dimensions=(*state.dimensions[:index], stacked, *state.dimensions[index:]))


def _repeat(state: FieldState, call: Call) -> FieldState:
    added = len(call.shape) - len(state.dimensions)
    own = (*[non_spatial(1)] * added, *state.dimensions)
    dimensions = [
        before if size_of(before) == size else non_spatial(size) for before, size in zip(own, call.shape, strict=True)
    ]
    return replace(state, dimensions=tuple(dimensions))


def _shuffle_pixels(state: FieldState, call: Call) -> FieldState:
    """Pixel shuffle moves channels to new pixels between the old ones; unshuffle moves pixels to channels."""
    indices = (len(state.dimensions) - 2, len(state.dimensions) - 1)
    factors = [state.dimensions[index][0] for index in indices]
    if any(len(state.dimensions[index]) != 1 for index in indices) or {factor.axis for factor in factors} != {0, 1}:
        return replace(state, unknown="a pixel shuffle of something that is not an image")
    dimensions = [non_spatial(size) for size in call.shape]
    for index, factor in zip(indices, factors, strict=True):
        field = state.fields[factor.axis]
        field = field._replace(jump=field.jump * factor.stride)
        scale = factor.size / call.shape[index]
        # From the first of the joined pixels to the last.
        high = field.high + max(scale - 1, 0) * field.jump
        state = state.with_field(factor.axis, field._replace(high=high, jump=field.jump * scale))
        dimensions[index] = (Factor(factor.axis, call.shape[index]),)
    return replace(state, dimensions=tuple(dimensions))


def _attend(state: FieldState, call: Call) -> FieldState:
    return replace(state, whole_image=True)


RULES: dict[Any, Callable[[FieldState, Call], FieldState]] = {
    aten.convolution: _convolve,
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _pool_adaptively,
    aten.adaptive_max_pool2d: _pool_adaptively,
    aten.upsample_nearest2d: _interpolate(1),
    aten.upsample_bilinear2d: _interpolate(2),
    aten.upsample_bicubic2d: _interpolate(4),
    aten._upsample_nearest_exact2d: _interpolate(1),
    aten.mean: _reduce(1),
    aten.sum: _reduce(1),
    aten.amax: _reduce(1),
    aten.amin: _reduce(1),
    aten.max: _reduce(1),
    aten.min: _reduce(1),
    aten.var: _reduce(1),
    aten.var_mean: _reduce(1),
    aten.std: _reduce(1),
    aten.linalg_vector_norm: _reduce(2),
    aten.mm: _multiply_matrices(0),
    aten.bmm: _multiply_matrices(0),
    aten.addmm: _multiply_matrices(1),
    aten.baddbmm: _multiply_matrices(1),
    aten.native_layer_norm: _normalize_layer,
    aten._softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten._log_softmax: _softmax,
    aten.view: _view,
    aten._unsafe_view: _view,
    aten._reshape_copy: _view,
    aten.permute: _view,
    aten.transpose: _view,
    aten.t: _view,
    aten.slice: _slice,
    aten.constant_pad_nd: _pad,
    aten.reflection_pad2d: _pad,
    aten.replication_pad2d: _pad,
    aten.cat: _resize(1),
    aten.stack: _stack,
    aten.split: _resize(2),
    aten.split_with_sizes: _resize(2),
    aten.unsafe_split: _resize(2),
    aten.glu: _resize(1, -1),
    aten.select: _view,
    aten.unbind: _view,
    aten.unsqueeze: _view,
    aten.squeeze: _view,
    aten.expand: _view,
    aten.repeat: _repeat,
    aten.pixel_shuffle: _shuffle_pixels,
    aten.pixel_unshuffle: _shuffle_pixels,
    aten._native_multi_head_attention: _attend,
    aten._scaled_dot_product_flash_attention_for_cpu: _attend,
    aten._scaled_dot_product_attention_math: _attend,
}

_POINTWISE = frozenset(
    {
        # Statistics over batches and groups do not count towards the field.
        aten.native_batch_norm,
        aten._native_batch_norm_legit_no_training,
        aten.native_group_norm,
        aten.clone,
        aten.copy_,
        aten.detach,
        aten.alias,
        aten.as_strided_,  # Used by adaptive pooling to mark its one pixel as channels_last.
        aten.channel_shuffle,
        aten._prelu_kernel,
        aten.hardswish,
        aten.hardswish_,
        aten._to_copy,
        aten.roll,
    }
)
"""Operations that torch does not tag as pointwise, and that are treated as pointwise here."""

SHAPE_ONLY = frozenset(
    {aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full, aten.zeros_like, aten.ones_like, aten.empty_like}
)
"""Operations that take an image's shape, and none of its values."""


def is_pointwise(operation: Any) -> bool:
    """Whether an operation computes each unit from the units at the same position."""
    return torch.Tag.pointwise in operation.tags or operation.overloadpacket in _POINTWISE
