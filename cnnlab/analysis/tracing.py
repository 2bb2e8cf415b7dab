"""Trace the receptive field of every tensor that a network computes, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cnnlab.analysis.receptive_field import PIXEL, Factor, FieldState, broadcast, merge, normalize_strides, size_of
from cnnlab.analysis.rules import RULES, SHAPE_ONLY, Call, is_pointwise
from cnnlab.torch_compat import TorchDispatchMode, is_mutable, tree_leaves, view_base


class FieldTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, records the receptive fields of all tensors that depend on the images.

    Run the network without gradients: with them, views lose their history.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._states: Any = WeakTensorKeyDictionary()

    def track(self, images: Tensor) -> None:
        """Start from these images (B, C, H, W): the field of each pixel is the pixel itself."""
        batch, channels, height, width = images.shape
        dimensions = ((Factor(-1, batch),), (Factor(-1, channels),), (Factor(0, height),), (Factor(1, width),))
        self._states[images] = FieldState(dimensions, (PIXEL, PIXEL))

    def state_of(self, tensor: Tensor) -> FieldState | None:
        """A tensor's state; None if it does not depend on the images."""
        state: FieldState | None = self._states.get(tensor)
        return state

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and record its results' states."""
        states = [state for tensor in _list_tensors((args, kwargs)) if (state := self.state_of(tensor))]
        inputs = [self.state_of(argument) if isinstance(argument, Tensor) else None for argument in args[:3]]
        result = operation(*args, **(kwargs or {}))
        self._record_write(operation, args, states)
        if states and operation.overloadpacket not in SHAPE_ONLY:
            for tensor in _list_tensors(result):
                call = Call(operation, args, kwargs or {}, tuple(tensor.shape), inputs)
                self._states[tensor] = _propagate(operation, call, states)
        return result

    def _record_write(self, operation: Any, args: tuple[Any, ...], states: Sequence[FieldState]) -> None:
        """After a write into a view, merge the written state into that of the whole tensor."""
        view = args[0] if args and isinstance(args[0], Tensor) and is_mutable(operation) else None
        whole = None if view is None else view_base(view)
        if whole is None or not states:
            return
        known = self.state_of(whole)
        self._states[whole] = (
            FieldState.unknown_after(f"{operation} into a part", tuple(whole.shape))
            if known is None or any(state.unknown for state in [known, *states])
            else replace(merge([known, *states]), dimensions=known.dimensions)
        )


def _list_tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _propagate(operation: Any, call: Call, states: Sequence[FieldState]) -> FieldState:
    """The state of a result, from the states of the operation's inputs."""
    unknown = next((state.unknown for state in states if state.unknown), None)
    rule = RULES.get(operation.overloadpacket)
    if unknown is None and rule is not None:
        # The rule changes the first input's dimensions; the others only add their fields.
        first = call.inputs[0] or states[0]
        state = rule(merge([first, *(other for other in states if other is not first)]), call)
    elif unknown is None and is_pointwise(operation):
        state = broadcast(states, call.shape)
    else:
        return FieldState.unknown_after(unknown or str(operation), call.shape)
    if state.unknown or [size_of(own) for own in state.dimensions] != list(call.shape):
        return FieldState.unknown_after(state.unknown or str(operation), call.shape)
    return normalize_strides(state)
