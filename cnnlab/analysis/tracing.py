"""The receptive field of every tensor that a network makes, by following its operations as they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cnnlab.analysis.receptive_field import PIXEL
from cnnlab.analysis.rules import OF_SHAPES_ONLY, RULES, Call, is_unit_by_unit
from cnnlab.analysis.seen import Factor, Seen, broadcast, in_steps_of_one, size_of, together
from cnnlab.torch_compat import TorchDispatchMode, is_mutable, tree_leaves, view_base


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
        dimensions = ((Factor(-1, batch),), (Factor(-1, channels),), (Factor(0, height),), (Factor(1, width),))
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
        if before and operation.overloadpacket not in OF_SHAPES_ONLY:
            for tensor in _tensors(result):
                call = Call(args, kwargs or {}, tuple(tensor.shape), factors)
                self._seen[tensor] = _after(operation, call, before)
        return result

    def _note_writes(self, operation: Any, args: tuple[Any, ...], before: Sequence[Seen]) -> None:
        """A write into a part of a tensor: the whole sees no less than what is written."""
        written = args[0] if args and isinstance(args[0], Tensor) and is_mutable(operation) else None
        whole = None if written is None else view_base(written)
        if whole is None or not before:
            return
        known = self.of(whole)
        self._seen[whole] = (
            Seen.nothing_known(f"{operation} into a part", tuple(whole.shape))
            if known is None or any(seen.unknown for seen in [known, *before])
            else replace(together([known, *before]), dimensions=known.dimensions)
        )


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _after(operation: Any, call: Call, before: Sequence[Seen]) -> Seen:
    """What a result sees, made of tensors that see this."""
    unknown = next((seen.unknown for seen in before if seen.unknown), None)
    rule = RULES.get(operation.overloadpacket)
    if unknown is None and rule is not None:
        # The first has the dimensions that are changed; of the others counts what they see.
        first = call.factors[0] or before[0]
        after = rule(together([first, *(seen for seen in before if seen is not first)]), call)
    elif unknown is None and is_unit_by_unit(operation):
        after = broadcast(before, call.shape)
    else:
        return Seen.nothing_known(unknown or str(operation), call.shape)
    if after.unknown or [size_of(own) for own in after.dimensions] != list(call.shape):
        return Seen.nothing_known(after.unknown or str(operation), call.shape)
    return in_steps_of_one(after)
