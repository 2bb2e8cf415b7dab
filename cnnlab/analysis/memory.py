"""How much memory a training step takes: forwards, backwards and the optimizer, gone through without numbers."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnlab.analysis.skeleton import first_tensor, refusal, skeleton
from cnnlab.errors import InputError
from cnnlab.torch_compat import FakeTensorMode, TorchDispatchMode, tree_leaves

PRECISIONS = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
}
"""Lightning's names: in what the weights are kept, and in what layers compute where that is another."""
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
}
"""Optimizers by what they keep: one value a parameter, or two."""


class TrainingMemory(NamedTuple):
    """Bytes of a training step."""

    parameters: int
    """Weights and buffers."""
    gradients: int
    optimizer: int
    """What the optimizer keeps of each parameter."""
    activations: int
    """The batch, and what the backward pass needs, at the end of the forward pass."""
    peak: int
    """The most at once; less than the sum where activations are gone before the last gradient is there."""


def training_memory(
    network: nn.Module,
    image: tuple[int, int, int],
    batch: int,
    precision: str = "32-true",
    optimizer: str = "adamw",
    loss: Callable[[Tensor], Tensor] | None = None,
) -> TrainingMemory:
    """Go through a training step without numbers, and count what is alive.

    What is not PyTorch's own is not counted: the program itself (some 500 MB on a GPU), the convolution libraries'
    scratch memory, loaders.

    Args:
        network: From images (B, C, H, W) to logits; it is left alone.
        image: Channels, height and width.
        batch: Images a step.
        precision: See PRECISIONS.
        optimizer: See OPTIMIZERS.
        loss: From predictions to a number; cross-entropy if None.

    Raises:
        InputError: If a name is not known, or if the network cannot be followed without numbers.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer is {optimizer!r}, expected {', '.join(OPTIMIZERS)}")
    if batch < 1:
        raise InputError(f"batch is {batch}, expected 1 or more")
    stored, computed = PRECISIONS[precision]
    measure = _cross_entropy if loss is None else loss
    counter = _Counter()
    try:
        with FakeTensorMode(), counter:
            own = skeleton(network, stored).train()
            parameters = counter.alive
            images = torch.empty(batch, *image, dtype=stored)
            trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
            before = counter.alive
            # The optimizer keeps nothing before its first step.
            updates = OPTIMIZERS[optimizer](trained) if trained else None
            gradients = _update(updates) if updates is not None else 0
            kept = counter.alive - before
            activations = counter.alive - _bytes([images])
            mixed: AbstractContextManager[Any] = torch.autocast("cpu", computed) if computed else nullcontext()
            with mixed:
                value = measure(_predictions(own(images)))
            activations = counter.alive - activations
            if trained:
                value.backward()  # type: ignore[no-untyped-call]
    except InputError:
        raise
    except Exception as error:  # See on_meta.
        raise InputError(refusal(error, image)) from error
    return TrainingMemory(parameters, gradients, kept, activations, counter.peak)


def _update(optimizer: torch.optim.Optimizer) -> int:
    """Make a step with gradients of any values; how many bytes they are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    size = _bytes([parameter.grad for group in optimizer.param_groups for parameter in group["params"]])
    optimizer.step()
    optimizer.zero_grad()
    return size


def _predictions(output: object) -> Tensor:
    found = first_tensor(output)
    if found is None:
        raise InputError(f"the network returns {type(output).__name__}, expected a tensor")
    return found


def _cross_entropy(logits: Tensor) -> Tensor:
    targets = torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.int64)
    return nn.functional.cross_entropy(logits.float(), targets)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is entered, until they are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do it, and count what it makes."""
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        number, size = id(storage), storage.nbytes()
        if number in self._known:
            return

        def forget(_: Any) -> None:
            with contextlib.suppress(KeyError):
                del self._known[number]
                self.alive -= size

        self._known[number] = weakref.ref(storage, forget)
        self.alive += size
        self.peak = max(self.peak, self.alive)
