"""The memory of a training step: forward pass, backward pass and optimizer, simulated without values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnlab.analysis.meta import copy_without_values, explain_failure, first_tensor
from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive
from cnnlab.torch_compat import FakeTensorMode, TorchDispatchMode, tree_leaves

PRECISIONS = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
}
"""Lightning's names, with the dtype of the weights and, if it differs, that of the computation."""
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
}
"""Optimizers by name; they keep one value per parameter (sgd), or two (adamw)."""


class TrainingMemory(NamedTuple):
    """Bytes of a training step."""

    parameters: int
    """Weights and buffers."""
    gradients: int
    optimizer: int
    """The optimizer's states."""
    activations: int
    """The batch and the tensors saved for the backward pass, at the end of the forward pass."""
    peak: int
    """The maximum at one time; it may be below the sum, since activations are freed during the backward pass."""


def training_memory(
    network: nn.Module,
    image: tuple[int, int, int],
    batch: int,
    precision: str = "32-true",
    optimizer: str = "adamw",
    loss: Callable[[Tensor], Tensor] | None = None,
) -> TrainingMemory:
    """Simulate a training step without values, and count the bytes of all live tensors.

    Memory outside of PyTorch is not counted: the program itself (some 500 MB on a GPU), the scratch memory of
    convolution libraries, data loaders.

    Args:
        network: Images (B, C, H, W) to logits; it is not changed.
        image: Channels, height and width.
        batch: Images per step.
        precision: See PRECISIONS.
        optimizer: See OPTIMIZERS.
        loss: Predictions to a scalar; cross-entropy if None.

    Raises:
        InputError: If a name is unknown, the batch is below 1, or the network reads values of tensors.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer is {optimizer!r}, expected {', '.join(OPTIMIZERS)}")
    check_positive(batch=batch)
    stored, computed = PRECISIONS[precision]
    loss_function = _cross_entropy if loss is None else loss
    counter = _StorageCounter()
    with explain_failure(image), FakeTensorMode(), counter:
        own = copy_without_values(network, stored).train()
        parameters = counter.alive
        images = torch.empty(batch, *image, dtype=stored)
        trainable = [parameter for parameter in own.parameters() if parameter.requires_grad]
        before = counter.alive
        # The optimizer has no states before its first step.
        own_optimizer = OPTIMIZERS[optimizer](trainable) if trainable else None
        gradients = _simulate_update(own_optimizer) if own_optimizer is not None else 0
        states = counter.alive - before
        activations = counter.alive - _bytes([images])
        with torch.autocast("cpu", computed, enabled=computed is not None):
            value = loss_function(_get_predictions(own(images)))
        activations = counter.alive - activations
        if trainable:
            value.backward()  # type: ignore[no-untyped-call]
    return TrainingMemory(parameters, gradients, states, activations, counter.peak)


def _simulate_update(optimizer: torch.optim.Optimizer) -> int:
    """Make an optimizer step with arbitrary gradients, and return the gradients' bytes."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    size = _bytes([parameter.grad for group in optimizer.param_groups for parameter in group["params"]])
    optimizer.step()
    optimizer.zero_grad()
    return size


def _get_predictions(output: object) -> Tensor:
    predictions = first_tensor(output)
    if predictions is None:
        raise InputError(f"the network returns {type(output).__name__}, expected a tensor")
    return predictions


def _cross_entropy(logits: Tensor) -> Tensor:
    targets = torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.int64)
    return nn.functional.cross_entropy(logits.float(), targets)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class _StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, counts the bytes of all new tensors until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count its results."""
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        number, size = id(storage), storage.nbytes()
        if number in self._storages:
            return

        def forget(_: Any) -> None:
            if self._storages.pop(number, None) is not None:
                self.alive -= size

        self._storages[number] = weakref.ref(storage, forget)
        self.alive += size
        self.peak = max(self.peak, self.alive)
